"""Reads a pickle that holds plain data only: lists, dicts, text, numbers, booleans and None.

Python's own reader runs what a pickle names, so it must never see a file from outside. This one knows the opcodes of
plain data and refuses every other: no module is imported, nothing is called, and no memory is reserved for what the
file only announces. Tuples become lists; byte strings, as Python 2 wrote its text, become text.

Published annotations that exist as a pickle only are read with it (`dimvl/data/annotations/refcoco.py`).
"""

import io
import pickletools
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.files.reading import read_bytes
from dimvl.showing import short

LARGEST = 2**29
"""Bytes; the largest known file of referring expressions has 60 million."""
_VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)
_BYTES = frozenset(("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"))
_OPCODES = {operation.code: operation for operation in pickletools.opcodes}
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": list,
    "EMPTY_DICT": dict,
}
_PUT, _GET = frozenset(("PUT", "BINPUT", "LONG_BINPUT")), frozenset(("GET", "BINGET", "LONG_BINGET"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of plain data.

    Raises:
        UserError: as `open_regular`, the file is not a pickle, or it holds anything else than plain data.

    """
    return parse_plain_pickle(read_bytes(path, LARGEST), path)


def parse_plain_pickle(data: bytes, place: Path | str) -> Any:
    """Do what `read_plain_pickle` does, with the content of a file."""
    try:
        return _Machine(io.BytesIO(data)).run()
    except _NotPlainError as error:
        raise UserError(
            f"{place} is a pickle with {error}, which is not plain data and may run a program; get the file from its "
            "publisher, or convert it to JSON where you trust it"
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, SyntaxError, RecursionError, MemoryError):
        raise UserError(f"{place} is not a whole pickle of plain data; check that it is the right file") from None


class _NotPlainError(Exception):
    """The pickle has an opcode that makes something else than plain data."""


class _Machine:
    """The stack and the memory of a pickle; `run` returns its value."""

    def __init__(self, file: io.BytesIO) -> None:
        self.file = file
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memory: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            code = self.file.read(1).decode("latin-1")
            operation = _OPCODES[code]  # a KeyError at the end of the file
            if operation.name == "STRING":
                self.stack.append(_python_2_text(self.file.readline()))
                continue
            argument = None if operation.arg is None else operation.arg.reader(self.file)
            if operation.name == "STOP":
                [value] = self.stack
                return value
            self.take(operation.name, argument)

    def take(self, name: str, argument: Any) -> None:
        """Apply one opcode."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _BYTES:
            self.stack.append(_text(argument if isinstance(argument, bytes) else argument.encode("latin-1")))
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif name in ("LIST", "TUPLE", "DICT"):
            items = self.marked()
            self.stack.append(_dict(items) if name == "DICT" else items)
        elif name in _TUPLES:
            items = [self.stack.pop() for _ in range(_TUPLES[name])]
            self.stack.append(items[::-1])
        elif name in ("APPEND", "APPENDS"):
            items = [self.stack.pop()] if name == "APPEND" else self.marked()
            self.stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self.stack.pop(), self.stack.pop()][::-1] if name == "SETITEM" else self.marked()
            self.stack[-1].update(_dict(items))
        elif name in _PUT or name == "MEMOIZE":
            self.memory[len(self.memory) if argument is None else argument] = self.stack[-1]
        elif name in _GET:
            self.stack.append(self.memory[argument])
        elif name not in ("PROTO", "FRAME"):
            raise _NotPlainError(name if name not in ("GLOBAL", "INST") else f"{name} {short(argument)}")

    def marked(self) -> list[Any]:
        """Return what is above the last mark, and take it and the mark away."""
        above, self.stack = self.stack, self.below.pop()
        return above


def _dict(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _python_2_text(line: bytes) -> str:
    """Return the text of a line that holds a quoted string, as Python 2 wrote it."""
    quoted = line.decode("latin-1").strip()
    if len(quoted) < 2 or quoted[0] != quoted[-1] or quoted[0] not in "'\"":
        raise ValueError("no string")
    value = literal_eval(quoted)
    if not isinstance(value, str):
        raise ValueError("no string")
    return _text(value.encode("latin-1"))


def _text(data: bytes) -> str:
    """Decode a byte string: UTF-8 or, if it is not, Latin-1."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
