"""What every detector gives and how it is asked: pictures in, the arrays of `Regions` out.

Stands between the detectors (`scenes.py`, `torchvision_models.py`, `transformers_models.py`) and those who use
them: extraction and predictor. A detector works in two steps, so that the first can run ahead in threads: `prepare`
turns one picture into an array, `detect_prepared` finds the regions of several. Only arrays of one shape run together
and nothing is padded to the size of a neighbour, so what is found in a picture does not depend on its company.

Letters: R regions of a picture, N of several, F feature width, K kept classes, A attributes.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dimvl.errors import UserError
from dimvl.regions.records import Detections, Extractor

CLASSES_KEPT = 5
AT_ONCE = 16  # pictures that `detect` runs at once: more is no faster on a CPU
LONGEST_SIDE = 4096  # pixels that a picture may be scaled to; published detectors take 1,333 at most
KIND = "kind"  # the key of detector.json that tells who reads the folder
SETTINGS = "detector.json"


class RegionDetector(ABC):
    """Whatever turns pictures into regions.

    Attributes:
        describes: whether it describes given boxes.

    """

    describes = True

    @property
    @abstractmethod
    def extractor(self) -> Extractor:
        """Who this detector is, for the region store; saving and loading does not change it."""

    @abstractmethod
    def to(self, device: torch.device | str) -> "RegionDetector":
        """Move the weights to a device and return the detector."""

    @abstractmethod
    def configure(self, options: Mapping[str, Any]) -> "RegionDetector":
        """Change settings that need no training, those of `extractor.parameters`; returns the detector.

        Raises:
            UserError: the detector has no such setting, or not this value.

        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write settings and weights (safetensors) into a folder that `dimvl.regions.detectors` loads."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> np.ndarray:
        """Turn an upright RGB picture into what the network takes. Runs in any thread."""

    @abstractmethod
    def _detect_equal(self, arrays: Sequence[np.ndarray], given: list[np.ndarray] | None) -> list[Detections]:
        """Find the regions of prepared pictures of one shape, or describe those given."""

    def detect(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray] | None = None) -> list[Detections]:
        """Find and describe the objects of pictures; a picture in which nothing is found gives itself as one region.

        What is found in a picture does not depend on the pictures beside it.

        Args:
            images: upright RGB pictures of any size.
            boxes: for each picture (R, 4) corners x1, y1, x2, y2 as fractions of width and height to describe
                instead of looking for objects; kept in their order.

        Returns:
            One `Detections` per picture. The region of a picture without objects has class -1 and score 0.

        Raises:
            UserError: boxes are given to a detector that cannot describe any.

        """
        found: list[Detections] = []
        for start in range(0, len(images), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            prepared = [self.prepare(image) for image in images[part]]
            found += self.detect_prepared(prepared, None if boxes is None else boxes[part])
        return found

    def detect_prepared(
        self, arrays: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None
    ) -> list[Detections]:
        """Do as `detect` for pictures that `prepare` has been at; all of one shape run at once."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, array in enumerate(arrays):
            by_shape.setdefault(array.shape, []).append(index)
        results: dict[int, Detections] = {}
        for indices in by_shape.values():
            given = None if boxes is None else [boxes[index] for index in indices]
            results.update(zip(indices, self._detect_equal([arrays[index] for index in indices], given), strict=True))
        return [results[index] for index in range(len(arrays))]


def given_rows(given: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Turn given boxes into float32 tensors (R, 4) of their own on a device."""
    return [torch.from_numpy(np.array(rows, np.float32).reshape(-1, 4)).to(device) for rows in given]


def with_whole_image(boxes: Tensor, whole_image: bool, width: float = 1.0, height: float = 1.0) -> Tensor:
    """Append the whole image to boxes (R, 4) if it is wanted or there is nothing else."""
    if len(boxes) and not whole_image:
        return boxes
    return torch.cat([boxes, boxes.new_tensor([[0, 0, width, height]])])


def cut(
    boxes: Sequence[Tensor],
    objects: Sequence[int],
    *,
    features: Tensor,
    class_ids: Tensor,
    class_scores: Tensor,
    attribute_ids: Tensor | None = None,
    attribute_scores: Tensor | None = None,
) -> list[Detections]:
    """Cut the regions of several pictures apart.

    Args:
        boxes: (R, 4) fractions of each picture; cut at its border.
        objects: the first so many regions of each picture are objects; the others lose class and attributes.
        features: (N, F) of all regions.
        class_ids: (N, K).
        class_scores: (N, K).
        attribute_ids: (N, A); none by default.
        attribute_scores: (N, A).

    """
    none = features.new_zeros(len(features), 0)
    columns: dict[str, tuple[Tensor, type]] = {
        "features": (features, np.float16),
        "class_ids": (class_ids, np.int16),
        "class_scores": (class_scores, np.float16),
        "attribute_ids": (none if attribute_ids is None else attribute_ids, np.int16),
        "attribute_scores": (none if attribute_scores is None else attribute_scores, np.float16),
    }
    with np.errstate(over="ignore"):  # what is beyond float16 becomes infinite, and the store's writer says so
        arrays: dict[str, np.ndarray] = {
            name: values.cpu().numpy().astype(dtype) for name, (values, dtype) in columns.items()
        }
    end, found = 0, []
    for rows, count in zip(boxes, objects, strict=True):
        start, end = end, end + len(rows)
        own = {name: values[start:end].copy() for name, values in arrays.items()}
        for name, nothing in (("class_ids", -1), ("class_scores", 0), ("attribute_ids", -1), ("attribute_scores", 0)):
            own[name][count:] = nothing
        found.append(Detections(boxes=rows.clamp(0, 1).cpu().numpy(), **own))
    return found


def weights_fingerprint(weights: Mapping[str, Tensor], *more: str) -> str:
    """SHA-256 of named weights, in the order of their names, and of whatever else makes the features what they are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for text in more:
        digest.update(text.encode())
    return digest.hexdigest()


def refuse_options(options: Mapping[str, Any], known: Sequence[str], detector: str) -> None:
    """Refuse options that a detector would ignore.

    Raises:
        UserError: there is one; names those that it has.

    """
    if unknown := sorted(set(options) - set(known)):
        raise UserError(f"{detector} has no setting {unknown[0]}; it has {', '.join(sorted(known))}")


def at_least_one(name: str, value: Any) -> int:
    """Return a setting that counts something.

    Raises:
        UserError: it is less than 1 or no whole number.

    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} is {value!r}; give a whole number of at least 1")
    return value


def side_in_pixels(name: str, value: Any) -> int:
    """Return a side that pictures are scaled to.

    Raises:
        UserError: it is less than 1, more than `LONGEST_SIDE`, or no whole number.

    """
    if at_least_one(name, value) > LONGEST_SIDE:
        raise UserError(f"{name} is {value}; give at most {LONGEST_SIDE:,} pixels")
    return int(value)


def cannot_describe(name: str) -> UserError:
    """What to say when boxes are given to a detector that describes only those that it finds."""
    return UserError(
        f"{name} cannot describe given boxes, only those that it finds; use a detector of torchvision or of dimvl"
    )
