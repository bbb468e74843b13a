"""Pixels to regions: detectors, geometry, the region store."""
