"""WebDataset shards: tar files with an image and its texts per sample, `KEY.jpg`, `KEY.txt`, `KEY.json`.

A shard is read by its headers, from beginning to end; images are read when they are needed, from where they lie. The id
of an image is its path in the file without a known ending, which is WebDataset's key. Links are never followed, and
nothing is unpacked to disk.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.fields import LONGEST_TEXT
from dimvl.files import open_regular, parse_json, reading
from dimvl.regions.images import MAX_FILE_BYTES
from dimvl.regions.listing import START_BYTES, id_of_name, kind_of
from dimvl.regions.sources.base import Packed
from dimvl.regions.sources.shards import LARGEST_SHARD, ShardImage, Shards, ShardText

LONGEST_HEADER = 2**20
"""Bytes of the headers of a member: long names and attributes."""
LONGEST_MEMBER_TEXT = 8 * LONGEST_TEXT
"""Bytes of a `.txt` or `.json` that are read."""


class TarShards(Shards):
    """Tar files of images."""

    def images_in(self, file: Path) -> Iterator[ShardImage]:
        """Yield the images of a shard by their headers."""
        shard = _Shard(file)
        for member, problem in _members(shard):
            name, image = member.name.removeprefix("./"), Packed(f"{member.name} in {file}", lambda: b"")
            end = member.offset_data + member.size
            if problem:
                yield ShardImage("", image, end, problem)
                continue
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                self.passed.links += 1
                continue
            base = name.rpartition("/")[2]
            if base.startswith("."):
                self.passed.hidden += 1
                continue
            kind = kind_of(base, partial(shard.read, member.offset_data, min(START_BYTES, member.size)))
            if kind == "unread":
                self.passed.unread.append(name)
            elif kind == "other":
                self.passed.others += 1
            else:
                image.read = partial(_content, shard, member.offset_data, member.size, image.name)
                yield ShardImage(name[: len(name) - len(base)] + id_of_name(base), image, end)

    def texts_in(self, file: Path, field: str | None) -> Iterator[ShardText]:
        """Yield the content of `KEY.txt`, or a field of `KEY.json`."""
        shard, ending = _Shard(file), ".txt" if field is None else ".json"
        for member, problem in _members(shard):
            name = member.name.removeprefix("./")
            if problem or not member.isreg() or member.issparse() or not name.lower().endswith(ending):
                continue
            place = f"{member.name} in {file}"
            data = shard.read(member.offset_data, min(member.size, LONGEST_MEMBER_TEXT))
            for text in _texts(data, field, place):
                yield ShardText(name[: -len(ending)], text, place)


class _Shard:
    """An open tar file, which any thread may read; closed when nothing refers to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1
        with open_regular(path, LARGEST_SHARD) as file:
            self.size = os.fstat(file.fileno()).st_size
            self.descriptor = os.dup(file.fileno())

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def read(self, offset: int, size: int) -> bytes:
        with reading(self.path):
            return os.pread(self.descriptor, size, offset)


class _Headers(io.RawIOBase):
    """A tar file as Python's reader sees it, which reads headers only: none may claim to be long."""

    def __init__(self, shard: _Shard) -> None:
        self.shard = shard
        self.place = 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        data = self.shard.read(self.place, size)
        self.place += len(data)
        return data

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or place < 0:
            raise tarfile.ReadError(f"a header at {place}")
        self.place = place
        return place

    def tell(self) -> int:
        return self.place


def _members(shard: _Shard) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Yield the members of a tar file, each with an empty text; at last the problem that ended it early, if one did.

    Python's reader takes a damaged header for the end, and keeps all members in memory.
    """
    member, last, reason = tarfile.TarInfo(), -1, ""
    try:
        with tarfile.open(fileobj=_Headers(shard), mode="r:") as archive:
            while (found := archive.next()) is not None:
                if found.offset <= last or found.size < 0:
                    raise tarfile.ReadError("a header that points back")
                member, last = found, found.offset
                archive.members.clear()  # type: ignore[attr-defined]
                yield member, ""
            rest = shard.read(archive.offset, tarfile.BLOCKSIZE)
            if rest != bytes(tarfile.BLOCKSIZE):
                reason = "a damaged header" if rest.strip(b"\0") else "no end"
    except UserError:
        raise
    except Exception as error:  # damaged headers raise anything: TarError, ValueError, OverflowError, ...
        reason = str(error) or type(error).__name__
    if reason:
        after = f" after {member.name}" if member.name else ""
        compressed = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\x28\xb5": "zstd", b"\xfd7": "xz"}
        kind = compressed.get(shard.read(0, 2))
        if not member.name and kind:
            raise UserError(f"{shard.path} is compressed by {kind}; decompress it, since images need random access")
        yield member, f"{shard.path} is cut off or damaged{after} ({reason}); copy it again"


def _content(shard: _Shard, offset: int, size: int, name: str) -> bytes:
    if size > MAX_FILE_BYTES:
        raise UserError(f"image {name} has {size:,} bytes but an image file has at most {MAX_FILE_BYTES:,}; remove it")
    data = shard.read(offset, size)
    if len(data) < size:
        raise UserError(f"image {name} is cut off; copy the tar file again")
    return data


def _texts(data: bytes, field: str | None, place: str) -> list[object]:
    """Return the text of a `.txt`, or the text or list of texts in a field of a `.json`; None for damaged bytes."""
    try:
        value: Any = data.decode("utf-8-sig") if field is None else parse_json(data, place)
    except (UnicodeDecodeError, UserError):
        return [None]
    if field is not None:
        value = value.get(field) if isinstance(value, dict) else None
    return value if isinstance(value, list) else [value]
