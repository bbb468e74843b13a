"""Files that are written whole or not at all, their checksums, and the revision of the code."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dimvl.errors import UserError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""A name on the Hugging Face hub, without a revision: owner/name."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write to a path as it is.

    Raises:
        UserError: the disk is full or the place cannot be written.

    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another place"
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on a clean exit it is flushed to disk and takes the place of `path`.

    Raises:
        UserError: the disk is full or the place cannot be written; what stood at `path` is untouched.

    """
    temporary = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
            os.close(handle)
            temporary = Path(name)
            temporary.chmod(0o644)  # mkstemp lets nobody else read
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, replace: bool = True) -> Iterator[Path]:
    """Give an empty temporary folder beside `path`; on a clean exit it takes the place of `path`.

    Args:
        path: of the folder.
        replace: whether it takes the place of one that is there by then; else that one stays, and this one is removed.

    Raises:
        UserError: the disk is full or the place cannot be written; what stood at `path` is untouched.

    """
    temporary = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
            temporary.chmod(0o755)
            if replace and path.exists():
                old = temporary.with_suffix(".old")
                os.replace(path, old)
                os.replace(temporary, path)
                shutil.rmtree(old)
                return
            try:
                os.replace(temporary, path)
            except OSError as error:
                if replace or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(folder: Path, busy: str | None = None, patience: float = 0.0) -> Iterator[None]:
    """Make a folder, and hold it for this process; the system lets go of it when the process ends, however.

    Where a file system has no locks, nothing is held.

    Args:
        folder: to hold.
        busy: what to tell where another process holds it; None to wait for that one.
        patience: seconds to wait before it is told.

    Raises:
        UserError: another process holds it, or it cannot be made.

    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, busy, time.monotonic() + patience)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, busy: str | None, until: float) -> None:
    how = fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0)
    while True:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            if time.monotonic() > until:
                raise UserError(busy) from None
            time.sleep(0.1)
            continue
        except OSError:
            pass  # a file system without locks
        return


def check_writable(folder: Path) -> None:
    """Find out before long work whether its results can be written.

    Raises:
        UserError: something stands in the way of the folder, or it may not be written to.

    """
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"cannot write {folder}: {nearest} is no folder; choose another place")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write {folder}: {nearest} may not be written to; choose another place")


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # \udce9 for half a surrogate pair


def read_json(path: Path) -> Any:
    """Read a JSON file; a byte order mark is taken off.

    Raises:
        UserError: the file is missing or is not JSON.

    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number without end, too many brackets
        raise UserError(f"{path} is not valid JSON ({error}); check that it is the right file") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_revision() -> str | None:
    """Revision of the code, if it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
