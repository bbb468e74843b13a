"""The opener of every file that comes from outside, and the reader of its JSON.

A file is read only if it is a regular file (a named pipe would wait forever, a device never ends) and not larger than
any file of its kind can be. Each fault is one sentence.
"""

import gc
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dimvl.errors import UserError
from dimvl.showing import short

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""A name on the Hugging Face hub, without a revision: owner/name."""

LARGE = 2**33
"""Bytes: the largest file that is read whole, 8 GiB; the largest public annotation file has about 2."""
SMALL = 2**26
"""Bytes: the largest description of a model, a run or a store, 64 MiB; a vocabulary of a million words has half."""

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """The form of a JSON file of dimvl: no other keys, no conversion between types, finite numbers, no changes."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `UserError` that names the file or folder."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        what = "is a link to something that does not exist" if path.is_symlink() else "does not exist"
        raise UserError(f"{path} {what}; check the path") from None
    except (OSError, ValueError) as error:  # a null byte in a name is a ValueError
        if isinstance(error, UnicodeDecodeError):
            raise UserError(f"{path} is not UTF-8 text ({error.reason}); check that it is the right file") from None
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', error)}); check the path") from None


def open_regular(path: Path, limit: int = LARGE) -> io.BufferedReader:
    """Open a regular file for reading.

    Args:
        path: the file.
        limit: largest size in bytes.

    Raises:
        UserError: it is missing, a folder, a named pipe or a device, cannot be read, or is too large.

    """
    with reading(path):
        # Without O_NONBLOCK, opening a named pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        os.close(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} is a folder; give a file")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is a pipe or a device; give a file on disk")
        raise UserError(
            f"{path} has {status.st_size:,} bytes but such a file has at most {limit:,}; check that it is the right one"
        )
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int = LARGE) -> bytes:
    """Read a file whole; raises like `open_regular`."""
    with open_regular(path, limit) as file, reading(path):
        return file.read(os.fstat(file.fileno()).st_size)  # with a limit, that much memory would be allocated


def read_text(path: Path, limit: int = LARGE) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        UserError: as `open_regular`, or it is not UTF-8.

    """
    with reading(path):
        return read_bytes(path, limit).decode("utf-8-sig")


def read_json(path: Path, limit: int = LARGE) -> Any:
    """Read a JSON file, with or without a byte order mark.

    Raises:
        UserError: as `open_regular`, or it is not JSON.

    """
    return parse_json(read_bytes(path, limit), path)


def parse_json(data: bytes | str, place: Path | str, remedy: str = "check that it is the right file") -> Any:
    """Parse JSON.

    Args:
        data: UTF-8 with or without a byte order mark, or text.
        place: where it was read, for messages.
        remedy: what to do if it is not JSON.

    Raises:
        UserError: it is not JSON, or an object has a key twice, of which Python would drop the first in silence.

    """
    collecting = gc.isenabled()
    gc.disable()  # the collector would look at the growing value again and again, half of the time
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_without_repeated_keys)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, an endless number, nested too deep
        raise UserError(f"{place} is not valid JSON ({error}); {remedy}") from None
    finally:
        if collecting:
            gc.enable()


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {short(twice)} twice")
    return result


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file that a file from outside names, which must lie in a folder.

    Only the name is judged: a link in the folder may lead elsewhere, since it is the folder owner's own.

    Args:
        folder: where the file must be.
        name: a path relative to `folder`, or an absolute one inside it.

    Raises:
        UserError: the name leads out of the folder.

    """
    root, path = os.path.abspath(folder), os.path.abspath(folder / name)  # as text: `link/..` is where the link is
    if os.path.commonpath([root, path]) != root:
        raise UserError(
            f"{name} is outside the folder {folder}; put a link to it into that folder and name the link, or give a "
            "folder that contains it"
        )
    return folder / os.path.relpath(path, root)


def read_json_as(path: Path, model: type[Model], remedy: str) -> Model:
    """Read a small JSON file of a known form.

    Args:
        path: the file.
        model: its form.
        remedy: what to do if it does not have this form, for the message.

    Raises:
        UserError: as `read_json`, or a value is missing, unknown, of another type or out of range.

    """
    return check_values(read_json(path, SMALL), model, path, remedy)


def check_values(values: Any, model: type[Model], path: Path, remedy: str) -> Model:
    """Check values that were read from `path`; see `read_json_as`."""
    try:
        return model.model_validate_json(json.dumps(values))  # in JSON mode, a strict list becomes a tuple
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        given = "" if first["type"] == "missing" else f" is {short(first['input'])}"
        raise UserError(
            f"{path} is damaged or of another version ({where}{given}: {first['msg'].lower()}); {remedy}"
        ) from None
