"""What the importers share: the entries of a source, and the checks that turn its arrays into `Regions`.

An importer finds the images of a source and passes the arrays of each to `Assembler.regions`, which recognises the unit
of the boxes, checks every value and sorts the regions best first. A bad image ends in a `UserError` that names it; the
import continues without it.

Shapes: R regions of an image, F feature width, K kept classes, A kept attributes.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dimvl.errors import UserError
from dimvl.regions.geometry import clip, pixels_to_fractions
from dimvl.regions.importers.facts import Facts
from dimvl.regions.importers.given import ClashError, Sizes
from dimvl.regions.records import Regions
from dimvl.regions.vocabulary import Vocabulary
from dimvl.showing import short

log = logging.getLogger(__name__)

Unit = Literal["pixels", "fractions"]

SLACK_PIXELS = 1.0
SLACK_FRACTION = 0.005
"""How far a box may reach beyond its image (the larger of both) before it is refused instead of clipped. Half
precision, which some formats use for boxes, is off by up to .0005 in fractions and .5 in pixels of large images."""

CLASSES_KEPT = 5
"""Classes kept of a dense distribution, as many as dimvl's own detector keeps."""

ATTRIBUTES_KEPT = 3

MAX_SIDE = 1_000_000
"""Pixels; a record of a larger image is damaged."""

MAX_REGIONS = 100_000
"""Of an image; a record of more is damaged."""

MAX_ARRAY = 2**27
"""Bytes of an array; features of 1,000 regions take 16 million. A small file may claim any shape."""

MAX_VALUE = 2**26
"""Bytes of all arrays of an image in an archive, as stored."""


