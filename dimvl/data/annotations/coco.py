"""COCO captions: `{"images": [...], "annotations": [{"id", "image_id", "caption"}, ...]}`.

Only `annotations` is required; file names in `images` help to find images in a store that uses them as ids. Files of
test images have `images` only. Written captions are in COCO's result format: `[{"image_id", "caption"}, ...]`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimvl.data.annotations.records import Caption
from dimvl.errors import UserError
from dimvl.fields import FORMATS, Id, Once, identifier, mapping, records, words
from dimvl.showing import short


def coco_captions(path: Path, content: Any, bare: bool = False) -> list[Caption]:
    """Read the captions of a COCO file.

    Args:
        path: for messages.
        content: the file's JSON value.
        bare: if the file has no caption at all, return each of its images with an empty text.

    Raises:
        UserError: another format, an empty caption, a duplicate caption id, one image id for two files, or one file
            under two image ids.

    """
    is_object = isinstance(content, dict)
    listed = _listed(path, content) if is_object and content.get("images") else {}
    if listed and not content.get("annotations"):
        if not bare:
            raise UserError(f"{path} lists {len(listed):,} images but no captions; give a file with captions")
        return [
            Caption(number, (image,), "", files, written_ids=(written,))
            for number, (image, (written, files)) in enumerate(listed.items())
        ]
    once, ids = Once("caption id"), dict[str, tuple[tuple[str], tuple[Id]]]()
    result = []
    for place, record in records(path, content, "annotations", ("id", "image_id", "caption")):
        number, written = identifier(record["id"], "id", place), identifier(record["image_id"], "image_id", place)
        once.check(number, place)
        image = str(written)
        text = words(record["caption"], f"caption {number} of image {image}", place)
        images, named = ids.setdefault(image, ((image,), (written,)))
        files = listed[image][1] if image in listed else ()
        result.append(Caption(number, images, text, files, written_ids=named))
    return result


def result_captions(path: Path, content: list[Any]) -> list[Caption]:
    """Read captions that a model has written: COCO's result format, as `dimvl evaluate` writes `predictions.json`.

    An empty caption is kept, as a full stop: leaving it out would flatter the model.

    Raises:
        UserError: another format.

    """
    result = []
    for number, item in enumerate(content):
        place = f"{path}: item {number}"
        record = mapping(item, ("image_id", "caption"), place, FORMATS)
        if "id" in record:
            raise UserError(f"{place} has an id, so it is no result; put the list under the key 'annotations'")
        written = identifier(record["image_id"], "image_id", place)
        text = "." if record["caption"] == "" else words(record["caption"], f"the caption of {short(written)}", place)
        result.append(Caption(number, (str(written),), text, (), written_ids=(written,)))
    return result


def _listed(path: Path, content: Any) -> Mapping[str, tuple[Id, tuple[str, ...]]]:
    """Id as written, and file name if there is one, of each image in the list `images`."""
    result: dict[str, tuple[Id, tuple[str, ...]]] = {}
    owners: dict[str, str] = {}
    for place, record in records(path, content, "images", ("id",)):
        written = identifier(record["id"], "id", place)
        name = (str(identifier(record["file_name"], "file_name", place)),) if "file_name" in record else ()
        _, known = result.setdefault(str(written), (written, name))
        if known != name:
            raise UserError(
                f"{place}: id {written!r} appears twice, for {', '.join(known) or 'no file'} and for "
                f"{', '.join(name) or 'no file'}; give each image its own id"
            )
        for file in name:
            if owners.setdefault(file, str(written)) != str(written):
                raise UserError(
                    f"{place}: the file {file!r} has two ids, {owners[file]!r} and {str(written)!r}; give each image "
                    "one id"
                )
    return result
