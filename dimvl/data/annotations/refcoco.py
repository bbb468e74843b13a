"""Referring expressions of RefCOCO, RefCOCO+ and RefCOCOg.

Published are `refs(unc).p`, `refs(umd).p` and `refs(google).p`, pickles that are read as plain data only
(`dimvl/files/plain_pickle.py`), and beside each COCO's `instances.json` with sizes and boxes x, y, width, height:

    [{"ref_id", "ann_id", "image_id", "split", "sentences": [{"sent_id", "sent", "raw"}, ...]}, ...]

The same list as JSON is read too, and COCO's layout with the expression as `caption` of each entry of `images`, as
MDETR publishes it.
"""

from pathlib import Path
from typing import Any

from dimvl.data.annotations.phrases import Box, Phrase, Size, check_inside, check_number, from_xywh
from dimvl.errors import UserError
from dimvl.fields import FORMATS, Once, identifier, items, label, mapping, pixels, records, words
from dimvl.files import read_json
from dimvl.files.plain_pickle import read_plain_pickle

CORNERS = "COCO's boxes are x, y, width, height; give the published file, or JSON lines if these are corners"


def referring_phrases(path: Path, instances: Path) -> list[Phrase]:
    """Read expressions and the boxes of their objects, in the order of the file.

    Raises:
        UserError: another format, an object or image that `instances` lacks, a duplicate id, an empty expression, a box
            without an area or outside its image.

    """
    content = read_json(path) if path.suffix.lower() == ".json" else read_plain_pickle(path)
    images, boxes = _instances(instances)
    once, result = Once("sent_id"), list[Phrase]()
    for number, value in enumerate(items(content, "the file", str(path))):
        place = f"{path}: item {number}"
        record = mapping(value, ("ann_id", "image_id", "sentences"), place)
        written, ann = (identifier(record[name], name, place) for name in ("image_id", "ann_id"))
        image, what = str(written), f"object {ann}"
        if image not in images or str(ann) not in boxes:
            lacking = f"image {image}" if image not in images else what
            raise UserError(f"{place} is about {lacking}, which {instances} lacks; give the instances of this file")
        box, owner = boxes[str(ann)]
        if owner != image:
            raise UserError(
                f"{place}: {what} is in image {image} but in image {owner} in {instances}; give files that belong "
                "together"
            )
        size, file = images[image]
        check_inside([box], size, what, str(instances), CORNERS)
        split = label(record.get("split", ""), "split", place)
        for each in items(record["sentences"], "sentences", place):
            sentence = mapping(each, ("sent_id",), f"{place}: a sentence")
            own = identifier(sentence["sent_id"], "sent_id", place)
            once.check(own, place)
            text = words(sentence.get("sent", sentence.get("raw")), f"expression {own}", place)
            result.append(Phrase(own, (image,), text, (box,), size, split, (), (file,), written_ids=(written,)))
            check_number(len(result), path)
    return result


def captioned_phrases(path: Path) -> list[Phrase]:
    """Read COCO's layout in which each entry of `images` is an expression, its `caption`; raises likewise."""
    if path.suffix.lower() != ".json":
        raise UserError(
            f"{path} is not a file of phrases that dimvl knows by itself; if it has RefCOCO's expressions, give COCO's "
            "instances.json beside it as images"
        )
    content = read_json(path)
    if isinstance(content, list):
        raise UserError(f"{path} has expressions without boxes; give COCO's instances.json beside it as images")
    entries: dict[str, tuple[dict[str, Any], Size, str]] = {}
    once = Once("id")
    for place, record in records(path, content, "images", ("id", "file_name", "width", "height", "caption")):
        once.check(own := identifier(record["id"], "id", place), place)
        entries[str(own)] = record, (pixels(record, "width", place), pixels(record, "height", place)), place
    boxes: dict[str, list[Box]] = {entry: [] for entry in entries}
    for place, record in records(path, content, "annotations", ("image_id", "bbox")):
        own = str(identifier(record["image_id"], "image_id", place))
        if own not in entries:
            raise UserError(f"{place} is about entry {own} of 'images', which is not there; {FORMATS}")
        boxes[own].append(from_xywh(record["bbox"], f"entry {own}", place))
        check_inside(boxes[own][-1:], entries[own][1], f"entry {own}", place, CORNERS)
    result = []
    for own, (record, size, place) in entries.items():
        file = str(identifier(record["file_name"], "file_name", place))
        written = identifier(record.get("original_id", file), "original_id", place)
        text = words(record["caption"], f"caption of entry {own}", place)
        number = identifier(record["id"], "id", place)
        split = label(record.get("split", ""), "split", place)
        own_boxes = tuple(boxes[own])
        result.append(
            Phrase(number, (str(written),), text, own_boxes, size, split, (), (file,), written_ids=(written,))
        )
    return result


def _instances(path: Path) -> tuple[dict[str, tuple[Size, str]], dict[str, tuple[Box, str]]]:
    """Return size and file name by image, and box and image by object, each by id as text."""
    content = read_json(path)
    images: dict[str, tuple[Size, str]] = {}
    for place, record in records(path, content, "images", ("id", "width", "height")):
        size = pixels(record, "width", place), pixels(record, "height", place)
        file = str(identifier(record["file_name"], "file_name", place)) if "file_name" in record else ""
        images[str(identifier(record["id"], "id", place))] = size, file
    once, boxes = Once("id"), dict[str, tuple[Box, str]]()
    for place, record in records(path, content, "annotations", ("id", "image_id", "bbox")):
        once.check(own := identifier(record["id"], "id", place), place)
        image = str(identifier(record["image_id"], "image_id", place))
        boxes[str(own)] = from_xywh(record["bbox"], f"object {own}", place), image
    return images, boxes
