"""Boxes drawn by people or another system, from a COCO file: `dimvl extract --boxes`.

The detector then only describes them: features, and attributes where it has any, are its own; classes are the file's.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.errors import UserError
from dimvl.fields import COCO, Once, identifier, pixels, records, words
from dimvl.files import read_json
from dimvl.regions.detectors.base import RegionExtractor
from dimvl.regions.geometry import area, clip, pixels_to_fractions, xywh_to_corners
from dimvl.regions.records import Detections, Extractor, check_boxes
from dimvl.showing import short

log = logging.getLogger(__name__)

FRACTION_SLACK = 0.005  # how far a box in fractions may reach beyond its image


@dataclass(frozen=True, kw_only=True)
class GivenBoxes:
    """Boxes by image id, to be described in place of a detector's own.

    Attributes:
        boxes: (R, 4) float32 fractions of each image.
        labels: (R,) class ids of each image; empty to use the detector's own classes.
        scores: (R,) of each image, as `labels`.
        sizes: width and height in pixels of each image when its boxes were drawn; the file may be scaled since then.
        classes: names of the labels.

    """

    boxes: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @classmethod
    def read(cls, file: Path) -> "GivenBoxes":
        """Read a COCO annotation file: `images` with sizes, `annotations` with `bbox`, `categories` with names.

        An annotation may have a `score`, by default 1; boxes are sorted by it. Crowds, and boxes without an area inside
        their image, are skipped, and their number is logged.

        Raises:
            UserError: the file is missing or has another form, or a box or score is not valid.

        """
        value = read_json(file)
        sizes: dict[str, tuple[int, int]] = {}
        for place, image_id, image in _listed(file, value, "images", ("width", "height")):
            sizes[image_id] = pixels(image, "width", place), pixels(image, "height", place)
        categories: dict[str, str] = {}
        for place, category_id, category in _listed(file, value, "categories", ("name",)):
            categories[category_id] = words(category["name"], "name", place)
        label_of = {category: label for label, category in enumerate(categories)}
        rows: dict[str, list[tuple[np.ndarray, int, float]]] = {image: [] for image in sizes}
        skipped = 0
        for place, annotation in records(file, value, "annotations", ("image_id", "category_id", "bbox"), COCO):
            image_id, corners, label, score = _box(annotation, sizes, label_of, place)
            if area(corners[None])[0] > 0 and not annotation.get("iscrowd"):
                rows[image_id].append((corners, label, score))
            else:
                skipped += 1
        for own in rows.values():  # the best first, since models may take only the first ones
            own.sort(key=lambda row: -row[2])
        if skipped:
            log.warning("%s: %d crowds and boxes without an area are skipped", file, skipped)
        return cls(
            boxes={i: np.array([row[0] for row in own], np.float32).reshape(-1, 4) for i, own in rows.items()},
            labels={i: np.array([row[1] for row in own], np.int16) for i, own in rows.items()},
            scores={i: np.array([row[2] for row in own], np.float16) for i, own in rows.items()},
            sizes=sizes,
            classes=tuple(categories.values()),
        )

    def of(self, image_id: str, width: int, height: int) -> np.ndarray:
        """Boxes (R, 4) of an image of this size in pixels.

        Raises:
            UserError: it has none, they are not fractions, or were drawn on an image of another shape.

        """
        if image_id not in self.boxes:
            raise UserError(f"no boxes are given for image {image_id!r}; add them or remove the image")
        drawn = self.sizes.get(image_id, (width, height))
        if abs(width / drawn[0] - height / drawn[1]) * max(drawn) > 1.5:  # a pixel, and rounding
            raise UserError(
                f"image {image_id!r} is {width} x {height} pixels but its boxes were drawn at {drawn[0]} x {drawn[1]}; "
                "give the image that they belong to, rotated as it was then"
            )
        check_boxes(self.boxes[image_id], f"image {image_id!r}")
        return self.boxes[image_id]

    def named(self, image_id: str, found: Detections, detector: RegionExtractor) -> Detections:
        """Give an image's regions the classes of the file; those after the given boxes have none."""
        if image_id not in self.labels:
            return found
        more = len(found.boxes) - len(self.labels[image_id])
        ids = np.concatenate([self.labels[image_id], np.full(more, -1, np.int16)])
        scores = np.concatenate([self.scores[image_id], np.zeros(more, np.float16)])
        return detector.with_given_classes(found, ids[:, None], scores[:, None])

    def extractor(self, detector: RegionExtractor) -> Extractor:
        """The extractor of these boxes as the detector describes them; a `UserError` if it cannot."""
        detector.check_describes()
        return detector.extractor_of_given(self.classes)


def _listed(file: Path, value: Any, key: str, fields: tuple[str, ...]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield place, id and value of each item of a list whose ids must differ."""
    once = Once("id")
    for place, record in records(file, value, key, ("id", *fields), COCO):
        once.check(own := identifier(record["id"], "id", place), place)
        yield place, str(own), record


def _box(
    annotation: dict[str, Any], sizes: Mapping[str, tuple[int, int]], label_of: Mapping[str, int], place: str
) -> tuple[str, np.ndarray, int, float]:
    """Read one annotation: image id, corners (4,) as fractions, label and score."""
    image, category = (str(identifier(annotation[name], name, place)) for name in ("image_id", "category_id"))
    place = f"{place}, of image {image}"
    if image not in sizes:
        raise UserError(f"{place}: the image is not listed; add it to images")
    if category not in label_of:
        raise UserError(f"{place}: category {category} is not listed; add it to categories")
    try:
        box = np.array([float(number) for number in annotation["bbox"]])
        score = float(annotation.get("score", 1.0))
    except (TypeError, ValueError, OverflowError):
        box, score = np.zeros(0), 1.0
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] < 0).any():
        raise UserError(f"{place}: bbox {short(annotation['bbox'])} is not x, y, width, height in pixels; correct it")
    if not 0 <= score <= 1:
        raise UserError(f"{place}: score {score} is not a probability; correct it")
    corners = xywh_to_corners(box[None])
    if box[2:].all() and corners.min() >= 0 and corners.max() <= 1 + FRACTION_SLACK and max(sizes[image]) > 2:
        raise UserError(
            f"{place}: bbox {short(annotation['bbox'])} looks like fractions; give x, y, width, height in pixels"
        )
    return image, clip(pixels_to_fractions(corners, *sizes[image]))[0], label_of[category], score
