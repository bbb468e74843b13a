"""Checks of the values in JSON files of other people: annotations, COCO files, predictions; a mistake is one sentence.

`place` says where a value was read, such as `captions.tsv, line 7`; every message begins with it.

**Ids** of images, captions, questions and predictions are numbers or text, and stay what they are until they are
written again. Two of them are the same id if `str` gives the same text: 7, 7.0 and "7" are one id, "07" is another.
"""

import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.files import open_regular, reading
from dimvl.showing import short

FORMATS = "docs/annotations.md shows every format"
COCO = "give a COCO annotation file"
"""What can be done about a file of another format where only COCO's is read."""
Id = int | str
"""An id as its file writes it; see above for what is the same id."""
LONGEST_ID = 5_000
"""Characters of an id, which may be a URL."""
LONGEST_TEXT = 100_000
"""Characters of a caption, question or answer: a thousand times what models read; tokenising more takes seconds."""
LONGEST_LINE = 10**7
"""Characters of a line."""
_EXACT = 2**53
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def mapping(value: Any, fields: Sequence[str], place: str, remedy: str = FORMATS) -> dict[str, Any]:
    """Return a JSON object that has all the fields.

    Raises:
        UserError: the value is not an object, or a field is missing; `remedy` says what to do.

    """
    if not isinstance(value, dict):
        raise UserError(f"{place} is not a JSON object; {remedy}")
    for field in fields:
        if field not in value:
            raise UserError(f"{place} has no field {field!r}; {remedy}")
    return value


def items(value: Any, name: str, place: str) -> list[Any]:
    """Return a JSON list.

    Raises:
        UserError: it is something else.

    """
    if not isinstance(value, list):
        raise UserError(f"{place}: {name} is {short(value)}, not a list; write it in brackets, see docs/annotations.md")
    return value


def records(
    path: Path, content: Any, key: str, fields: Sequence[str], remedy: str = FORMATS
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and value of each item of the list `key`, after checking its fields.

    Raises:
        UserError: the list or a field is missing.

    """
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise UserError(f"{path} has no list {key!r}; {remedy}")
    for number, record in enumerate(content[key]):
        place = f"{path}: item {number} of {key!r}"
        yield place, mapping(record, fields, place, remedy)


def identifier(value: Any, name: str, place: str) -> Id:
    """Return the id of an image, a caption or a question, or a file name, as it is written; 5.0 becomes 5.

    Raises:
        UserError: it is neither a whole number nor text without control characters, or too long.

    """
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        value = int(value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    is_text = isinstance(value, str) and not is_blank(value) and not _CONTROL.search(value)
    if not is_number and (not is_text or _SURROGATE.search(value)):
        raise UserError(
            f"{place}: {name} {short(value)} is not an id; give a whole number, or text without control characters"
        )
    if len(str(value)) > LONGEST_ID:
        raise UserError(f"{place}: {name} {short(value)} has more than {LONGEST_ID:,} characters; give a shorter one")
    return int(value) if is_number else str(value)


def pixels(record: dict[str, Any], name: str, place: str) -> int:
    """Return the width or height of an image.

    Raises:
        UserError: it is not a whole number from 1.

    """
    value = record[name]
    if type(value) not in (int, float) or not 1 <= value < 2**32 or value != int(value):
        raise UserError(f"{place} has {name} {short(value)}; give its size in whole pixels")
    return int(value)


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: only spaces, control, format and combining characters.

    Tokenizers make no token of these. A zero-width space is such a character.
    """
    return all(unicodedata.category(character)[0] in "ZCM" for character in text)


def words(value: Any, name: str, place: str) -> str:
    """Return a text that is not blank, stripped of surrounding whitespace.

    Raises:
        UserError: it is not text, blank, too long, or not valid Unicode.

    """
    if not isinstance(value, str):
        raise _not_text(value, name, place)
    text = label(value, name, place)
    if is_blank(text):
        characters = f" (it has only {short(text)})" if text.strip() else ""
        raise UserError(f"{place}: {name} is empty{characters}; remove it")
    return text.strip()


def label(value: Any, name: str, place: str) -> str:
    """Return an answer or a type as text; it may be empty, and whole numbers are accepted.

    Raises:
        UserError: it is neither text nor a whole number, too long, or not valid Unicode.

    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _not_text(value, name, place)
    if len(value) > LONGEST_TEXT:
        raise UserError(
            f"{place}: {name} has {len(value):,} characters, more than {LONGEST_TEXT:,}; shorten or remove it"
        )
    if _SURROGATE.search(value):
        raise UserError(f"{place}: {name} is not valid Unicode ({short(value)}); fix or remove it")
    return value


def _not_text(value: Any, name: str, place: str) -> UserError:
    return UserError(f"{place}: {name} is {short(value)}, not text; fix or remove it")


def check_candidates(candidates: Sequence[str], place: str, twins: bool = False, answer: int | None = None) -> None:
    """Check that there is a choice.

    Args:
        candidates: the texts.
        place: what has them, for messages.
        twins: whether wrong candidates may be equal, as in files whose authors drew them.
        answer: place of the right one.

    Raises:
        UserError: fewer than two, or two that are equal.

    """
    if len(candidates) < 2:
        only = f"only the candidate {short(candidates[0])}" if candidates else "no candidates"
        raise UserError(f"{place} has {only}; give at least two")
    for number, text in enumerate(candidates):
        first = candidates.index(text)
        if first < number and (not twins or answer in (first, number)):
            raise UserError(f"{place}: candidates {first} and {number} are both {short(text)}; change or remove one")


def place_of_answer(value: Any, number: int, name: str, place: str) -> int:
    """Return the place of the right one of `number` candidates; a `UserError` if it is not one."""
    if type(value) is not int or not 0 <= value < number:
        raise UserError(f"{place}: {name} is {short(value)}; give the number of a candidate, 0 to {number - 1}")
    return value


class Once:
    """Refuses an id that was seen before."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: set[str] = set()

    def check(self, value: Id, place: str) -> None:
        """Remember `value`.

        Raises:
            UserError: it was seen before.

        """
        if str(value) in self.seen:
            raise UserError(f"{place}: {self.name} {value!r} appears twice; remove or renumber one")
        self.seen.add(str(value))


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of each line that is not blank, without CRLF and byte order mark.

    Raises:
        UserError: as `open_regular`, the file is not UTF-8, or a line is too long.

    """
    # newline="\n": only line feeds end a line, since captions may contain other characters that Python splits at.
    with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="\n") as file:
        for number in count(1):
            with reading(path):
                line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise UserError(
                    f"{path}, line {number} has more than {LONGEST_LINE:,} characters; check that it is the right file"
                )
            if line.strip():
                yield number, line.rstrip("\r\n")
