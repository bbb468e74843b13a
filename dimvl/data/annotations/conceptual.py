"""Captions in the format of Conceptual Captions: lines of `caption<tab>URL or path of the image`, without a header.

The URL or path, as written, is the image's id. Line numbers are never used as ids: after an image that could not be
downloaded, every image would silently get the wrong caption.
"""

from pathlib import Path

from dimvl.data.annotations.records import Caption
from dimvl.errors import UserError
from dimvl.fields import FORMATS, identifier, lines, words

HEADERS = {"caption\turl", "caption\timage", "caption\timage_url", "caption\tpath", "caption\tfile"}


def conceptual_captions(path: Path) -> list[Caption]:
    """Read captions with URLs or paths, in the order of the file; a first line `caption<tab>url` is skipped.

    Raises:
        UserError: a line of another form, or an empty caption.

    """
    result: list[Caption] = []
    for line, content in lines(path):
        if not result and content.strip().lower() in HEADERS:
            continue
        place = f"{path}, line {line}"
        columns = content.split("\t")
        if len(columns) != 2:
            raise UserError(f"{place} has {len(columns)} columns instead of caption, tab, image; {FORMATS}")
        image = str(identifier(columns[1].strip(), "image", place))
        images = (image,)
        text = words(columns[0], f"caption of image {image}", place)
        result.append(Caption(len(result), images, text, images, written_ids=images))
    return result
