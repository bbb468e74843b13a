"""Features of Oscar (Li et al., ECCV 2020) and VinVL (Zhang et al., CVPR 2021).

A feature file has one line per image, in one of these forms:

    key, JSON with "num_boxes" and "features"                                       (captioning)
    key, num_boxes, features                                                        (pretraining, VQA, retrieval)
    key, JSON with "objects", each with "rect", "class", "conf" and "feature"       (the detector's own output)

Features are base64 of float32 rows. The six numbers x1, y1, x2, y2, w, h at the end of a row, as fractions, are the box
of the region; dimvl has its own geometry, so they are not stored as features. Beside the file there may be a file of
labels with classes, whose objects can differ from the regions and are matched by box, and the sizes of the images.
"""

import binascii
import io
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dimvl.errors import UserError
from dimvl.regions.geometry import iou, pixels_to_fractions
from dimvl.regions.importers.common import ATTRIBUTES_KEPT, MAX_REGIONS, SLACK_FRACTION, Assembler, Source, Unit
from dimvl.regions.importers.given import ClashError
from dimvl.regions.importers.tsv import Line, TsvFile, decoded, features_of, integer_of, source_of
from dimvl.regions.records import Regions
from dimvl.regions.vocabulary import Vocabulary, is_background
from dimvl.showing import short

SAME_BOX = 0.9
"""Minimum IoU for a label to belong to a region."""

MAX_PARTS = 2**20
"""Values in the JSON of a line; a hundred objects with ten attributes each have 2,000. A few bytes of text can become
a hundred in memory."""

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class Companion:
    """A TSV file beside the features, read by image key; keeps where each line starts, about 150 bytes per image."""

    def __init__(self, path: Path) -> None:
        self.tsv = TsvFile(path, indexed=False)
        self._starts: dict[str, int] = {}

    def __contains__(self, key: str) -> bool:
        if not self._starts:
            start = 0
            for line in self.tsv.lines():
                if line.key in self._starts:
                    raise ClashError(f"{self.tsv.path} has two lines for image {short(line.key)}; remove one of them")
                self._starts[line.key] = start
                start = line.position
        return key in self._starts

    def columns(self, key: str) -> list[bytes]:
        """Columns after the key.

        Raises:
            UserError: the file has no such line.
            ClashError: it has two lines for one image.

        """
        if key not in self:
            raise UserError(
                f"image {short(key)} has no line in {self.tsv.path}; restore this file, which does not fit the features"
            )
        return self.tsv.line_at(self._starts[key])[1:]

    def json(self, key: str) -> Any:
        """JSON of the second column; raises as `columns`."""
        return _json(self.columns(key)[0])


def _json(text: bytes) -> Any:
    """Parse the JSON of a line, if it has not too many parts."""
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > MAX_PARTS:
        raise ValueError(f"its JSON has more than {MAX_PARTS:,} values")
    return json.loads(text)


class Companions(NamedTuple):
    """Existing files beside a feature file."""

    labels: Companion | None
    sizes: Companion | None
    images: Companion | None


def oscar_tsv(path: Path, assembler: Assembler) -> Source:
    """Open a feature file, or a folder with one."""
    file = feature_file(path) if path.is_dir() else path
    found = [
        next((Companion(place) for name in names if os.path.lexists(place := _place(file, name))), None)
        for names in (("label.tsv", "labels.tsv", "predictions.tsv"), ("hw.tsv",), ("img.tsv", "image.tsv"))
    ]
    companions = Companions(*found)
    source = source_of(file, TsvFile(file), partial(_decode, assembler, companions))
    return replace(source, path=path)


def feature_file(folder: Path) -> Path:
    """The feature file of a folder, which must have exactly one."""
    for pattern in ("*feature*.tsv", "*feats.tsv", "*predictions.tsv"):
        if found := sorted(folder.glob(pattern)):
            break
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{folder} must have one feature file (*feature*.tsv) but has {names}; give the file itself")
    return found[0]


