"""Detectors: pixels to boxes, features, class and attribute scores."""

from dimvl.regions.detectors.load import NO_DETECTOR, SCENES, load_detector, missing_file

__all__ = ["NO_DETECTOR", "SCENES", "load_detector", "missing_file"]
