"""Text from outside (answers, captions, names of files and classes) on a terminal or in a message.

A terminal obeys escape sequences, a line feed forges a line, and some characters reorder the text around them; here
they become visible. JSON output stays exact and does not need this.
"""

import re
import reprlib
from collections.abc import Sequence

_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_NAMES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str) -> str:
    r"""Write characters that a terminal obeys, or that cannot be seen or encoded, as escapes such as `\x1b`."""
    return _OBEYED.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return _NAMES.get(found[0]) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 3, 100, 40, 100


def short(value: object) -> str:
    """Represent a value from outside in a message: no long text or number, no deep or wide nesting."""
    return _SHORT.repr(value)


def some(names: Sequence[str], shown: int = 3) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more:,} more" if more > 0 else "")


def with_others(name: object, number: int) -> str:
    """Return the first of a number of things, and how many others there are."""
    return f"{name!r}" + (f" and {number - 1:,} others" if number > 1 else "")


def reason(error: BaseException) -> str:
    """Return the first line of what a library says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, such as `1 image` and `2,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """Return minutes and seconds, and hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
