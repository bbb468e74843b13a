"""COCO captions: `{"images": [...], "annotations": [{"id", "image_id", "caption"}, ...]}`.

Only `annotations` is required; file names in `images` help to find images in a store that uses them as ids.
"""

from pathlib import Path
from typing import Any

from dimvl.data.annotations.fields import Once, image_name, records, whole_number, words
from dimvl.data.annotations.records import Caption


def coco_captions(path: Path, content: Any) -> list[Caption]:
    """Read the captions of a COCO file.

    Args:
        path: for messages.
        content: the file's JSON value.

    Raises:
        UserError: another format, an empty caption, or a duplicate caption id.

    """
    once, ids = Once("caption id"), dict[str, tuple[str]]()
    result = []
    listed = content.get("images") if isinstance(content, dict) else None
    files = _file_names(path, content) if listed else {}
    for place, record in records(path, content, "annotations", ("id", "image_id", "caption")):
        number, image = whole_number(record["id"], "id", place), image_name(record["image_id"], place)
        once.check(number, place)
        text = words(record["caption"], f"caption {number} of image {image}", place)
        result.append(Caption(number, ids.setdefault(image, (image,)), text, files.get(image, ())))
    return result


def _file_names(path: Path, content: Any) -> dict[str, tuple[str]]:
    """File name of each image in the list `images` that has one."""
    return {
        image_name(record["id"], place, "id"): (image_name(record["file_name"], place, "file_name"),)
        for place, record in records(path, content, "images", ("id",))
        if "file_name" in record
    }
