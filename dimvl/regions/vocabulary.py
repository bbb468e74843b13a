"""Vocabulary files: the names of classes, attributes or things to look for, one per line.

Every command reads them here: `extract --classes` and `--vocabulary`, `import --classes` and `--attributes`, `export`.
Ids count the lines from 0, so a line that is empty or there twice is never passed over: it is an error.

Detectors and published lists often have a name in first place that stands for no class: background, unknown, padding.
Numbers that count it and names that do not are one apart, which shifts every class. So `Vocabulary.read` drops such a
first name, says so, and remembers it: a source whose ids count the lines uses `of_lines`.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from dimvl.errors import UserError
from dimvl.files import read_text
from dimvl.showing import short, some

log = logging.getLogger(__name__)

MAX_NAMES = 2**15 - 1  # ids are int16
MAX_BYTES = 2**24
_NO_CLASS = frozenset(
    {
        *("background", "backgroundclass", "bg", "unknown", "unk", "none", "na", "null", "nil", "nothing", "void"),
        *("noobject", "notanobject", "nonobject", "noobj", "noclass", "unlabeled", "unlabelled", "ignore", "ignored"),
        *("noattribute", "noattributes"),
        *("pad", "padding", "dummy", "placeholder"),
    }
)
_MARKS = re.compile(r"[\W_]+")


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
    def read(cls, path: Path, kind: Literal["class", "attribute"] = "class") -> "Vocabulary":
        """Read a UTF-8 text file with one name per line; empty lines at its end do not count.

        Args:
            path: the file.
            kind: what the names are of, for messages.

        Raises:
            UserError: the file cannot be read, has no or too many names, or a line is empty or there twice.

        """
        try:
            lines = re.split(r"\r\n|\n|\r", read_text(path, MAX_BYTES).rstrip())
        except UserError as error:
            raise UserError(f"vocabulary {error}") from None
        lines = [] if lines == [""] else lines
        if not 0 < len(lines) <= MAX_NAMES:
            raise UserError(f"vocabulary {path} has {len(lines):,} names; give 1 to {MAX_NAMES:,}, one per line")
        rows = [[word.strip() for word in line.split(",")] for line in lines]
        _check(path, [words[0] for words in rows])
        background = rows[0][0] if is_background(rows[0][0]) else ""
        rows = rows[1:] if background else rows
        if not rows:
            raise UserError(f"vocabulary {path} has the name of the background only; add the others")
        names = tuple(words[0] for words in rows)
        if background:
            log.warning(
                "vocabulary %s begins with %r, which is no %s: it gets no id, and %s 0 is %r",
                *(path, background, kind, kind, names[0]),
            )
        ids = {name: number for number, name in enumerate(names)}
        for number, words in enumerate(rows):
            for word in words[1:]:
                ids.setdefault(word, number)
        return cls(names, ids, background, path)


def _check(path: Path, names: list[str]) -> None:
    """Refuse empty names and names that are there twice; the message has the numbers of their lines."""
    if "" in names:
        numbers = [str(number) for number, name in enumerate(names, start=1) if not name]
        raise UserError(
            f"vocabulary {path} has no name in line {some(numbers)}; write the name that belongs there, or remove the "
            "line if no file refers to names by their number"
        )
    if len(set(names)) < len(names):
        lines: dict[str, list[int]] = {}
        for number, name in enumerate(names, start=1):
            lines.setdefault(name, []).append(number)
        twice = [
            f"{short(name)} in lines {' and '.join(map(str, where[:2]))}" for name, where in lines.items() if where[1:]
        ]
        raise UserError(
            f"vocabulary {path} has names twice: {some(twice)}; make them differ, or remove a line if no "
            "file refers to names by their number"
        )


def is_background(name: str) -> bool:
    """Whether a name stands for no class, in any usual spelling: `__background__`, `BG`, `<unk>`, `N/A`, `no object`.

    A name without a letter or digit, such as `-`, does too.
    """
    plain = _MARKS.sub("", name.casefold())
    return not plain or plain in _NO_CLASS
