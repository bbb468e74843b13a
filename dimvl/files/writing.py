"""Atomic writes, locks and the revision of the code.

Files get the mode that the user's umask asks for, whatever library wrote them.
"""

import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dimvl.errors import UserError

logger = logging.getLogger(__name__)
SILENT = 5.0
"""Seconds of waiting for a lock before a log line says so."""
_PARTIAL = re.compile(r"\.([^/]+)\.[0-9a-f]{8}\.part(?=/|$)")
"""A temporary name of `atomic_path` and `atomic_folder`; messages name what it becomes."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `UserError` that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{error.filename} is a symbolic link, which is not written through; remove it") from error
        shown = _PARTIAL.sub(r"\1", str(path))
        raise UserError(
            f"cannot write {shown}: {error.strerror or error}; free space or choose another path"
        ) from error


@contextmanager
def atomic_path(path: Path, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on a clean exit the file there is flushed to disk and replaces `path`.

    Args:
        path: the file to write.
        flush: whether to wait for the disk. If not, the file may be cut if the machine stops in the next seconds; call
            `os.sync()` after many small ones.

    Raises:
        UserError: the disk is full or the path is not writable; an existing file at `path` is unchanged.

    """
    temporary = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = _temporary(path)
            temporary.touch(exist_ok=False)
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            _finish(temporary, mode, flush)
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
            temporary = _temporary(path)
            temporary.mkdir()
            mode = stat.S_IMODE(temporary.stat().st_mode) & 0o666
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _finish(file, mode)
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


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _finish(file: Path, mode: int, flush: bool = True) -> None:
    """Flush a written file to disk, and give it the mode of a new file: libraries that write by renaming make 600."""
    file.chmod(mode)
    if flush:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def open_own(path: Path, mode: str) -> IO[Any]:
    """Open a file inside a folder of dimvl for writing; a link there is never followed.

    Raises:
        OSError: it is a link, or cannot be written.

    """
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


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
        _lock(descriptor, folder, busy, patience)
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Return whether another process, or another part of this one, holds the lock of a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int, folder: Path, busy: str | None, patience: float) -> None:
    start, is_told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - start
            if busy is not None and waited > patience:
                raise UserError(busy) from None
            if busy is None and waited > SILENT and not is_told:
                is_told = True
                logger.info("waiting for another process that writes in %s", folder)
            time.sleep(0.1)
            continue
        except OSError:
            pass  # a file system without locks
        return


@contextmanager
def pinned(folder: Path) -> Iterator[None]:
    """Keep `remove_unpinned` of any process from removing a folder; does nothing on a file system without locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # whoever reads in it says what is wrong
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def remove_unpinned(folder: Path) -> None:
    """Remove a folder with its files, unless a process has pinned it.

    Raises:
        UserError: it cannot be removed.

    """
    with writing(folder), suppress(FileNotFoundError):  # somebody else removes it
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # without locks, nothing is pinned
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
            shutil.rmtree(folder)
        finally:
            os.close(descriptor)


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


def git_revision() -> str | None:
    """Return the git revision of the code, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
