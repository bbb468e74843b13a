"""What a detector saw in one image: the record that the region store keeps and everything later reads."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

SIZES = ("side", "shortest_side", "longest_side", "height", "width")
"""Parameters of an extractor that change the feature of one and the same box: the size that pictures are scaled to."""

ARRAYS = ("boxes", "features", "class_ids", "class_scores", "attribute_ids", "attribute_scores")
"""The arrays that `Detections` always have, one row per region."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in one picture, best first.

    Shapes: R regions, F feature width, K kept classes, A attributes per region.

    Attributes:
        boxes: (R, 4) float32, corners x1, y1, x2, y2 as fractions of width and height.
        features: (R, F) float16 or float32, or int8 as a store may hold them, to be multiplied by `feature_scales`.
        class_ids: (R, K) int16 into the extractor's class vocabulary, best first; -1 for none.
        class_scores: (R, K) float16 probabilities of the kept classes; `other_scores` has what is missing to 1.
        attribute_ids: (R, A) int16 into the extractor's attribute vocabulary, in reading order; -1 for none.
        attribute_scores: (R, A) float16 probabilities.
        feature_scales: (R, 1) float32, the scale of each row of int8 features; None for others.

    """

    boxes: np.ndarray
    features: np.ndarray
    class_ids: np.ndarray
    class_scores: np.ndarray
    attribute_ids: np.ndarray
    attribute_scores: np.ndarray
    feature_scales: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of regions R."""
        return len(self.boxes)

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays that there are, one row per region, by name."""
        scales = {} if self.feature_scales is None else {"feature_scales": self.feature_scales}
        return {name: getattr(self, name) for name in ARRAYS} | scales

    def dequantised(self) -> Self:
        """Return the same with int8 features as float32, each row times its scale; others are as they are."""
        if self.feature_scales is None:
            return self
        return replace(self, features=self.features * self.feature_scales, feature_scales=None)

    @property
    def other_scores(self) -> np.ndarray:
        """Probability (R,) float32 of background and of the classes that were not kept: what is missing to 1.

        A detector that judges every class by itself (sigmoids) may give scores that sum to more than 1. They are kept
        as they are, since tags ask for the score of one class. Then nothing is missing here, and who needs a
        distribution divides by the sum.
        """
        kept = np.where(self.class_ids >= 0, self.class_scores, 0).sum(axis=1, dtype=np.float32)
        return np.maximum(1 - kept, 0)


@dataclass(frozen=True, kw_only=True)
class Regions(Detections):
    """The regions of one image that has a name.

    Attributes:
        image_id: the image's id in its annotation files, as text.
        width: width of the upright picture in pixels.
        height: height of the upright picture in pixels.

    """

    image_id: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """Who made the regions: a model refuses regions of another extractor than it was trained with.

    Attributes:
        name: a readable name, such as `scenes-faster-rcnn`.
        fingerprint: SHA-256 of the weights; see `conflict` for what else must be equal.
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

    def conflict(self, other: "Extractor") -> str | None:
        """Tell what keeps a model that was trained on regions of this extractor from taking those of another.

        Weights, feature width, names of classes and attributes, and the size that pictures are scaled to must be the
        same: they give features and tags their meaning. A size that only one of the two knows is not compared.

        Returns:
            What differs, in words; None where the regions are comparable.

        """
        if self.fingerprint != other.fingerprint:
            return f"weights {other.fingerprint[:12]}, not {self.fingerprint[:12]}"
        if self.feature_width != other.feature_width:
            return f"features {other.feature_width} wide, not {self.feature_width}"
        for name in ("classes", "attributes"):
            if getattr(self, name) != getattr(other, name):
                return f"other {name}"
        for name in SIZES:
            if name in self.parameters and name in other.parameters and self.parameters[name] != other.parameters[name]:
                return f"{name} {other.parameters[name]}, not {self.parameters[name]}"
        return None

    def deviations(self, other: "Extractor") -> list[str]:
        """Tell which parameters differ though the regions are comparable: they decide which boxes there are."""
        names = sorted((self.parameters.keys() | other.parameters.keys()) - set(SIZES))
        pairs = [(name, self.parameters.get(name), other.parameters.get(name)) for name in names]
        return [f"{name} {theirs}, not {own}" for name, own, theirs in pairs if own != theirs]
