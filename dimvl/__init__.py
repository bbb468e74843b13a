"""Vision-language pretraining with region features and modality-decoupled attention."""
