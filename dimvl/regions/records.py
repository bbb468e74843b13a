"""The regions of an image: what detectors return, the region store keeps, and all later code reads."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np

from dimvl.errors import UserError
from dimvl.regions.display import picture, safe, table
from dimvl.regions.geometry import fractions_to_pixels

BOX_TOLERANCE = 0.01
"""How far a box may reach beyond its image, as a fraction: enough for rounding, too little for boxes in pixels."""

SIZES = ("side", "shortest_side", "longest_side", "height", "width", "features_side")
"""The parameters of an extractor that set the size images are scaled to: they change the feature of a given box."""

HELD_OUT_NAMES = "held_out_names"
"""The parameter of an extractor whose names come, for images that concepts were trained on, from others of them."""

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


class Origin(NamedTuple):
    """Where regions come from, so that they can be shown: not part of what they are.

    Attributes:
        extractor: has the names of classes and attributes.
        image: what `image_from` takes, if it can be read again.

    """

    extractor: "Extractor"
    image: Any = None


@dataclass(frozen=True, kw_only=True)
class Regions(Detections):
    """The regions of a named image.

    Attributes:
        image_id: the image's id in its annotation files, as text.
        width: width of the upright image in pixels.
        height: height of the upright image in pixels.
        origin: what is known of where they come from.

    """

    image_id: str
    width: int
    height: int
    origin: Origin | None = field(default=None, repr=False, compare=False)

    def names(self) -> list[str]:
        """Return what each region is called: attributes and class, or their numbers where no names are known."""
        kinds = ("attribute", self.attribute_ids), ("class", self.class_ids[:, :1])
        known = None if self.origin is None else self.origin.extractor
        vocabularies = {} if known is None else {"attribute": known.attributes, "class": known.classes}
        return [
            " ".join(
                vocabularies[kind][index] if kind in vocabularies else f"{kind} {index}"
                for kind, ids in kinds
                for index in ids[place].tolist()
                if index >= 0
            )
            for place in range(len(self))
        ]

    def _repr_html_(self) -> str:
        names, boxes = self.names(), fractions_to_pixels(self.boxes, self.width, self.height).round().astype(int)
        scores = self.class_scores[:, 0].tolist() if self.class_scores.shape[1] else [""] * len(self)
        corners = [", ".join(map(str, box)) for box in boxes.tolist()]
        rows = list(zip(range(1, len(self) + 1), names, scores, corners, strict=True))
        image = None if self.origin is None else self.origin.image
        shown = picture(image, (self.width, self.height), self.boxes, names)
        head = f"<p>{safe(self.image_id)}, {self.width} x {self.height} pixels</p>"
        return head + shown + table(("", "region", "score", "x1, y1, x2, y2"), rows)

    def check(self, extractor: "Extractor") -> None:
        """Compare the values with what the attributes say, and with the extractor.

        Raises:
            UserError: the size is not in pixels; a value is not finite or of another type; a box has swapped corners or
                is in pixels; an id is not in the vocabulary; or a score is not a probability.

        """
        for name in ("width", "height"):
            if not 1 <= (side := getattr(self, name)) < 2**32 or side != int(side):
                raise UserError(f"image {self.image_id!r} has {name} {side!r}; give its size in pixels, at least 1")
        for name, array in self.arrays.items():
            check_array(np.asarray(array), len(self), f"image {self.image_id!r} has {name}", whole=name.endswith("ids"))
        if self.features.shape[1] != extractor.feature_width:
            raise UserError(
                f"image {self.image_id!r} has features of width {self.features.shape[1]} but those of {extractor.name} "
                f"are {extractor.feature_width} wide; give regions of that detector, or the image itself"
            )
        if self.features.dtype.kind != ("f" if self.feature_scales is None else "i"):
            raise UserError(
                f"image {self.image_id!r} has features of {self.features.dtype}; give float16 or float32, or int8 with "
                "feature_scales"
            )
        check_boxes(self.boxes, f"image {self.image_id!r}")
        for kind, vocabulary in (("class", extractor.classes), ("attribute", extractor.attributes)):
            self._check_names(kind, len(vocabulary))

    def checked(self, extractor: "Extractor") -> Self:
        """Return a copy with the dtypes that the attributes say; raises as `check`."""
        self.check(extractor)
        arrays: dict[str, Any] = {name: np.asarray(array) for name, array in self.arrays.items()}
        for name, dtype in (("boxes", "f4"), ("class_ids", "i2"), ("attribute_ids", "i2"), ("features", "f4")):
            if name != "features" or arrays[name].dtype == np.float64:
                arrays[name] = arrays[name].astype(dtype, copy=False)
        return replace(self, **arrays)

    def _check_names(self, kind: str, vocabulary: int) -> None:
        """Refuse ids that are not in the vocabulary and scores that are not probabilities."""
        ids, scores = getattr(self, f"{kind}_ids"), getattr(self, f"{kind}_scores")
        if (wrong := (ids < -1) | (ids >= vocabulary)).any():
            raise UserError(
                f"image {self.image_id!r} has {kind} id {ids[wrong][0]} but the extractor has {vocabulary} names, "
                "numbered from 0; give the vocabulary of the detector, or -1 for none"
            )
        if (wrong := (scores < 0) | (scores > 1)).any():
            raise UserError(
                f"image {self.image_id!r} has {kind} score {scores[wrong][0]:g}; give probabilities from 0 to 1, not "
                "logits"
            )


def check_array(array: np.ndarray, rows: int, name: str, *, whole: bool = False) -> None:
    """Refuse an array that does not have two dimensions and so many rows of finite numbers, `whole` ones for ids."""
    if array.dtype.kind not in "fiu" or array.ndim != 2 or len(array) != rows:
        raise UserError(f"{name} of shape {array.shape} and {array.dtype}; give ({rows}, columns) of numbers")
    with np.errstate(invalid="ignore"):
        if whole and not np.array_equal(array.astype(np.int16), array):
            raise UserError(f"{name} that are not 16-bit integers; check the detector")
    if not np.isfinite(array).all():
        raise UserError(f"{name} that are not finite in {array.dtype}; check the detector")


def check_boxes(boxes: np.ndarray, name: str) -> None:
    """Refuse boxes that are not (R, 4) fractions with x1 <= x2 and y1 <= y2. A side of 0 is valid."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"{name} has boxes of shape {boxes.shape}; give (regions, 4) corners x1, y1, x2, y2")
    swapped = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    outside = ~((boxes >= -BOX_TOLERANCE) & (boxes <= 1 + BOX_TOLERANCE)).all(axis=1)  # also NaN
    for wrong, problem in (
        (swapped, "whose corners are swapped; give x1, y1, x2, y2 with x1 <= x2 and y1 <= y2"),
        (outside, "which is outside the image; give fractions of its width and height, not pixels"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(f"{name} has box {row}, {boxes[row].tolist()}, {problem}")


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
        parts: fingerprints of the models that it is composed of, by role (`where`, `looks`, `called`); empty for
            a detector that is all of them. `fingerprint` is then that of `combined_fingerprint`.
        recipe: names and files that it was opened by, so that an export can open it again; not part of its identity.

    """

    name: str
    fingerprint: str
    parameters: dict[str, float | int | str | bool]
    feature_width: int
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    parts: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def looks(self) -> str:
        """Fingerprint of the model that the features come from."""
        return self.parts.get("looks") or self.parts.get("where") or self.fingerprint

    def conflict(self, other: "Extractor") -> str | None:
        """Say why a model trained on regions of this extractor cannot use those of another; None if it can.

        Weights, feature width, the names of classes and attributes, and the size that images are scaled to must be
        equal: they give features and tags their meaning. A size that only one of the two has is not compared.
        """
        if self.differs_in_names(other):
            return "its regions were named by another model, or by none"
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

    def differs_in_names(self, other: "Extractor") -> bool:
        """Whether two extractors have the same models, except for that which names the regions."""
        own, theirs = (dict(one.parts or {"where": one.fingerprint}) for one in (self, other))
        return own.pop("called", None) != theirs.pop("called", None) and own == theirs

    def named(self, names: tuple[str, ...], called: str) -> "Extractor":
        """Return this extractor with the names of a model of fingerprint `called`: as classes if it has none yet."""
        parts = {**(self.parts or {"where": self.fingerprint}), "called": called}
        classes, attributes = (self.classes, names) if self.classes else (names, self.attributes)
        fingerprint = combined_fingerprint(parts)
        return replace(self, fingerprint=fingerprint, parts=parts, classes=classes, attributes=attributes)

    def deviations(self, other: "Extractor") -> list[str]:
        """List the parameters that differ although the regions are comparable: they decide which boxes exist.

        Names by models that have not seen an image are like those that new images get.
        """
        names = sorted((self.parameters.keys() | other.parameters.keys()) - {*SIZES, HELD_OUT_NAMES})
        pairs = [(name, self.parameters.get(name), other.parameters.get(name)) for name in names]
        return [f"{name} {theirs}, not {own}" for name, own, theirs in pairs if own != theirs]


def combined_fingerprint(parts: Mapping[str, str]) -> str:
    """Return one fingerprint of several parts, given by role; that of a single part is its own."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    return hashlib.sha256("".join(f"{role} {parts[role]} " for role in sorted(parts)).encode()).hexdigest()
