"""Records of annotation files: one for each caption and each question."""

from collections.abc import Sequence
from dataclasses import dataclass

ImageKey = tuple[tuple[str, ...], tuple[float, ...]]
"""Ids of the images of a text, in order, and their times in seconds, one for each or none."""
NAMED = 3


def name_images(image_ids: Sequence[str]) -> str:
    """Name images in a message: `image 17`, or `images 17, 18`."""
    more = f" and {len(image_ids) - NAMED} more" if len(image_ids) > NAMED else ""
    return f"image{'s' * (len(image_ids) > 1)} {', '.join(image_ids[:NAMED])}{more}"


class _AboutImages:
    """A text about one or more images."""

    __slots__ = ()
    image_ids: tuple[str, ...]
    times: tuple[float, ...]

    @property
    def image_id(self) -> str:
        """The image of a record with exactly one."""
        [image_id] = self.image_ids
        return image_id

    @property
    def images(self) -> ImageKey:
        """What records about the same images have in common."""
        return self.image_ids, self.times


@dataclass(frozen=True, slots=True)
class Caption(_AboutImages):
    """One caption of one or more images.

    Attributes:
        caption_id: its number in the file; its position, from 0, if the file has no numbers.
        image_ids: the images, in order, as the file names them, as text.
        text: without surrounding whitespace.
        file_names: file name, path or URL of each image; empty if the file has none.
        times: seconds of each image; empty if the file has none.

    """

    caption_id: int
    image_ids: tuple[str, ...]
    text: str
    file_names: tuple[str, ...] = ()
    times: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """The record in a message."""
        return f"caption {self.caption_id}"


@dataclass(frozen=True, slots=True)
class Question(_AboutImages):
    """One question about one or more images.

    Attributes:
        question_id: its number.
        image_ids: the images, in order, as the file names them, as text.
        text: without surrounding whitespace.
        answers: the answers that people gave, any number; empty if answers are not published.
        kind: question type, empty if the file has none.
        answer_type: such as yes/no, number, other; empty if the file has none.
        file_names: file name, path or URL of each image; empty if the file has none.
        times: seconds of each image; empty if the file has none.

    """

    question_id: int
    image_ids: tuple[str, ...]
    text: str
    answers: tuple[str, ...]
    kind: str = ""
    answer_type: str = ""
    file_names: tuple[str, ...] = ()
    times: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """The record in a message."""
        return f"question {self.question_id}"
