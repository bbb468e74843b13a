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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dimvl.errors import UserError
from dimvl.regions.geometry import iou, pixels_to_fractions
from dimvl.regions.importers.common import ATTRIBUTES_KEPT, Assembler, Source, Unit
from dimvl.regions.importers.given import Vocabulary
from dimvl.regions.importers.tsv import Line, TsvFile, array_of, integer_of, matrix_of, source_of
from dimvl.regions.records import Regions

SAME_BOX = 0.9
"""Minimum IoU for a label to belong to a region."""

NO_ATTRIBUTE = "__no_attribute__"


class Companion:
    """A TSV file beside the features, read by image key; keeps where each line starts, about 150 bytes per image."""

    def __init__(self, path: Path) -> None:
        self.tsv = TsvFile(path)
        self._starts: dict[str, int] = {}

    def columns(self, key: str) -> list[bytes] | None:
        """Columns after the key, or None if the file has no such line."""
        if not self._starts:
            start = 0
            for line in self.tsv.lines():
                self._starts[line.key] = start if self.tsv.offsets is None else int(self.tsv.offsets[line.number - 1])
                start = line.position
        return self.tsv.line_at(self._starts[key])[1:] if key in self._starts else None

    def json(self, key: str) -> Any:
        """JSON of the second column, or None."""
        columns = self.columns(key)
        return None if columns is None else json.loads(columns[0])


class Companions(NamedTuple):
    """Existing files beside a feature file."""

    labels: Companion | None
    sizes: Companion | None
    images: Companion | None


def oscar_tsv(path: Path, assembler: Assembler) -> Source:
    """Open a feature file, or a folder with one."""
    file = feature_file(path) if path.is_dir() else path
    found = [
        next((Companion(place) for name in names if (place := _place(file, name)).is_file() and place != file), None)
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
    rows, own = _rows(line)
    beside = companions.labels.json(line.key) if companions.labels is not None else None
    size = assembler.size(line.key, _own_size(line.key, (own, beside), companions))
    own_objects = _objects(own)
    objects = own_objects if own_objects is not None else _objects(beside)
    if objects is None and len(assembler.classes):
        raise UserError(
            f"image {line.key!r} has no labels (objects in its line, or a line in label.tsv beside the features); "
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


def _rows(line: Line) -> tuple[np.ndarray, Any]:
    """Rows of features (R, F + 6) or (R, F), and the line's JSON if it has any."""
    columns = line.columns()
    if len(columns) == 3:
        return matrix_of(line, "features", columns[2], integer_of(line, "num_boxes", columns[1])), None
    if len(columns) != 2:
        raise UserError(
            f"line {line.number} (image {line.key!r}) has {len(columns)} columns, not 2 or 3; the line is cut off or "
            "the file is of another format"
        )
    own = json.loads(columns[1])
    objects = _objects(own)
    if objects is None:
        return matrix_of(line, "features", own["features"].encode(), int(own["num_boxes"])), own
    rows = [array_of(line, "feature", item["feature"].encode(), "<f4") for item in objects]
    return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32), own


def _objects(value: Any) -> list[Any] | None:
    """Objects of a line's JSON: the list itself, or the list "objects"."""
    found = value.get("objects") if isinstance(value, dict) else value
    return found if isinstance(found, list) else None


def _own_size(key: str, records: tuple[Any, ...], companions: Companions) -> tuple[int, int] | None:
    """Width and height in the lines of an image."""
    for record in records:
        if isinstance(record, dict) and "image_h" in record:
            return int(record["image_w"]), int(record["image_h"])
    if companions.sizes is not None and (value := companions.sizes.json(key)) is not None:
        record = value[0] if isinstance(value, list) else value
        return int(record["width"]), int(record["height"])
    if companions.images is not None and (columns := companions.images.columns(key)) is not None:
        with Image.open(io.BytesIO(binascii.a2b_base64(columns[-1]))) as image:  # reads only the header
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
        best = sorted((pair for pair in pairs if pair[1] != NO_ATTRIBUTE), key=lambda pair: -pair[0])[:ATTRIBUTES_KEPT]
        for column, (score, name) in enumerate(best):
            attributes[row, column] = _id(key, "attribute", name, assembler.attributes)
            scores[row, column] = score
    return Labels(boxes, confidence, classes, attributes, scores)


def _id(key: str, kind: str, name: str, vocabulary: Vocabulary) -> int:
    if not len(vocabulary):
        return -1
    if name not in vocabulary.ids:
        raise UserError(
            f"image {key!r} has the {kind} {name!r}, which is not in the {kind} vocabulary; give that of this detector"
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
