"""Captions as Conceptual Captions has them: a line for each, `caption<tab>address or path of the picture`, no header.

The address or path, as written, is the image's id. Rows are never numbered to find pictures: a picture that could not
be downloaded would shift all that follow to wrong captions without a word.
"""

from pathlib import Path

from dimvl.data.annotations.fields import FORMATS, image_name, lines, words
from dimvl.data.annotations.records import Caption
from dimvl.errors import UserError

HEADERS = {"caption\turl", "caption\timage", "caption\timage_url", "caption\tpath", "caption\tfile"}


def conceptual_captions(path: Path) -> list[Caption]:
    """Read a file of captions and addresses or paths, in its order; a first line `caption<tab>url` is left out.

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
            raise UserError(f"{place} has {len(columns)} columns instead of caption, tab, picture; {FORMATS}")
        image = image_name(columns[1].strip(), place, "picture")
        result.append(Caption(len(result), image, words(columns[0], f"caption of image {image}", place), image))
    return result