def _place(file: Path, name: str) -> Path:
    """Path of a companion, such as `train.label.tsv` of `train.feature.tsv`."""
    prefix = file.name.partition("feature")[0] if "feature" in file.name else ""
    return file.with_name(prefix + name)


class Labels(NamedTuple):
    """The L labels of an image, followed by one that means none.

    Attributes:
        boxes: (L, 4) pixels.
        confidence: (L + 1,)
        classes: (L + 1,) ids.
        attributes: (L + 1, A) ids, best first.
        attribute_scores: (L + 1, A)

    """

    boxes: np.ndarray
    confidence: np.ndarray
    classes: np.ndarray
    attributes: np.ndarray
    attribute_scores: np.ndarray


def _decode(assembler: Assembler, companions: Companions, line: Line) -> Regions:
    rows, own = _rows(assembler, line)
    named = len(assembler.classes) or len(assembler.attributes)
    labelled = companions.labels is not None and (named or line.key in companions.labels)
    beside = companions.labels.json(line.key) if companions.labels is not None and labelled else None
    size = assembler.size(line.key, _own_size(line.key, (own, beside), companions))
    own_objects = _objects(own)
    objects = own_objects if own_objects is not None else _objects(beside)
    if objects is None and len(assembler.classes):
        raise UserError(
            f"image {line.key!r} has no labels (objects in its line, or a file label.tsv beside the features); "
            "restore them or omit --classes"
        )
    labels = _labels(assembler, line.key, objects or [])
    features, boxes = _without_box(rows)
    unit: Unit | None = "fractions"
    if own_objects is not None or boxes is None:
        if len(labels.boxes) != len(features):
            raise UserError(
                f"image {line.key!r} has {len(features)} rows of features that do not end in a box and "
                f"{len(labels.boxes)} labels; every row needs a box, at its end or in a label of its own"
            )
        boxes, unit, places = labels.boxes, None, np.arange(len(features))
    elif size is None and len(assembler.classes):
        raise UserError(
            f"image {line.key!r} has no known size, which is needed to match labels with boxes; put hw.tsv beside the "
            "features, give --sizes, or omit --classes"
        )
    else:
        if 0 < labels.boxes.max(initial=0) <= 1 + SLACK_FRACTION:
            raise UserError(
                f"image {line.key!r} has labels whose boxes reach to {labels.boxes.max():.4g}: fractions where pixels "
                "belong; convert them"
            )
        places = _labels_of(boxes, labels.boxes, size)
    return assembler.regions(
        line.key,
        boxes=boxes,
        features=features,
        size=size,
        unit=unit,
        classes=(labels.classes[places], labels.confidence[places]),
        attributes=(labels.attributes[places], labels.attribute_scores[places]),
        attribute_columns=ATTRIBUTES_KEPT,
    )


def _rows(assembler: Assembler, line: Line) -> tuple[np.ndarray, Any]:
    """Rows of features (R, F + 6) or (R, F), and the line's JSON if it has any."""
    columns = line.columns()
    if len(columns) not in (2, 3):
        raise UserError(
            f"line {line.number} (image {line.key!r}) has {len(columns)} columns, not 2 or 3; the line is cut off or "
            "the file is of another format"
        )
    own = _json(columns[1]) if len(columns) == 2 else None
    objects = _objects(own)
    if objects is not None:
        parts = [decoded(line, "feature", item["feature"].encode()) for item in objects]
        if len({len(part) for part in parts}) > 1:
            raise UserError(f"line {line.number} (image {line.key!r}) has features of several widths; restore the line")
        raw, rows = b"".join(parts), len(parts)
    elif own is not None:
        raw, rows = decoded(line, "features", own["features"].encode()), int(own["num_boxes"])
    else:
        raw, rows = decoded(line, "features", columns[2]), integer_of(line, "num_boxes", columns[1])
    if not 0 <= rows <= MAX_REGIONS:
        raise UserError(f"line {line.number} (image {line.key!r}) has num_boxes {rows}; restore the line")
    return features_of(assembler, line, raw, rows), own


