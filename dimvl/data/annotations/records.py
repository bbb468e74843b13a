"""Records of annotation files: one for each caption, question, question with candidates and item to classify."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from dimvl.fields import Id
from dimvl.showing import some

ImageKey = tuple[tuple[str, ...], tuple[float, ...]]
"""Ids of the images of a text, in order, and their times in seconds, one for each or none."""


def name_images(image_ids: Sequence[str]) -> str:
    """Name images in a message: `image 17`, or `images 17, 18`."""
    return f"image{'s' * (len(image_ids) > 1)} {some(image_ids)}"


class AboutImages:
    """A text about one or more images, or about a video: its name stands for its frames until they are matched."""

    __slots__ = ()
    image_ids: tuple[str, ...]
    times: tuple[float, ...]
    written_ids: tuple[Id, ...]
    text: str
    is_video: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model reads about the images."""
        return (self.text,)

    @property
    def image_id(self) -> str:
        """The image of a record with exactly one."""
        [image_id] = self.image_ids
        return image_id

    @property
    def images(self) -> ImageKey:
        """What records about the same images have in common."""
        return self.image_ids, self.times

    @property
    def named_images(self) -> tuple[Sequence[Id], tuple[float, ...]]:
        """The images, or the video, as the file names them, also after they were found in a store under other ids."""
        return self.written_ids or self.image_ids, () if self.is_video else self.times


@dataclass(frozen=True, slots=True)
class Caption(AboutImages):
    """One caption of one or more images.

    Attributes:
        caption_id: its id in the file; its position, from 0, if the file has no ids.
        image_ids: the images, in order, as text: first as the file names them, after matching as the store does.
        text: without surrounding whitespace; empty for an image whose captions are not published.
        file_names: file name, path or URL of each image; empty if the file has none.
        times: seconds of each image; empty if the file has none.
        written_ids: the images as the file names them, numbers as numbers; empty if these are `image_ids`.
        is_video: whether `image_ids` is a video; after matching, its frames.
        album: stories of one album are scored together: one of them is predicted and compared with all; None without.

    """

    caption_id: Id
    image_ids: tuple[str, ...]
    text: str
    file_names: tuple[str, ...] = ()
    times: tuple[float, ...] = ()
    written_ids: tuple[Id, ...] = ()
    is_video: bool = False
    album: Id | None = None

    @property
    def name(self) -> str:
        """The record in a message."""
        return f"caption {self.caption_id}"


def compared(captions: Sequence[Caption]) -> list[list[Caption]]:
    """Group the captions that one prediction is compared with: those of the same images, or stories of an album."""
    groups: dict[Hashable, list[Caption]] = {}
    for caption in captions:
        groups.setdefault(caption.images if caption.album is None else str(caption.album), []).append(caption)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class Question(AboutImages):
    """One question about one or more images.

    Attributes:
        question_id: its id in the file; a number that no other question has if the file has none.
        image_ids: the images, in order, as text: first as the file names them, after matching as the store does.
        text: without surrounding whitespace.
        answers: the answers that people gave, any number; empty if answers are not published.
        kind: question type, empty if the file has none.
        answer_type: such as yes/no, number, other; empty if the file has none.
        file_names: file name, path or URL of each image; empty if the file has none.
        times: seconds of each image; empty if the file has none.
        written_ids: the images as the file names them, numbers as numbers; empty if these are `image_ids`.
        numbered: whether dimvl gave the id, since the file has none.
        is_video: whether `image_ids` is a video; after matching, its frames.

    """

    question_id: Id
    image_ids: tuple[str, ...]
    text: str
    answers: tuple[str, ...]
    kind: str = ""
    answer_type: str = ""
    file_names: tuple[str, ...] = ()
    times: tuple[float, ...] = ()
    written_ids: tuple[Id, ...] = ()
    numbered: bool = False
    is_video: bool = False

    @property
    def name(self) -> str:
        """The record in a message."""
        return f"question {self.question_id}"


@dataclass(frozen=True, slots=True)
class Choice(AboutImages):
    """One question about one or more images, and candidates of which one is right.

    Attributes:
        choice_id: its id in the file; a number that no other has if the file has none.
        image_ids: the images, in order, as text: first as the file names them, after matching as the store does.
        text: the question, without surrounding whitespace; empty if the candidates alone are compared.
        candidates: the texts to choose from, at least two.
        answer: place of the right one; None if it is not published.
        part: `answer`, or `rationale-2` for the rationales of answer 2, as in VCR, where parts share an id; else empty.
        file_names: file name, path or URL of each image; empty if the file has none.
        times: seconds of each image; empty if the file has none.
        written_ids: the images as the file names them, numbers as numbers; empty if these are `image_ids`.

    """

    choice_id: Id
    image_ids: tuple[str, ...]
    text: str
    candidates: tuple[str, ...]
    answer: int | None = None
    part: str = ""
    file_names: tuple[str, ...] = ()
    times: tuple[float, ...] = ()
    written_ids: tuple[Id, ...] = ()

    @property
    def name(self) -> str:
        """The record in a message."""
        return f"question {self.choice_id}"

    @property
    def texts(self) -> tuple[str, ...]:
        """The question followed by each candidate."""
        return tuple(f"{self.text} {candidate}".strip() for candidate in self.candidates)


@dataclass(frozen=True, slots=True)
class LabelledItem(AboutImages):
    """One or more images, with a text or without, to classify.

    Attributes:
        item_id: its id in the file; a number that no other item has if the file has none.
        image_ids: the images, in order, as text: first as the file names them, after matching as the store does.
        text: without surrounding whitespace; empty to classify by the images alone.
        labels: the labels that fit; None if they are not published.
        group: items of one group are right together or not at all, for consistency; empty for none.
        kind: such as binary or open, empty if the file has none.
        entailed: ids of the items whose labels follow from the label of this one.
        accepted: names of further scores, and the labels that are right for each.
        scored: whether it counts by itself; otherwise only as what another item entails.
        file_names: file name, path or URL of each image; empty if the file has none.
        times: seconds of each image; empty if the file has none.
        written_ids: the images as the file names them, numbers as numbers; empty if these are `image_ids`.
        numbered: whether dimvl gave the id, since the file has none.

    """

    item_id: Id
    image_ids: tuple[str, ...]
    text: str
    labels: tuple[str, ...] | None
    group: str = ""
    kind: str = ""
    entailed: tuple[str, ...] = ()
    accepted: tuple[tuple[str, Collection[str]], ...] = ()
    scored: bool = True
    file_names: tuple[str, ...] = ()
    times: tuple[float, ...] = ()
    written_ids: tuple[Id, ...] = ()
    numbered: bool = False

    @property
    def name(self) -> str:
        """The record in a message."""
        return f"item {self.item_id}"
