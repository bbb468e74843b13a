"""Checks of the values in annotation files; each mistake becomes one sentence.

`place` says where a value was read, such as `captions.tsv, line 7`; every message begins with it.
"""

import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dimvl.errors import UserError

FORMATS = "docs/annotations.md shows every format"
_NUMBER = re.compile(r"-?[0-9]{1,19}")
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_INT64 = range(-(2**63), 2**63)


def mapping(value: Any, fields: Sequence[str], place: str) -> dict[str, Any]:
    """Return a JSON object that has all the fields.

    Raises:
        UserError: the value is not an object, or a field is missing.

    """
    if not isinstance(value, dict):
        raise UserError(f"{place} is not a JSON object; {FORMATS}")
    for field in fields:
        if field not in value:
            raise UserError(f"{place} has no field {field!r}; {FORMATS}")
    return value


def records(path: Path, content: Any, key: str, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and value of each item of the list `key`, after checking its fields.

    Raises:
        UserError: the list or a field is missing.

    """
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise UserError(f"{path} has no list {key!r}; {FORMATS}")
    for number, record in enumerate(content[key]):
        place = f"{path}: item {number} of {key!r}"
        yield place, mapping(record, fields, place)


def whole_number(value: Any, name: str, place: str) -> int:
    """Return an id that fits in 64 bits; numbers written as text or as 5.0 are accepted.

    Raises:
        UserError: it is not a whole number, or too large.

    """
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{place}: {name} {reprlib.repr(value)} is not a whole number; number the items")
    if value not in _INT64:
        raise UserError(f"{place}: {name} {reprlib.repr(value)} does not fit in 64 bits; renumber the items")
    return value


def image_name(value: Any, place: str, name: str = "image_id") -> str:
    """Return an image's id or file name as text.

    Raises:
        UserError: it is neither a whole number nor text without control characters.

    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip() and not _CONTROL.search(value) and not _SURROGATE.search(value):
        return value
    raise UserError(
        f"{place}: {name} {reprlib.repr(value)} does not name an image; give a whole number, or text without control "
        "characters"
    )


def words(value: Any, name: str, place: str) -> str:
    """Return a text that is not empty, stripped of surrounding whitespace.

    Raises:
        UserError: it is not text, empty, or not valid Unicode.

    """
    if not isinstance(value, str):
        raise UserError(f"{place}: {name} is {reprlib.repr(value)}, not text; fix or remove it")
    if _SURROGATE.search(value):
        raise UserError(f"{place}: {name} is not valid Unicode ({reprlib.repr(value)}); fix or remove it")
    if not value.strip():
        raise UserError(f"{place}: {name} is empty; remove it")
    return value.strip()


def label(value: Any, name: str, place: str) -> str:
    """Return an answer or a type as text; it may be empty, and whole numbers are accepted.

    Raises:
        UserError: it is neither text nor a whole number.

    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or _SURROGATE.search(value):
        raise UserError(f"{place}: {name} is {reprlib.repr(value)}, not text; fix or remove it")
    return value


class Once:
    """Refuses a value that was seen before."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: set[int | str] = set()

    def check(self, value: int | str, place: str) -> None:
        """Remember `value`.

        Raises:
            UserError: it was seen before.

        """
        if value in self.seen:
            raise UserError(f"{place}: {self.name} {value!r} appears twice; remove or renumber one")
        self.seen.add(value)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of each line that is not blank, without CRLF and byte order mark.

    Raises:
        UserError: the file is missing, cannot be read, or is not UTF-8.

    """
    try:
        # newline="\n": only line feeds end a line, since captions may contain other characters that Python splits at.
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); check that it is the right file") from None