def _objects(value: Any) -> list[Any] | None:
    """Objects of a line's JSON: the list itself, or the list "objects"."""
    found = value.get("objects") if isinstance(value, dict) else value
    return found if isinstance(found, list) else None


def _own_size(key: str, records: tuple[Any, ...], companions: Companions) -> tuple[int, int] | None:
    """Width and height in the lines of an image."""
    for record in records:
        if isinstance(record, dict) and "image_h" in record:
            return int(record["image_w"]), int(record["image_h"])
    if companions.sizes is not None:
        value = companions.sizes.json(key)
        record = value[0] if isinstance(value, list) else value
        return int(record["width"]), int(record["height"])
    if companions.images is not None:
        data = binascii.a2b_base64(companions.images.columns(key)[-1])
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:  # reads only the header
            return image.size
    return None


def _labels(assembler: Assembler, key: str, objects: list[Any]) -> Labels:
    boxes = np.array([item["rect"] for item in objects], dtype=np.float64).reshape(len(objects), 4)
    confidence = np.array([*(item.get("conf", 1.0) for item in objects), 0.0], dtype=np.float64)
    classes = np.full(len(objects) + 1, -1)
    attributes = np.full((len(objects) + 1, ATTRIBUTES_KEPT), -1)
    scores = np.zeros(attributes.shape)
    for row, item in enumerate(objects):
        classes[row] = _id(key, "class", item["class"], assembler.classes)
        names = item.get("attributes", [])
        pairs = zip(item.get("attr_scores", [1.0] * len(names)), names, strict=False)
        known = [(score, _id(key, "attribute", name, assembler.attributes)) for score, name in pairs]
        best = sorted((pair for pair in known if pair[1] >= 0), key=lambda pair: -pair[0])[:ATTRIBUTES_KEPT]
        for column, (score, attribute) in enumerate(best):
            attributes[row, column], scores[row, column] = attribute, score
    return Labels(boxes, confidence, classes, attributes, scores)


def _id(key: str, kind: str, name: str, vocabulary: Vocabulary) -> int:
    """Id of a name; -1 for the background or without a vocabulary."""
    if not len(vocabulary) or (name not in vocabulary.ids and is_background(name)):
        return -1
    if name not in vocabulary.ids:
        raise UserError(
            f"image {key!r} has the {kind} {short(name)}, which is not in the {kind} vocabulary; give that of this "
            "detector"
        )
    return vocabulary.ids[name]


def _without_box(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Features, and the boxes (R, 4) at the end of their rows if all rows end in one.

    A row ends in a box if its last two numbers are the width and height (in either order) of the corners before them,
    and all six are from 0 to 1, with some rounding.
    """
    if not rows.size or rows.shape[1] <= 6:
        return rows, None
    boxes, sides = rows[:, -6:-2].astype(np.float64), rows[:, -2:].astype(np.float64)
    extents = boxes[:, 2:] - boxes[:, :2]
    in_range = (rows[:, -6:] > -0.01).all() and (rows[:, -6:] < 1.01).all() and extents.any()
    if in_range and any(np.abs(extents - order).max() < 0.01 for order in (sides, sides[:, ::-1])):
        return rows[:, :-6], boxes
    return rows, None


def _labels_of(boxes: np.ndarray, labelled: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Index (R,) of each box's label among those in pixels (L, 4), -1 for none."""
    if not len(labelled) or size is None:
        return np.full(len(boxes), -1)
    overlap = iou(boxes, pixels_to_fractions(labelled, *size))
    return np.where(overlap.max(axis=1) >= SAME_BOX, overlap.argmax(axis=1), -1)
