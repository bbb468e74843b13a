r"""Captions of Flickr30k and Flickr8k as distributed; an image's id is its file name.

The token file has lines `1000092795.jpg#0<tab>caption`. CSV files have columns `image_name| comment_number| comment`,
never quoted, or, separated by commas and quoted as usual, `image_name,comment_number,comment` or `image,caption`.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from dimvl.data.annotations.records import Caption
from dimvl.errors import UserError
from dimvl.fields import FORMATS, Once, identifier, lines, words
from dimvl.showing import short

TOKEN = re.compile(r"[^\t]+\.(jpe?g|png|webp|bmp|tiff?|gif)#[0-9]+\t", re.IGNORECASE)
PIPES = re.compile(r"\s*image_name\s*\|")
COMMAS = re.compile(r"\s*(image_name\s*,\s*comment_number\s*,\s*comment|image\s*,\s*caption)\s*", re.IGNORECASE)
# One row of the distributed file lacks its second bar: "2199200615.jpg| 4   A dog runs across the grass ."
_LACKS_BAR = re.compile(r"\s*([0-9]+)\s+(.*\S)\s*")
MOST_DIGITS = 18
"""Of the number of a caption; Python does not read very long ones."""


def token_captions(path: Path) -> list[Caption]:
    """Read a token file, in the order of the file.

    Raises:
        UserError: a line of another form, an empty caption, or a duplicate caption number of an image.

    """
    return list(_captions(path, _token_rows(path)))


def bar_captions(path: Path) -> list[Caption]:
    """Read a CSV file with bars; raises like `token_captions`."""
    return list(_captions(path, _bar_rows(path)))


def comma_captions(path: Path) -> list[Caption]:
    """Read a CSV file with commas; raises like `token_captions`."""
    return list(_captions(path, _comma_rows(path)))


Row = tuple[int, str, str, str]


def _captions(path: Path, rows: Iterator[Row]) -> Iterator[Caption]:
    """Check rows of line number, file name, caption number (empty if the file has none) and caption."""
    once, ids = Once("caption"), dict[str, tuple[str]]()
    for caption_id, (line, name, number, text) in enumerate(rows):
        place = f"{path}, line {line}"
        image = str(identifier(name.strip(), "image", place))
        if number and not (number.strip().isdecimal() and len(number.strip()) <= MOST_DIGITS):
            raise UserError(
                f"{place}: caption number {short(number)} is not a whole number of {MOST_DIGITS} digits or fewer; "
                f"{FORMATS}"
            )
        if number:
            once.check(f"{image}#{int(number)}", place)
        images = ids.setdefault(image, (image,))
        text = words(text, f"caption of image {image}", place)
        yield Caption(caption_id, images, text, images, written_ids=images)


def _token_rows(path: Path) -> Iterator[Row]:
    for line, content in lines(path):
        head, tab, text = content.partition("\t")
        name, mark, number = head.rpartition("#")
        if not tab or not mark:
            raise UserError(f"{path}, line {line} is not of the form FILE#NUMBER, tab, caption; {FORMATS}")
        yield line, name, number or "?", text


def _bar_rows(path: Path) -> Iterator[Row]:
    rows = lines(path)
    next(rows)  # the header
    for line, content in rows:
        name, *rest = content.split("|", 2)
        if len(rest) == 1 and (broken := _LACKS_BAR.fullmatch(rest[0])):
            rest = list(broken.groups())
        if len(rest) != 2:
            raise UserError(f"{path}, line {line} is not of the form image| number| caption; {FORMATS}")
        yield line, name, rest[0] or "?", rest[1]


def _comma_rows(path: Path) -> Iterator[Row]:
    reader = csv.reader((content + "\n" for _, content in lines(path)), strict=True)
    try:
        columns = len(next(reader))
        for row in reader:
            # Some of these files do not quote captions with commas: extra columns belong to the caption.
            text = ",".join(row[columns - 1 :])
            if len(row) < columns or "\n" in "".join(row):
                raise UserError(f"{path}, row {reader.line_num} is cut off or its quotes are not closed; fix it")
            yield reader.line_num, row[0], row[1] or "?" if columns == 3 else "", text
    except csv.Error as error:
        raise UserError(f"{path}, row {reader.line_num} is not valid CSV ({error}); fix its quotes") from None