def check_array(shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse an array by its declared shape, before memory is allocated for it; a ValueError."""
    if math.prod(shape) * itemsize > MAX_ARRAY:
        raise ValueError(f"an array of shape {short(shape)} takes more than {MAX_ARRAY:,} bytes")


@dataclass(frozen=True)
class Entry:
    """One image of a source, not yet decoded.

    Attributes:
        image_id: its id in the store.
        decode: reads and checks its regions; valid until the next entry is requested.
        position: how much of the source precedes and includes it, in the source's unit.
        name: its id in the source, if that is another; otherwise empty.

    """

    image_id: str
    decode: Callable[[], Regions]
    position: int
    name: str = ""

    def read(self) -> Regions:
        """Regions of the image, or a `UserError` with its id."""
        try:
            return self.decode()
        except UserError:
            raise
        except Exception as error:  # damaged bytes make decoders (zip, JSON, msgpack, HDF5, numpy) raise anything
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise UserError(f"image {short(self.image_id)} cannot be read ({reason}); restore its record") from error


@dataclass(frozen=True)
class Source:
    """Features to be imported.

    Attributes:
        path: as the user gave it.
        entries: starts reading the images, in the source's order.
        images: how many.
        total: size of the source in `unit`.
        unit: what positions count, `images` or `MB`.
        exact: whether `images` was counted; it is estimated where a file has no index.
        passed_over: phrases that say which parts of the source are not features of an image.
        left_out: number of such parts that may contain features.

    """

    path: Path
    entries: Callable[[], Iterator[Entry]]
    images: int
    total: int
    unit: str = "images"
    exact: bool = True
    passed_over: tuple[str, ...] = ()
    left_out: int = 0


class Assembler:
    """Checks the arrays of an image and makes `Regions` of them.

    The unit of boxes, where a format does not define it: if no value of an image is above 1.005 they are fractions, if
    one is above 2 they are pixels, in between the image is refused; and all images of a source must have one unit.

    Args:
        classes: class names; without them regions have no classes.
        attributes: attribute names; without them regions have no attributes.
        sizes: sizes of images; they must agree with sizes in the source.

    """

    def __init__(
        self, classes: Vocabulary | None = None, attributes: Vocabulary | None = None, sizes: Sizes | None = None
    ) -> None:
        self.classes = classes or Vocabulary()
        self.attributes = attributes or Vocabulary()
        self.sizes = sizes
        self.facts = Facts()
        self.float_type: str | None = None  # of features in a TSV, once it is known
        self._unit: Unit | None = None
        self._warned_of_size = False
        self._told_of_columns = False

    @property
    def class_columns(self) -> int:
        """K of a format with dense class distributions."""
        return min(CLASSES_KEPT, len(self.classes))

    def regions(
        self,
        image_id: str,
        *,
        boxes: np.ndarray,
        features: np.ndarray,
        size: tuple[int, int] | None = None,
        unit: Unit | None = None,
        confidence: np.ndarray | None = None,
        classes: tuple[np.ndarray, np.ndarray] | None = None,
        class_columns: int = 1,
        attributes: tuple[np.ndarray, np.ndarray] | None = None,
        attribute_columns: int = 0,
    ) -> Regions:
        """Check an image and sort its regions best first.

        Args:
            image_id: for the record and for messages.
            boxes: (R, 4) corners x1, y1, x2, y2.
            features: (R, F) floats.
            size: width and height in pixels, if the source has them.
            unit: of the boxes, if the format defines it.
            confidence: (R,) to sort by; by default the score of the best class.
            classes: ids and scores, (R,) or (R, any), best first; -1 for none.
            class_columns: K of every image of this format.
            attributes: ids and scores, as `classes`.
            attribute_columns: A of every image of this format.

        Returns:
            The record; an unknown size is 1 x 1.

        """
        if not image_id.isprintable() or not image_id:
            raise UserError(f"the image id {short(image_id)} has characters that cannot be printed; restore its record")
        if boxes.ndim != 2 or boxes.shape[1] != 4 or features.ndim != 2 or len(boxes) != len(features):
            raise UserError(
                f"image {image_id!r} has boxes of shape {boxes.shape} and features of shape {features.shape}; "
                "every region needs four corners and one row of features"
            )
        if len(boxes) > MAX_REGIONS:
            raise UserError(f"image {image_id!r} has {len(boxes):,} regions; an image has at most {MAX_REGIONS:,}")
        size = self.size(image_id, size)
        fractions = self._fractions(image_id, boxes, size, unit)
        halves = _halves(image_id, features)
        class_arrays = _named(image_id, "class", classes, self.classes, len(boxes), class_columns)
        attribute_arrays = _named(image_id, "attribute", attributes, self.attributes, len(boxes), attribute_columns)
        if confidence is None and classes is not None and len(boxes):
            confidence = classes[1].reshape(len(boxes), -1)[:, 0]
        order = np.arange(len(boxes))
        if confidence is not None:
            _check_scores(image_id, "confidence", confidence, (len(boxes),))
            order = np.argsort(-confidence.astype(np.float64), kind="stable")
        width, height = size or (1, 1)
        self.facts.add(features, class_arrays[0])
        return Regions(
            image_id=image_id,
            width=width,
            height=height,
            boxes=fractions[order],
            features=halves[order],
            class_ids=class_arrays[0][order],
            class_scores=class_arrays[1][order],
            attribute_ids=attribute_arrays[0][order],
            attribute_scores=attribute_arrays[1][order],
        )

    def dense_classes(self, image_id: str, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Ids and scores (R, K) of the best classes of a distribution, or None without a vocabulary.

        Args:
            image_id: for messages.
            probabilities: (R, 1 + classes) with the background first, or (R, classes) without it.

        """
        if not len(self.classes):
            return None
        columns = probabilities.shape[-1] if probabilities.ndim == 2 else 0
        if columns not in (len(self.classes), len(self.classes) + 1):
            raise UserError(
                f"image {image_id!r} has class probabilities of shape {probabilities.shape}, but the class vocabulary "
                f"has {len(self.classes):,} names; give the vocabulary of this detector"
            )
        if columns == len(self.classes) and not self.classes.background and not self._told_of_columns:
            self._told_of_columns = True
            log.warning(
                "the class probabilities have %d columns for %d names, so none is taken for the background; if the "
                "first one is, the vocabulary has a name too many",
                *(columns, columns),
            )
        _check_scores(image_id, "class probability", probabilities, probabilities.shape)
        known = probabilities[:, columns - len(self.classes) :].astype(np.float32)
        ids = np.argsort(-known, axis=1, kind="stable")[:, :CLASSES_KEPT]
        return ids, np.take_along_axis(known, ids, axis=1)

    def size(self, image_id: str, own: tuple[int, int] | None) -> tuple[int, int] | None:
        """Width and height of an image: `own`, its size in the source, or else the one in the file of sizes."""
        if own is not None and not all(1 <= side <= MAX_SIDE for side in own):
            raise UserError(f"image {image_id!r} has size {own[0]} x {own[1]}; a size is 1 to {MAX_SIDE:,} pixels")
        if self.sizes is None:
            return own
        given = self.sizes.of(image_id)
        if own is not None and own != given:
            raise UserError(
                f"image {image_id!r} is {own[0]} x {own[1]} in the source but {given[0]} x {given[1]} in "
                f"{self.sizes.path}; give the sizes of the images that the regions were made from"
            )
        return given

    def _fractions(
        self, image_id: str, boxes: np.ndarray, size: tuple[int, int] | None, unit: Unit | None
    ) -> np.ndarray:
        """Check boxes (R, 4) and return them as float32 fractions."""
        boxes = boxes.astype(np.float64)
        _refuse(image_id, boxes, ~np.isfinite(boxes), "a corner that is not finite")
        if unit is None and boxes.size:
            unit = self._recognised(image_id, boxes)
        fractions = boxes
        if unit == "pixels":
            if size is None:
                raise UserError(f"image {image_id!r} has boxes in pixels but no known size; give --sizes COCO.json")
            fractions = pixels_to_fractions(boxes, *size).astype(np.float64)
        if size is None and not self._warned_of_size:
            self._warned_of_size = True
            log.warning("the source has no image sizes, so they are stored as 1 x 1; give them with --sizes")
        swapped = np.repeat(fractions[:, :2] > fractions[:, 2:], 2, axis=1)
        _refuse(image_id, boxes, swapped, "swapped corners (they must be x1, y1, x2, y2)")
        sides = np.array([np.inf, np.inf] if size is None else size)
        slack = np.maximum(SLACK_FRACTION, SLACK_PIXELS / np.tile(sides, 2))
        extent = "" if size is None else f" of {size[0]} x {size[1]} pixels (width x height)"
        outside = (fractions < -slack) | (fractions > 1 + slack)
        _refuse(image_id, boxes, outside, f"a corner outside the image{extent}")
        return clip(fractions).astype(np.float32)

    def _recognised(self, image_id: str, boxes: np.ndarray) -> Unit:
        largest = boxes.max()
        if 1 + SLACK_FRACTION < largest <= 2:
            raise UserError(
                f"image {image_id!r} has boxes that reach to {largest:.4g}: neither fractions (at most 1) nor pixels; "
                "correct them"
            )
        unit: Unit = "pixels" if largest > 2 else "fractions"
        self._unit = self._unit or unit
        if unit != self._unit:
            raise UserError(
                f"image {image_id!r} has boxes in {unit} (they reach to {largest:.4g}), but the images before it are "
                f"in {self._unit}; use one unit for the whole source"
            )
        return unit


def _refuse(image_id: str, boxes: np.ndarray, bad: np.ndarray, problem: str) -> None:
    """Refuse an image whose boxes have a bad value (R, 4), and name the first."""
    if bad.any():
        row = int(np.flatnonzero(bad.any(axis=1))[0])
        values = ", ".join(f"{value:.6g}" for value in boxes[row])
        raise UserError(f"image {image_id!r} has box {row} ({values}) with {problem}; correct it or remove the image")


def _halves(image_id: str, features: np.ndarray) -> np.ndarray:
    """Features (R, F) as float16."""
    if features.dtype.kind != "f":
        raise UserError(f"image {image_id!r} has features of type {features.dtype}; they must be floats")
    with np.errstate(over="ignore"):  # too large values become infinite and are refused
        halves = features.astype(np.float16)
    if (bad := np.argwhere(~np.isfinite(halves))).size:
        row, column = bad[0]
        raise UserError(
            f"image {image_id!r} has the feature value {features[row, column]:.6g} in region {row}; features must be "
            "finite and within 65504, so extract this image again"
        )
    return halves


def _check_scores(image_id: str, name: str, scores: np.ndarray, shape: tuple[int, ...]) -> None:
    if scores.shape != shape:
        raise UserError(f"image {image_id!r} has {name} of shape {scores.shape}, not {shape}; correct it")
    good = (scores >= -0.01) & (scores <= 1.01)  # a sum of halves may slightly exceed 1; NaN fails both
    if not good.all():
        value = scores[~good].flat[0]
        raise UserError(f"image {image_id!r} has {name} {value:.6g}, which is not a probability; extract it again")


def _named(
    image_id: str,
    name: str,
    given: tuple[np.ndarray, np.ndarray] | None,
    vocabulary: Vocabulary,
    count: int,
    columns: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Ids (R, columns) int16 and scores float16; no columns without a vocabulary, -1 and 0 where nothing is given."""
    columns = columns if len(vocabulary) else 0
    ids = np.full((count, columns), -1, dtype=np.int16)
    scores = np.zeros((count, columns), dtype=np.float16)
    if given is None or not count:
        return ids, scores
    for array in given:
        if len(array) != count or array.ndim > 2:
            raise UserError(
                f"image {image_id!r} has {name} arrays of shape {array.shape} for {count} regions; correct it"
            )
    given_ids, given_scores = (array.reshape(count, -1) for array in given)
    _check_scores(image_id, f"{name} score", given_scores, given_ids.shape)
    if given_ids.dtype.kind not in "iu":
        raise UserError(f"image {image_id!r} has {name} ids of type {given_ids.dtype}; they must be integers")
    if not columns:
        return ids, scores
    if (given_ids == len(vocabulary)).any():
        raise ClashError(
            f"image {image_id!r} has {name} id {len(vocabulary)}, but the vocabulary has {len(vocabulary):,} names, "
            f"from 0: ids that begin at 1, or count a background that the vocabulary does not, shift every {name}; "
            "import into another folder with the vocabulary of this detector, or with ids from 0 in the format npz"
        )
    if (wrong := (given_ids < -1) | (given_ids > len(vocabulary))).any():
        raise UserError(
            f"image {image_id!r} has {name} id {given_ids[wrong].flat[0]}, but the vocabulary has "
            f"{len(vocabulary):,} names; give the vocabulary of this detector"
        )
    used = min(columns, given_ids.shape[1])
    known = (given_ids[:, :used] >= 0) & (given_scores[:, :used] > 0)
    ids[:, :used] = np.where(known, given_ids[:, :used], -1)
    scores[:, :used] = np.where(known, np.clip(given_scores[:, :used], 0, 1), 0)
    return ids, scores
