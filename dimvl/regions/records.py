"""What a detector saw in one image: the record that the region store keeps and everything later reads."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Regions:
    """The regions of one image, best first.

    Shapes: R regions, F feature width, K kept classes, A attributes per region.

    Attributes:
        image_id: the image's id in its annotation files, as text.
        width: width of the upright picture in pixels.
        height: height of the upright picture in pixels.
        boxes: (R, 4) float32, corners x1, y1, x2, y2 as fractions of width and height.
        features: (R, F) float16.
        class_ids: (R, K) int16 into the extractor's class vocabulary, best first; -1 for none.
        class_scores: (R, K) float16 probabilities; what is missing to 1 is background and other classes.
        attribute_ids: (R, A) int16 into the extractor's attribute vocabulary, in reading order; -1 for none.
        attribute_scores: (R, A) float16 probabilities.

    """

    image_id: str
    width: int
    height: int
    boxes: np.ndarray
    features: np.ndarray
    class_ids: np.ndarray
    class_scores: np.ndarray
    attribute_ids: np.ndarray
    attribute_scores: np.ndarray

    def __len__(self) -> int:
        """Return the number of regions R."""
        return len(self.boxes)


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """Who made the regions: a model refuses regions of another extractor than it was trained with.

    Attributes:
        name: a readable name, such as `scenes-faster-rcnn`.
        fingerprint: SHA-256 of the weights; equal fingerprints mean comparable features.
        parameters: the settings that change what comes out (thresholds, sizes), JSON values only.
        feature_width: F.
        classes: class names, by class id.
        attributes: attribute names, by attribute id.

    """

    name: str
    fingerprint: str
    parameters: dict[str, float | int | str | bool]
    feature_width: int
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
