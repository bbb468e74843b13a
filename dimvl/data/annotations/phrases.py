"""Phrases and the boxes that they refer to: referring expressions, and the phrases of captions.

Boxes are corners x1, y1, x2, y2 in pixels of the upright image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimvl.data.annotations.records import AboutImages
from dimvl.errors import UserError
from dimvl.fields import Id, items, pixels
from dimvl.regions.records import BOX_TOLERANCE
from dimvl.showing import short

Box = tuple[float, float, float, float]
Size = tuple[int, int]
MOST = 10**7
"""Phrases of a file."""
FORM = "give x1, y1, x2, y2 in pixels, with x1 < x2 and y1 < y2"
XYWH = f"{FORM}; a box of x, y, width, height has its second corner at x + width, y + height"


@dataclass(frozen=True, slots=True)
class Phrase(AboutImages):
    """A phrase about one image and the boxes that it refers to.

    Attributes:
        phrase_id: its id in the file; a number that no other phrase has if the file has none.
        image_ids: the image, as text: first as the file names it, after matching as the store does.
        text: without surrounding whitespace.
        boxes: what the phrase refers to; any of them is right. Empty if nothing in the image is meant.
        size: width and height of the image in pixels when the boxes were drawn; None if the file does not say.
        split: empty if the file has none.
        kinds: such as `people`; empty if the file has none.
        file_names: file name or path of the image; empty if the file has none.
        times: none; texts of other kinds have them.
        written_ids: the image as the file names it.
        regions: regions of the store, by number, that are right; see `dimvl.tasks.grounding.matching`.

    """

    phrase_id: Id
    image_ids: tuple[str, ...]
    text: str
    boxes: tuple[Box, ...]
    size: Size | None = None
    split: str = ""
    kinds: tuple[str, ...] = ()
    file_names: tuple[str, ...] = ()
    times: tuple[float, ...] = ()
    written_ids: tuple[Id, ...] = ()
    regions: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The record in a message."""
        return f"phrase {self.phrase_id}"


def check_number(phrases: int, path: Path) -> None:
    """Refuse files that refer to the same list again and again, which could go on for years."""
    if phrases > MOST:
        raise UserError(f"{path} has more than {MOST:,} phrases; check that it is the right file")


def corners(value: Any, what: str, place: str) -> Box:
    """Return a box x1, y1, x2, y2 in pixels; the image's size is not yet compared.

    Raises:
        UserError: it is not four numbers, not in this order, or in fractions.

    """
    box = four_numbers(value, what, place)
    if box[0] >= box[2] or box[1] >= box[3]:
        raise UserError(f"{place}: box {list(box)} of {what} is in another form; {XYWH}")
    if max(box) <= 1:
        raise UserError(f"{place}: box {list(box)} of {what} is smaller than a pixel; give pixels, not fractions")
    return box


def from_xywh(value: Any, what: str, place: str) -> Box:
    """Return COCO's box x, y, width, height in pixels as corners.

    Raises:
        UserError: it is not four numbers, or has no area.

    """
    x, y, width, height = box = four_numbers(value, what, place)
    if width <= 0 or height <= 0:
        raise UserError(f"{place}: box {list(box)} of {what} has no area; give x, y, width, height in pixels")
    return x, y, x + width, y + height


def four_numbers(value: Any, what: str, place: str) -> Box:
    """Return four finite numbers; a `UserError` if the value is something else."""
    numbers = value if isinstance(value, list) else []
    plain = [float(one) for one in numbers if type(one) in (int, float) and abs(one) < 2**32]
    if len(plain) != 4 or len(numbers) != 4:
        raise UserError(f"{place}: box {short(value)} of {what} is not a list of four numbers; {FORM}")
    return plain[0], plain[1], plain[2], plain[3]


def check_inside(boxes: Sequence[Box], size: Size, what: str, place: str, remedy: str = XYWH) -> None:
    """Refuse boxes that reach beyond their image by more than a pixel and a hundredth of its side."""
    right, bottom = (side * (1 + BOX_TOLERANCE) + 1 for side in size)
    left, top = (-side * BOX_TOLERANCE - 1 for side in size)
    for box in boxes:
        if box[0] < left or box[1] < top or box[2] > right or box[3] > bottom:
            shown = [round(side, 2) for side in box]
            raise UserError(f"{place}: box {shown} of {what} is outside its image of {size[0]} x {size[1]}; {remedy}")


def size_of(record: dict[str, Any], place: str) -> Size | None:
    """Return the image's width and height if a record has them."""
    if "width" not in record and "height" not in record:
        return None
    if "width" not in record or "height" not in record:
        raise UserError(f"{place} has only one of width and height; give both, or neither")
    return pixels(record, "width", place), pixels(record, "height", place)


def boxes_of(record: dict[str, Any], what: str, place: str) -> tuple[Box, ...]:
    """Return the boxes of a record of our own, which may be none."""
    return tuple(corners(box, what, place) for box in items(record["boxes"], f"boxes of {what}", place))
