"""How well a detector finds and names: average precision and attribute accuracy against COCO instances.

Both take what was found in each image, read from a region store or straight from a detector, and a COCO instances file
whose annotations may carry `attributes`, one name per attribute group.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dimvl.errors import UserError

IOU_THRESHOLD = 0.5
RECALL_LEVELS = np.linspace(0, 1, 101)  # those of the COCO evaluation


class Found(Protocol):
    """What was found in one image: `Regions` of a store or `Detections` of a detector."""

    @property
    def boxes(self) -> np.ndarray:
        """(R, 4) corners as fractions of width and height."""

    @property
    def class_ids(self) -> np.ndarray:
        """(R, K) best first; -1 for none."""

    @property
    def class_scores(self) -> np.ndarray:
        """(R, K) probabilities."""

    @property
    def attribute_ids(self) -> np.ndarray:
        """(R, A) into one flat vocabulary; -1 for none."""


def average_precision_50(found: Mapping[int, Found], instances: Mapping[str, Any], classes: Sequence[str]) -> float:
    """Mean over classes of the average precision at IoU .5, as the COCO evaluation computes it.

    Each region counts as its best class, with that class's probability. Regions of a class over all images, best first,
    take the unmatched object of that class they overlap most, if by at least .5; precision is made monotone and
    averaged at 101 recalls. Crowd annotations and areas are not treated apart. Classes without an object do not count.

    Args:
        found: by image id; an image that is missing had nothing found in it.
        instances: content of a COCO instances file.
        classes: class names by class id.

    Returns:
        A fraction in [0, 1].

    Raises:
        UserError: the instances hold no object of these classes.

    """
    hits, scores, labels = [], [], []
    counts = np.zeros(len(classes), dtype=np.int64)
    for regions, boxes, object_labels, _ in _images(found, instances, classes):
        counts += np.bincount(object_labels, minlength=len(classes))
        if regions is not None:
            region_labels = regions.class_ids[:, 0].astype(np.int64)
            hits.append(_matches(regions, boxes, object_labels) >= 0)
            scores.append(regions.class_scores[:, 0].astype(np.float64))
            labels.append(region_labels)
    if not counts.any():
        raise UserError(
            f"no annotated object is of the classes {', '.join(classes)}; check that the files belong together"
        )
    if not hits:
        return 0.0
    hit, score, label = np.concatenate(hits), np.concatenate(scores), np.concatenate(labels)
    precisions = [
        _average_precision(hit[label == index], score[label == index], count)
        for index, count in enumerate(counts.tolist())
        if count
    ]
    return float(np.mean(precisions))


def attribute_accuracy(
    found: Mapping[int, Found],
    instances: Mapping[str, Any],
    classes: Sequence[str],
    attributes: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Share of right attributes among the objects that were found with the right class.

    An object is found if a region of its class overlaps it by at least .5 (matched as for the average precision).

    Args:
        found: by image id.
        instances: content of a COCO instances file with `attributes` in the order of the groups.
        classes: class names by class id.
        attributes: attribute names by group, groups in the order of the ids: the flat vocabulary in parts.

    Returns:
        A fraction in [0, 1] by group, `all` for all groups right at once, and `found`, the share of the objects that
        were found.

    Raises:
        UserError: no object was found, so that there is nothing to score.

    """
    flat = [name for names in attributes.values() for name in names]
    right, objects = [], 0
    for regions, boxes, labels, names in _images(found, instances, classes):
        objects += len(boxes)
        if regions is None:
            continue
        for region, index in enumerate(_matches(regions, boxes, labels)):
            if index >= 0:
                given = [flat[attribute] if attribute >= 0 else "" for attribute in regions.attribute_ids[region]]
                right.append([guess == name for guess, name in zip(given, names[index], strict=True)])
    if not right:
        raise UserError("no annotated object was found, so attributes cannot be scored; train the detector for longer")
    rights = np.array(right)
    by_group = dict(zip(attributes, rights.mean(axis=0).tolist(), strict=True))
    return {**by_group, "all": float(rights.all(axis=1).mean()), "found": len(rights) / objects}


def _images(
    found: Mapping[int, Found], instances: Mapping[str, Any], classes: Sequence[str]
) -> Iterator[tuple[Found | None, np.ndarray, np.ndarray, list[list[str]]]]:
    """Give for each image what was found, and its objects' boxes as fractions, class ids and attribute names."""
    class_ids = {name: index for index, name in enumerate(classes)}
    categories = {category["id"]: class_ids.get(category["name"]) for category in instances["categories"]}
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in instances["images"]}
    for annotation in instances["annotations"]:
        if categories[annotation["category_id"]] is not None:
            objects[annotation["image_id"]].append(annotation)
    for image in instances["images"]:
        here = objects[image["id"]]
        corners = np.array([annotation["bbox"] for annotation in here], dtype=np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        corners /= [image["width"], image["height"], image["width"], image["height"]]
        labels = np.array([categories[annotation["category_id"]] for annotation in here], dtype=np.int64)
        yield found.get(image["id"]), corners, labels, [annotation.get("attributes", []) for annotation in here]


def _matches(regions: Found, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each region the object that it found, or -1; better regions choose first, each object goes once."""
    overlaps = _overlaps(regions.boxes.astype(np.float64), boxes)
    overlaps *= regions.class_ids[:, :1] == labels
    matches = np.full(len(regions.boxes), -1)
    for region in np.argsort(-regions.class_scores[:, 0].astype(np.float64), kind="stable"):
        if len(boxes) and overlaps[region].max() >= IOU_THRESHOLD:
            matches[region] = overlaps[region].argmax()
            overlaps[:, matches[region]] = 0
    return matches


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (N, M) intersections over unions; boxes in fractions are all stretched alike, so pixels give the same."""
    sides = np.minimum(first[:, None, 2:], second[:, 2:]) - np.maximum(first[:, None, :2], second[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-12)


def _average_precision(hits: np.ndarray, scores: np.ndarray, objects: int) -> float:
    order = np.argsort(-scores, kind="stable")
    right = hits[order].cumsum()
    precision = right / np.arange(1, len(order) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    first_reaching = np.searchsorted(right / objects, RECALL_LEVELS, side="left")
    return float(np.append(best_from_here, 0.0)[first_reaching].mean())
