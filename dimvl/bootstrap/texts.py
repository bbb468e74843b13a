"""The captions to filter, streamed image by image: each matched with a region store, whatever the size of the file.

JSON lines are never held in memory; files of other formats are read whole, as for training.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dimvl.bootstrap.config import BootstrapConfig
from dimvl.config import Match
from dimvl.data.annotations import Caption, compared, read_captions
from dimvl.data.annotations.jsonl import jsonl_records
from dimvl.data.matching import RULES, match_file
from dimvl.data.processor import Processor
from dimvl.errors import UserError
from dimvl.fields import label, words
from dimvl.files import sha256
from dimvl.regions.store import RegionStore
from dimvl.regions.store.format import encode_id, hash_of_id
from dimvl.showing import counted, with_others

AT_ONCE = 4096
"""Captions that are looked up in the store at once."""
NOT_CARRIED = frozenset({"id", "image", "images", "times", "caption", "cut"})
"""Fields of a line that the line written for it does not take over: its image gets the store's id, ids of several files
may be equal, and an earlier filter may have read less of the caption."""


class WebText(NamedTuple):
    """A caption, and the further fields of its line."""

    caption: Caption
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class ImageTexts:
    """Consecutive captions of one image.

    Attributes:
        image_id: the image in the store.
        position: its position in the store.
        texts: the captions with the further fields of their lines.
        file: number of the file they are from, from 0.
        first: whether no earlier captions are of this image.

    """

    image_id: str
    position: int
    texts: tuple[WebText, ...]
    file: int
    first: bool


class WebTexts:
    """The captions of all files, in their order, those of an image that follow each other together.

    Memory does not grow with the captions of JSON lines; it takes nine bytes for each image of the store.

    Args:
        config: names the files.
        store: the regions.
        limits: what the filter accepts.

    Attributes:
        checksums: SHA-256 of each file.
        captions: captions of the last iteration, once it has ended.
        missing: those of them whose image is not in the store.
        synthetic: those of the others that an earlier `dimvl bootstrap` wrote.
        example: the first such image.

    Raises:
        UserError: as `read_captions` and `match_file`.

    """

    def __init__(self, config: BootstrapConfig, store: RegionStore, limits: Processor) -> None:
        self._files, self._split, self._store = config.captions, config.split, store
        self.checksums = [sha256(path) for path in self._files]
        self.rules = [self._rule(path, limits, config.match) for path in self._files]
        self.captions = self.missing = self.synthetic = 0
        self.example = ""

    def _rule(self, path: Path, limits: Processor, wanted: Match) -> str:
        """Choose how images are found, by the first captions of a file."""
        first = [text.caption for text in islice(self._read(path), AT_ONCE)]
        return match_file(path, first, self._store, limits, wanted, "match=").rule

    def __iter__(self) -> Iterator[ImageTexts]:
        """Yield the captions of each image.

        Raises:
            UserError: a mistake in a file, a caption about several images, or two images of a file that would be one.

        """
        self.captions, self.missing, self.synthetic, self.example = 0, 0, 0, ""
        seen = np.zeros(len(self._store), dtype=bool)
        for file, (path, rule) in enumerate(zip(self._files, self.rules, strict=True)):
            for position, matched in groupby(self._matched(path, rule), key=lambda found: found[0]):
                texts = tuple(text for _, text in matched)
                yield ImageTexts(self._store.image_id(position), position, texts, file, not seen[position])
                seen[position] = True

    def _matched(self, path: Path, rule: str) -> Iterator[tuple[int, WebText]]:
        """Yield the captions of a file whose image is in the store, with its position there."""
        owners = np.zeros(len(self._store), dtype=np.uint64)  # hash of the id by which the file names the image
        read = self._read(path)
        while texts := list(islice(read, AT_ONCE)):
            named = [(text.caption.image_ids[0], *text.caption.file_names[:1], "")[:2] for text in texts]
            positions = self._store.find([RULES[rule](*names) for names in named])
            self.captions += len(texts)
            self.missing += int((positions < 0).sum())
            for position, (image, _), text in zip(positions.tolist(), named, texts, strict=True):
                if position < 0:
                    self.example = self.example or image
                    continue
                owner = np.uint64(hash_of_id(encode_id(image)))
                if owners[position] not in (0, owner):
                    raise UserError(
                        f"{path}: by {rule}, image {image!r} and another would both be image "
                        f"{self._store.image_id(position)!r} of the store; choose another rule with match="
                    )
                owners[position] = owner
                self.synthetic += text.fields.get("origin") == "synthetic"
                yield position, text

    def _read(self, path: Path) -> Iterator[WebText]:
        if path.suffix.lower() != ".jsonl":
            captions = read_captions(path, self._split)
            for caption in (one for group in compared(captions) for one in group):
                _check_single(caption, str(path))
                yield WebText(caption, {})
        elif self._split:
            raise UserError(f"{path} has no splits, but split is {', '.join(self._split)}; remove it")
        else:
            yield from _json_lines(path)

    def check_missing(self, path: object, error: bool) -> None:
        """Refuse captions, all of which were read, that lack an image in the store.

        Raises:
            UserError: there are some, and `error`; or there are no others.

        """
        if self.missing and (error or self.missing == self.captions):
            raise UserError(
                f"region store {self._store.path} lacks the images of {self.missing:,} of the "
                f"{counted(self.captions, 'caption')} of {path}, such as {with_others(self.example, 1)}; extract the "
                "regions of these images, or drop their captions with missing=skip"
            )


def _json_lines(path: Path) -> Iterator[WebText]:
    """Yield the captions of JSON lines, one at a time."""
    for number, (place, record, _, (images, _)) in enumerate(jsonl_records(path, ("caption",))):
        text = words(record["caption"], "caption", place)
        caption = Caption(number, images, text, images)
        _check_single(caption, place)
        fields = {name: value for name, value in record.items() if name not in NOT_CARRIED}
        if "origin" in fields:
            fields["origin"] = label(fields["origin"], "origin", place)
        yield WebText(caption, fields)


def _check_single(caption: Caption, place: str) -> None:
    if len(caption.image_ids) > 1 or caption.is_video:
        what = "a video" if caption.is_video else counted(len(caption.image_ids), "image")
        raise UserError(f"{place}: {caption.name} is about {what}; give captions about one image each")


def read_sample(
    path: Path, store: RegionStore, limits: Processor, rule: Match
) -> tuple[list[tuple[int, str]], list[bool]]:
    """Read texts that people judged: the position of the image in the store and the text of each, and whether it fits.

    Raises:
        UserError: as `match_file`; or a line has no label, or an image is not in the store.

    """
    texts = list(_json_lines(path))
    labels = list[bool]()
    for number, text in enumerate(texts, start=1):
        own = text.fields.get("label")
        if not isinstance(own, bool):
            raise UserError(f"{path}: caption {number} has no label true or false; give each of them one")
        labels.append(own)
    match = match_file(path, [text.caption for text in texts], store, limits, rule, "match=")
    match.check(store, "error", "a smaller sample")
    ids = [match.store_ids[text.caption.image_id] for text in texts]
    return list(zip(store.positions(ids).tolist(), (text.caption.text for text in texts), strict=True)), labels


def blocks(texts: Iterable[ImageTexts], size: int) -> Iterator[tuple[int, list[ImageTexts]]]:
    """Yield number, from 0, and content of each block of `size` images; the last may have fewer."""
    left, number = iter(texts), 0
    while block := list(islice(left, size)):
        yield number, block
        number += 1
