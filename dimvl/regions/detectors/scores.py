"""How well a detector finds and names objects: average precision and attribute accuracy against COCO instances.

Both take the regions of each image, from a region store or straight from a detector, and a COCO instances file whose
annotations may have `attributes`, one name per attribute group.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dimvl.errors import UserError
from dimvl.regions.geometry import iou, xywh_to_corners
from dimvl.regions.records import Detections

IOU_THRESHOLD = 0.5
RECALL_LEVELS = np.linspace(0, 1, 101)  # those of the COCO evaluation


def average_precision_50(
    found: Mapping[int, Detections], instances: Mapping[str, Any], classes: Sequence[str]
) -> float:
    """Mean over classes of the average precision at IoU .5, as the COCO evaluation computes it.

    Each region counts as its best class, with that class's probability. The regions of a class in all images, best
    first, match the free object of that class that they overlap most, by at least .5; precision is made monotone and
    averaged at 101 recalls. Crowd annotations and areas are not treated separately. Classes without an object do not
    count.

    Args:
        found: by image id; a missing image has no regions.
        instances: content of a COCO instances file.
        classes: class names by class id.

    Returns:
        A fraction in [0, 1].

    Raises:
        UserError: the instances have no object of these classes.

    """
    hits, scores, labels = [], [], []
    counts = np.zeros(len(classes), dtype=np.int64)
    for regions, boxes, object_labels, _ in _images(found, instances, classes):
        counts += np.bincount(object_labels, minlength=len(classes))
        if regions is not None:
            hits.append(_matches(regions, boxes, object_labels) >= 0)
            scores.append(regions.class_scores[:, 0].astype(np.float64))
            labels.append(regions.class_ids[:, 0].astype(np.int64))
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
    found: Mapping[int, Detections],
    instances: Mapping[str, Any],
    classes: Sequence[str],
    attributes: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Share of correct attributes among the objects that were found with the correct class.

    An object is found if a region of its class overlaps it by at least .5, matched as for the average precision.

    Args:
        found: by image id.
        instances: content of a COCO instances file with `attributes` in the order of the groups.
        classes: class names by class id.
        attributes: attribute names by group, groups in the order of the ids.

    Returns:
        A fraction in [0, 1] by group, `all` for all groups correct at once, and `found`, the share of objects found.

    Raises:
        UserError: no object was found.

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
        raise UserError("no annotated object was found, so attributes cannot be scored; train the detector longer")
    rights = np.array(right)
    by_group = dict(zip(attributes, rights.mean(axis=0).tolist(), strict=True))
    return {**by_group, "all": float(rights.all(axis=1).mean()), "found": len(rights) / objects}


def _images(
    found: Mapping[int, Detections], instances: Mapping[str, Any], classes: Sequence[str]
) -> Iterator[tuple[Detections | None, np.ndarray, np.ndarray, list[list[str]]]]:
    """Yield each image's regions, and its objects' boxes as fractions, class ids and attribute names."""
    class_ids = {name: index for index, name in enumerate(classes)}
    categories = {category["id"]: class_ids.get(category["name"]) for category in instances["categories"]}
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in instances["images"]}
    for annotation in instances["annotations"]:
        if categories[annotation["category_id"]] is not None:
            objects[annotation["image_id"]].append(annotation)
    for image in instances["images"]:
        here = objects[image["id"]]
        corners = xywh_to_corners(np.array([item["bbox"] for item in here], dtype=np.float64).reshape(-1, 4))
        corners /= [image["width"], image["height"], image["width"], image["height"]]
        labels = np.array([categories[annotation["category_id"]] for annotation in here], dtype=np.int64)
        yield found.get(image["id"]), corners, labels, [annotation.get("attributes", []) for annotation in here]


def _matches(regions: Detections, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Object that each region found, or -1; better regions choose first, and each object is chosen once."""
    overlaps = iou(regions.boxes.astype(np.float64), boxes) * (regions.class_ids[:, :1] == labels)
    matches = np.full(len(regions.boxes), -1)
    for region in np.argsort(-regions.class_scores[:, 0].astype(np.float64), kind="stable"):
        if len(boxes) and overlaps[region].max() >= IOU_THRESHOLD:
            matches[region] = overlaps[region].argmax()
            overlaps[:, matches[region]] = 0
    return matches


def _average_precision(hits: np.ndarray, scores: np.ndarray, objects: int) -> float:
    order = np.argsort(-scores, kind="stable")
    right = hits[order].cumsum()
    precision = right / np.arange(1, len(order) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    first_reaching = np.searchsorted(right / objects, RECALL_LEVELS, side="left")
    return float(np.append(best_from_here, 0.0)[first_reaching].mean())
