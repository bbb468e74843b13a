"""The regions of an image: what detectors return, the region store keeps, and all later code reads."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

SIZES = ("side", "shortest_side", "longest_side", "height", "width")
"""The parameters of an extractor that set the size images are scaled to: they change the feature of a given box."""

ARRAYS = ("boxes", "features", "class_ids", "class_scores", "attribute_ids", "attribute_scores")
"""The arrays that `Detections` always has, one row per region."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The regions of an image, best first.

    Shapes: R regions, F feature width, K kept classes, A attributes per region.

    Attributes:
        boxes: (R, 4) float32, corners x1, y1, x2, y2 as fractions of width and height.
        features: (R, F) float16 or float32, or int8 from a store, to be multiplied by `feature_scales`.
        class_ids: (R, K) int16 into the extractor's class vocabulary, best first; -1 for none.
        class_scores: (R, K) float16 probabilities of the kept classes; see `other_scores` for the rest.
        attribute_ids: (R, A) int16 into the extractor's attribute vocabulary, in the order of a phrase; -1 for none.
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
        """The arrays by name, one row per region; `feature_scales` only for int8."""
        scales = {} if self.feature_scales is None else {"feature_scales": self.feature_scales}
        return {name: getattr(self, name) for name in ARRAYS} | scales

    def dequantised(self) -> Self:
        """Return a copy with int8 features as float32, each row times its scale; other features are unchanged."""
        if self.feature_scales is None:
            return self
        return replace(self, features=self.features * self.feature_scales, feature_scales=None)

    @property
    def other_scores(self) -> np.ndarray:
        """Probability (R,) float32 of background and of the classes that were not kept: what is missing to 1.

        Independent class scores (sigmoids) may sum to more than 1. They are kept unchanged, because tags use the score
        of one class; then nothing is missing, and code that needs a distribution divides by the sum.
        """
        kept = np.where(self.class_ids >= 0, self.class_scores, 0).sum(axis=1, dtype=np.float32)
        return np.maximum(1 - kept, 0)


@dataclass(frozen=True, kw_only=True)
class Regions(Detections):
    """The regions of a named image.

    Attributes:
        image_id: the image's id in its annotation files, as text.
        width: width of the upright image in pixels.
        height: height of the upright image in pixels.

    """

    image_id: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """What made the regions: a model refuses regions of another extractor than it was trained with.

    Attributes:
        name: a readable name, such as `scenes-faster-rcnn`.
        fingerprint: SHA-256 of the weights; see `conflict` for what else must be equal.
        parameters: the settings that change the regions (thresholds, sizes), JSON values only.
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
        """Say why a model trained on regions of this extractor cannot use those of another; None if it can.

        Weights, feature width, the names of classes and attributes, and the size that images are scaled to must be
        equal: they give features and tags their meaning. A size that only one of the two has is not compared.
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
        """List the parameters that differ although the regions are comparable: they decide which boxes exist."""
        names = sorted((self.parameters.keys() | other.parameters.keys()) - set(SIZES))
        pairs = [(name, self.parameters.get(name), other.parameters.get(name)) for name in names]
        return [f"{name} {theirs}, not {own}" for name, own, theirs in pairs if own != theirs]
