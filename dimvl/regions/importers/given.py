"""Files that accompany a source: vocabularies of class and attribute names, and sizes of images."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from dimvl.errors import UserError
from dimvl.fields import COCO, identifier, pixels, records
from dimvl.files import read_json, read_text
from dimvl.regions.store.format import number_of
from dimvl.regions.vocabulary import is_background
from dimvl.showing import short

MAX_NAMES = 2**15 - 1  # ids are int16
MAX_BYTES = 2**24
MATCHES = ("id", "file_name", "number")
SHOWN = 3


class ClashError(UserError):
    """What ends an import instead of skipping one image, since going on would pair images with wrong values."""


@dataclass(frozen=True)
class Vocabulary:
    """Names by id. Commas separate synonyms, of which the first is the name.

    Attributes:
        names: by id, without a background in first place.
        ids: by name and synonym.
        background: the first name of the file if it is the background, which is not a class; otherwise empty.
        path: the file.

    """

    names: tuple[str, ...] = ()
    ids: Mapping[str, int] = field(default_factory=dict)
    background: str = ""
    path: Path | None = None

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.names)

    def of_lines(self, ids: np.ndarray) -> np.ndarray:
        """Turn ids that count the lines of the file into ids; -1 for the background."""
        return np.where(ids >= 0, ids - 1, ids) if self.background else ids

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """Read a UTF-8 text file with one name per line."""
        try:
            lines = read_text(path, MAX_BYTES).splitlines()
        except UserError as error:
            raise UserError(f"vocabulary {error}") from None
        if not 0 < len(lines) <= MAX_NAMES:
            raise UserError(f"vocabulary {path} has {len(lines):,} names; give 1 to {MAX_NAMES:,}, one per line")
        rows = [[word.strip() for word in line.split(",")] for line in lines]
        for number, words in enumerate(rows, start=1):
            if not words[0]:
                raise UserError(f"vocabulary {path} has no name in line {number}; add it, because ids count the lines")
        background = rows[0][0] if is_background(rows[0][0]) else ""
        rows = rows[1:] if background else rows
        if not rows:
            raise UserError(f"vocabulary {path} has the name of the background only; add the others")
        ids: dict[str, int] = {}
        for number, words in enumerate(rows):
            for word in words:
                ids.setdefault(word, number)
        return cls(tuple(words[0] for words in rows), ids, background, path)


class _Listed(NamedTuple):
    """An image of a file of sizes."""

    image_id: str
    file_name: str
    size: tuple[int, int]


class Sizes:
    """Widths and heights of images from a COCO file, for sources without them.

    An image is found by its id, by the file name (with or without folders and ending), and by the number at the end of
    its id. If these find images of different sizes, only `match` can decide.

    Args:
        path: the file.
        match: the only rule to use, one of `MATCHES`; None for all.

    Raises:
        UserError: the file cannot be read or has another form.

    """

    def __init__(self, path: Path, match: str | None = None) -> None:
        if match not in (None, *MATCHES):
            raise UserError(f"--match is {match}; give {', '.join(MATCHES)}")
        self.path = path
        self.match = match
        self._used: set[_Listed] = set()
        self._by_id: dict[str, list[_Listed]] = {}
        self._by_name: dict[str, list[_Listed]] = {}
        for place, image in records(path, read_json(path), "images", ("id", "width", "height"), COCO):
            size = pixels(image, "width", place), pixels(image, "height", place)
            listed = _Listed(str(identifier(image["id"], "id", place)), str(image.get("file_name", "")), size)
            _add(self._by_id, [listed.image_id], listed)
            _add(self._by_name, _names(listed.file_name), listed)

    def of(self, image_id: str) -> tuple[int, int]:
        """Width and height of an image.

        Raises:
            UserError: the file lacks the image.
            ClashError: the file has two images of different sizes that it may be.

        """
        found = self._found(image_id)
        if not found:
            rule = f" by {self.match}" if self.match else ""
            raise UserError(f"sizes {self.path} lack image {short(image_id)}{rule}; give a file that lists it")
        if len({listed.size for listed in found}) > 1:
            raise ClashError(
                f"sizes {self.path} have more than one image for an id of the source: "
                f"{'; '.join(islice(self._disagreements(image_id), SHOWN))}; "
                f"say with --match which rule is right ({', '.join(MATCHES)}), or give sizes of this source's images"
            )
        self._used.update(found)
        return found[0].size

    @property
    def unused(self) -> int:
        """Number of images in the file whose size was not asked for."""
        return len(set(chain.from_iterable(self._by_id.values()))) - len(self._used)

    def _found(self, image_id: str) -> list[_Listed]:
        """Images that the rules find, best rule first."""
        rules = {
            "id": self._by_id.get(image_id, ()),
            "file_name": self._by_name.get(image_id, ()),
            "number": self._by_id.get(number_of(image_id) or "", ()),
        }
        return list(chain.from_iterable(rules[name] for name in MATCHES if self.match in (None, name)))

    def _disagreements(self, image_id: str) -> Iterator[str]:
        """Describe ids for which the rules find images of different sizes, first that of an image."""
        told = set()
        for text in dict.fromkeys(chain([image_id], self._by_name, self._by_id)):
            found = dict.fromkeys(self._found(text))
            if len({listed.size for listed in found}) > 1 and frozenset(found) not in told:
                told.add(frozenset(found))
                yield f"{short(text)} may be {' or '.join(map(_description, islice(found, SHOWN)))}"


def _description(listed: _Listed) -> str:
    name = f" ({short(listed.file_name)})" if listed.file_name else ""
    return f"id {short(listed.image_id)}{name} of {listed.size[0]} x {listed.size[1]}"


def _add(table: dict[str, list[_Listed]], keys: Iterable[str], listed: _Listed) -> None:
    for key in keys:
        table.setdefault(key, []).append(listed)


def _names(file_name: str) -> set[str]:
    """The texts that name a file: with and without its folders, with and without its ending."""
    path = PurePosixPath(file_name)
    return {file_name, str(path.with_suffix("")), path.name, path.stem} if path.name else set()
