"""The interface of all that finds regions: images in, boxes with features, classes and attributes out.

Extraction and prediction call it in two steps, so that the first can run ahead in threads: `prepare` turns one
image into an array, `detect_prepared` finds the regions of several. Only arrays of one shape share a forward pass and
none is padded to the size of another, so the regions of an image do not depend on the images beside it.

Letters: R regions of an image, N regions of all images, F feature width, K kept classes, A attributes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dimvl.errors import UserError
from dimvl.regions.detectors.selection import Selection
from dimvl.regions.records import ARRAYS, SIZES, Detections, Extractor, check_boxes

CLASSES_KEPT = 5
AT_ONCE = 16  # images per forward pass in `detect`; a CPU gains nothing from more
LARGEST_SETTING = 4096  # of pixels and proposals; published detectors use at most 1,333 pixels
KIND = "kind"  # the key of detector.json that says which class reads the folder
SETTINGS = "detector.json"
WEIGHTS = "detector.safetensors"


class RegionExtractor(ABC):
    """What turns images into regions, ready for use: a detector, or several models composed.

    Attributes:
        name: readable name.
        recipe: names and files that it was opened by; see `Extractor`.

    """

    name: str
    recipe: dict[str, str]
    describes: ClassVar[bool] = True  # whether it can describe boxes from elsewhere

    @property
    @abstractmethod
    def extractor(self) -> Extractor:
        """The extractor as a region store identifies it; saving and loading does not change it."""

    @abstractmethod
    def configure(self, options: Mapping[str, Any]) -> Self:
        """Change some of the extractor's parameters; returns it.

        Raises:
            UserError: it has no such setting, or the value is out of range.

        """

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device; returns the extractor."""

    def for_prediction(self) -> Self:
        """Make it faster where the weights are, after which it can no longer be saved; returns the extractor."""
        return self

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> "RegionExtractor":
        """Load what `save` wrote.

        Raises:
            UserError: a file is missing or damaged, or weights and settings do not fit together.

        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write `detector.json` (settings) and the weights (safetensors) into a folder."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> Any:
        """Turn an upright RGB image into the network's input. Safe in any thread."""

    @abstractmethod
    def detect_prepared(self, arrays: Sequence[Any], boxes: Sequence[np.ndarray] | None = None) -> list[Detections]:
        """Do what `detect` does for the results of `prepare`; all arrays of one shape share a forward pass."""

    def detect(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray] | None = None) -> list[Detections]:
        """Find and describe the objects of images; an image without objects is one region of its own.

        Args:
            images: upright RGB images of any size.
            boxes: for each image (R, 4) corners x1, y1, x2, y2 as fractions of width and height, to be described in
                this order in place of the detector's own boxes.

        Returns:
            One `Detections` per image. The region of an image without objects has class -1 and score 0.

        Raises:
            UserError: the detector cannot describe boxes from elsewhere.

        """
        found: list[Detections] = []
        for start in range(0, len(images), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            prepared = [self.prepare(image) for image in images[part]]
            found += self.detect_prepared(prepared, None if boxes is None else boxes[part])
        return found

    def extractor_of_given(self, classes: tuple[str, ...]) -> Extractor:
        """Return the extractor of boxes from elsewhere, which have these classes."""
        own = self.extractor
        parameters = {name: value for name, value in own.parameters.items() if name in (*SIZES, "grid", "whole_image")}
        return replace(
            own,
            name=f"{own.name} at given boxes",
            parameters={**parameters, "given_boxes": True},
            classes=classes,
        )

    def with_given_classes(self, found: Detections, class_ids: np.ndarray, class_scores: np.ndarray) -> Detections:
        """Give regions (R) classes (R, 1) from elsewhere, in place of those that were found."""
        return replace(found, class_ids=class_ids, class_scores=class_scores)

    def check_describes(self) -> None:
        """Raise a `UserError` if it cannot describe boxes from elsewhere."""
        if not self.describes:
            raise UserError(
                f"{self.name} cannot describe given boxes, only those that it finds; use a detector of torchvision or "
                "of dimvl, or the features of a backbone"
            )


class RegionDetector(RegionExtractor):
    """A detector, ready for use.

    Args:
        name: readable name.
        network: its weights.
        selection: which candidates become regions.
        feature_width: F.
        classes: class names, by class id.
        attributes: attribute names, by attribute id.

    """

    files: ClassVar[tuple[str, ...]]  # of a saved detector, beside detector.json

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> "RegionDetector":
        """See `RegionExtractor.load`."""

    def __init__(
        self,
        name: str,
        network: nn.Module,
        selection: Selection,
        feature_width: int,
        classes: Sequence[str],
        attributes: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.recipe = {}
        self.network: Any = network.eval()
        self.selection = selection
        self.feature_width = feature_width
        self.classes = tuple(classes)
        self.attributes = tuple(attributes)

    @property
    def extractor(self) -> Extractor:
        """See `RegionExtractor.extractor`."""
        return Extractor(
            name=self.name,
            fingerprint=self._fingerprint,
            parameters=self.parameters,
            feature_width=self.feature_width,
            classes=self.classes,
            attributes=self.attributes,
            recipe=self.recipe,
        )

    @property
    def parameters(self) -> dict[str, float | int | str | bool]:
        """The settings that change the regions and need no training, by name."""
        return {**self._numbers(), **vars(self.selection)}

    def configure(self, options: Mapping[str, Any]) -> Self:
        """See `RegionExtractor.configure`."""
        if unknown := sorted(options.keys() - self.parameters.keys()):
            raise UserError(f"{self.name} has no setting {unknown[0]}; it has {', '.join(sorted(self.parameters))}")
        numbers = {name: whole_number(name, options[name]) for name in self._numbers() if name in options}
        self.selection = self.selection.changed(options)
        self._set_numbers(numbers)
        return self

    def to(self, device: torch.device | str) -> Self:
        """See `RegionExtractor.to`."""
        self.network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @abstractmethod
    def prepare(self, image: Image.Image) -> np.ndarray:
        """Turn an upright RGB image into the network's input. Safe in any thread."""

    @property
    @abstractmethod
    def _fingerprint(self) -> str:
        """Hash of the weights and whatever else determines the feature of a box, except the `parameters`."""

    @abstractmethod
    def _numbers(self) -> dict[str, int]:
        """The parameters beside the selection: sizes in pixels and counts."""

    @abstractmethod
    def _set_numbers(self, numbers: Mapping[str, int]) -> None:
        """Change some of the `_numbers`."""

    @abstractmethod
    def _detect_equal(self, arrays: Sequence[np.ndarray], given: list[np.ndarray] | None) -> list[Detections]:
        """Find the regions of prepared images of one shape, or describe the given boxes (fractions)."""

    def detect_prepared(
        self, arrays: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None
    ) -> list[Detections]:
        """See `RegionExtractor.detect_prepared`."""
        if boxes is not None:
            self.check_describes()
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, array in enumerate(arrays):
            by_shape.setdefault(array.shape, []).append(index)
        results: dict[int, Detections] = {}
        for indices in by_shape.values():
            given = None if boxes is None else [boxes[index] for index in indices]
            results.update(zip(indices, self._detect_equal([arrays[index] for index in indices], given), strict=True))
        return [results[index] for index in range(len(arrays))]

    def _given(self, boxes: Sequence[np.ndarray], scale: Tensor) -> list[Tensor]:
        """Copy given boxes (R, 4) to the device, times `scale` (4,); a `UserError` if they are not fractions."""
        for number, rows in enumerate(boxes):
            check_boxes(np.reshape(rows, (-1, 4)), f"image {number}")
        return [torch.from_numpy(np.array(rows, np.float32).reshape(-1, 4)).to(self.device) * scale for rows in boxes]

    def _with_whole_image(self, boxes: Tensor, width: float = 1.0, height: float = 1.0) -> Tensor:
        """Append the whole image to boxes (R, 4) if it is selected or there are no boxes."""
        if len(boxes) and not self.selection.whole_image:
            return boxes
        return torch.cat([boxes, boxes.new_tensor([[0, 0, width, height]])])


def padded(parts: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
    """Join the rows of several images, with a row of zeros for each of their boxes that has none: the whole image."""
    pairs = zip(parts, boxes, strict=True)
    return torch.cat([torch.cat([own, own.new_zeros(len(rows) - len(own), *own.shape[1:])]) for own, rows in pairs])


def split_by_image(found: Sequence[Tensor], boxes: Sequence[Tensor], **columns: Tensor) -> list[Detections]:
    """Split the regions of a batch by image.

    Args:
        found: the boxes of each image's objects; its other regions lose class and attributes.
        boxes: (R, 4) fractions of all regions of each image, objects first; clipped here to [0, 1].
        columns: `features` (N, F), `class_ids` and `class_scores` (N, K), and optionally `attribute_ids` and
            `attribute_scores` (N, A), of the regions of all images.

    """
    none = columns["features"].new_zeros(len(columns["features"]), 0)
    with np.errstate(over="ignore"):  # values beyond float16 become infinite, which the store's writer refuses
        arrays = {
            name: columns.get(name, none).cpu().numpy().astype(np.int16 if name.endswith("ids") else np.float16)
            for name in ARRAYS[1:]
        }
    end, split = 0, []
    for objects, rows in zip(found, boxes, strict=True):
        start, end = end, end + len(rows)
        own = {name: values[start:end].copy() for name, values in arrays.items()}
        for name, nothing in (("class_ids", -1), ("class_scores", 0), ("attribute_ids", -1), ("attribute_scores", 0)):
            own[name][len(objects) :] = nothing
        split.append(Detections(boxes=rows.clamp(0, 1).cpu().numpy(), **own))
    return split


def whole_number(name: str, value: Any) -> int:
    """Return a setting; a `UserError` if it is not a whole number from 1 to `LARGEST_SETTING`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_SETTING:
        raise UserError(f"{name} is {value!r}; give a whole number from 1 to {LARGEST_SETTING:,}")
    return value
