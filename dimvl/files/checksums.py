"""Checksums: of a file, of a JSON file or a line of JSON in itself, and of all files of a folder.

Stores, exports, runs and checkpoints use these, so that a flipped bit anywhere is an error and never another result.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dimvl.errors import UserError
from dimvl.files.reading import (
    SMALL,
    Model,
    Strict,
    check_values,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    reading,
)
from dimvl.files.writing import atomic_path

CHECKSUMS = "checksums.json"
RESTORE = "restore it from a copy of the folder"
"""What can be done about a damaged file of a run or an export."""
_KEY = b'"checksum": "'
_ZEROS = b"0" * 64
_CRC = ', "crc": "'
_CUT_OFF = re.compile(rb'(?:(?!, "crc": ")[ -~])*(?:, "crc": "[0-9a-f]{0,8}"?)?')
"""The beginning of a line, or nothing: JSON in ASCII, and then at most the value of `crc`."""


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileChecksum(Strict):
    """Size and SHA-256 of a file, or of the part of it that is in use."""

    num_bytes: int = Field(ge=0, lt=2**48)
    sha256: Sha256


class FolderChecksums(Strict):
    """The content of `checksums.json`: path in the folder, with forward slashes -> its checksum."""

    files: dict[str, FileChecksum]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file in hexadecimal; raises like `open_regular`."""
    with open_regular(path, limit=2**62) as file, reading(path):
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON atomically; its last key, `checksum`, is the SHA-256 of the file with 64 zeros in its place."""
    text = json.dumps({**values, "checksum": _ZEROS.decode()}, indent=2, ensure_ascii=False) + "\n"
    before, zeros, after = text.encode("utf-8", "backslashreplace").rpartition(_ZEROS)
    checksum = hashlib.sha256(before + zeros + after).hexdigest().encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(before + checksum + after)


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the checksum.

    Args:
        path: the file.
        remedy: what to do if it is damaged, for the message.

    Raises:
        UserError: it is missing or damaged.

    """
    data = read_bytes(path, SMALL)
    before, key, after = data.rpartition(_KEY)
    whole = hashlib.sha256(before + key + _ZEROS + after[len(_ZEROS) :]).hexdigest().encode()
    if not key or after[: len(_ZEROS)] != whole:
        raise UserError(f"{path} is damaged: it does not match the checksum at its end; {remedy}")
    values = parse_json(data, path)
    return {name: value for name, value in values.items() if name != "checksum"}


def read_sealed_as(path: Path, model: type[Model], remedy: str) -> Model:
    """Read a JSON file of a known form, sealed, or by an older version and without a checksum.

    Raises:
        UserError: as `read_sealed` and `read_json_as`.

    """
    sealed = _KEY in read_bytes(path, SMALL)
    return check_values(read_sealed(path, remedy) if sealed else read_json(path, SMALL), model, path, remedy)


def sealed_line(values: Mapping[str, Any]) -> str:
    """Return a line of JSON whose last key, `crc`, is the CRC-32 of the line without it."""
    text = json.dumps(values)
    return f'{text[:-1]}{_CRC}{zlib.crc32(text.encode()):08x}"}}\n'


def read_lines(path: Path, number: str) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Read lines from `sealed_line`, or plain JSON objects that do not end in a text, as older versions wrote.

    Args:
        path: the file.
        number: a key of every object, whose value is a whole number.

    Returns:
        The objects without `crc`, and the damaged lines; a last line that a kill or a full disk cut off is neither.
        Such a line ends within what `sealed_line` writes.

    Raises:
        UserError: as `open_regular`.

    """
    lines = read_bytes(path).split(b"\n")
    if _parse_line(lines[-1][:-1], number):  # its line feed is damaged
        lines = [*lines[:-1], lines[-1][:-1], b""]
    parsed = [_parse_line(line, number) for line in lines]
    whole = lines if not _CUT_OFF.fullmatch(lines[-1]) else lines[:-1]
    damaged = [line for line, values in zip(whole, parsed, strict=False) if values is None]
    return [values for values in parsed if values is not None], damaged


def _parse_line(line: bytes, number: str) -> dict[str, Any] | None:
    if line.endswith(b'"}'):
        before, _, crc = line.rpartition(_CRC.encode())
        line = before + b"}"
        if crc != f'{zlib.crc32(line):08x}"}}'.encode():
            return None
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and type(values.get(number)) is int else None


def seal_folder(folder: Path, names: Iterable[str]) -> None:
    """Write `checksums.json` of some files of a folder: paths in the folder, with forward slashes."""
    files = {name: {"num_bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names}
    write_sealed(folder / CHECKSUMS, {"files": files})


def folder_checksums(folder: Path, remedy: str) -> dict[str, FileChecksum]:
    """Read `checksums.json`; raises like `read_sealed`, or if it names a file outside the folder."""
    path = folder / CHECKSUMS
    files = check_values(read_sealed(path, remedy), FolderChecksums, path, remedy).files
    if outside := [
        name for name in files if not Path(name).parts or ".." in Path(name).parts or Path(name).is_absolute()
    ]:
        raise UserError(f"{path} names {outside[0]!r}, which is not a file in its folder; {remedy}")
    return files


def check_folder(folder: Path, remedy: str, names: Iterable[str] | None = None) -> None:
    """Compare files of a folder with its `checksums.json`: all, or those in `names`.

    Raises:
        UserError: one is missing, has no checksum, or differs.

    """
    files = folder_checksums(folder, remedy)
    for name in files if names is None else names:
        path = folder / name
        if name not in files:
            raise UserError(f"{path} has no checksum in {folder / CHECKSUMS}; {remedy}")
        if not path.is_file():
            raise UserError(f"{folder} lacks {name}; {remedy}")
        if path.stat().st_size != files[name].num_bytes or sha256(path) != files[name].sha256:
            raise UserError(f"{path} is damaged: it does not match its checksum; {remedy}")
