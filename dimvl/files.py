"""Atomic writes, locks, JSON, checksums and the revision of the code."""

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
    """Turn an `OSError` of the block into a `UserError` that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free space or choose another path") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on a clean exit the file there is flushed to disk and replaces `path`.

    Raises:
        UserError: the disk is full or the path is not writable; an existing file at `path` is unchanged.

    """
    temporary = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
            os.close(handle)
            temporary = Path(name)
            temporary.chmod(0o644)  # mkstemp makes the file private
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, replace: bool = True) -> Iterator[Path]:
    """Yield an empty temporary folder next to `path`; on a clean exit it is flushed to disk and becomes `path`.

    Args:
        path: the folder to write.
        replace: whether to replace a folder that exists by then; otherwise that one stays and the new one is removed.

    Raises:
        UserError: the disk is full or the path is not writable; an existing folder at `path` is unchanged.

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
    """Create a folder and lock it for this process; the system releases the lock when the process ends in any way.

    On a file system without locks this does nothing more than create the folder.

    Args:
        folder: the folder to lock.
        busy: the error message if another process holds the lock; None waits for that process instead.
        patience: seconds to wait before that error.

    Raises:
        UserError: another process holds the lock, or the folder cannot be created.

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
    """Check before long work that its results can be written.

    Raises:
        UserError: a file is in the way of the folder, or the folder is not writable.

    """
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"cannot write {folder}: {nearest} is not a folder; choose another path")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write {folder}: {nearest} is not writable; choose another path")


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_path(path) as temporary:
        text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a surrogate pair becomes \udce9


def read_json(path: Path) -> Any:
    """Read a JSON file, with or without a byte order mark.

    Raises:
        UserError: the file is missing or is not JSON.

    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, an endless number, nested too deep
        raise UserError(f"{path} is not valid JSON ({error}); check that it is the right file") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_revision() -> str | None:
    """Return the git revision of the code, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
