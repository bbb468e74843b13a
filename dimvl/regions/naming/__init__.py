"""Names of regions from their features, by a model that is not the detector."""
