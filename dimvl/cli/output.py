"""Standard output and standard error of a command, whatever they lead to.

Results that cannot be written are an error. A reader that has seen enough, such as `head -1`, ends the command quietly.
Messages that cannot be written change nothing.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from dimvl.errors import UserError


class OutputClosed(Exception):  # noqa: N818 - not an error: the reader of standard output needs no more
    """The other end of standard output is closed."""


@contextmanager
def standard_streams() -> Iterator[None]:
    """Make `sys.stdout` and `sys.stderr` streams whose writing fails as this module says.

    `sys.stdout` then raises a `UserError` if results cannot be written, and `OutputClosed` if nobody reads them.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # its encoding may lack a character of a caption
    sys.stdout, sys.stderr = _Stream(before[0], _refuse), _Stream(before[1], _ignore)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            try:
                stream.flush()
            except OSError:  # Python would try again when it exits, and report that
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_closed() -> None:
    """Lead closed standard streams to nowhere; otherwise the next file to be opened would get their messages."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


class _Stream:
    """A text stream that passes its errors to a function."""

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream, self._failed = stream, failed

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _refuse(error: OSError) -> None:
    if error.errno == errno.EPIPE:
        raise OutputClosed from None
    raise UserError(f"standard output cannot be written ({error.strerror}); free space, or send it elsewhere") from None


def _ignore(error: OSError) -> None:
    """Nobody can be told."""
