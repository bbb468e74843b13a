"""Pretraining, question answering and captioning: model, heads and objectives behind one interface."""
