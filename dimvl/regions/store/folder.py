"""One folder of a region store, opened for reading: its memory-mapped index and its shards."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from dimvl.errors import UserError
from dimvl.files import FileChecksum, Strict, check_values
from dimvl.regions.store.format import (
    INDEX_DTYPE,
    Manifest,
    decode_id,
    hash_of_id,
    index_problem,
    make_lookup,
    read_manifest,
)

log = logging.getLogger(__name__)

SAFETENSORS_NAMES = {"<f2": "F16", "<f4": "F32", "|i1": "I8"}
LONGEST_HEADER = 2**16
"""Bytes of a shard's header, which describes two arrays in about 200."""


class _Array(Strict):
    """An array in the header of a shard."""

    dtype: str
    shape: tuple[int, int]
    data_offsets: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class StoreFolder:
    """Index, ids, lookup and shards of one folder.

    Args:
        path: the folder.
        max_open: maximum number of shards open at once.

    Attributes:
        manifest: the content of `manifest.json`.
        index: (images,) `INDEX_DTYPE`, memory-mapped.
        hashes: (images,) hashes of the ids in rising order.
        positions: (images,) positions of their images.

    Raises:
        UserError: the folder is not a store, is damaged, or was written by another version of dimvl.

    """

    def __init__(self, path: Path, *, max_open: int = 64) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.index = self._map("index.bin", self.manifest.index, INDEX_DTYPE)
        self._ids = self._map("ids.bin", self.manifest.ids, np.dtype(np.uint8))
        if problem := index_problem(self.index, self.manifest):
            raise UserError(f"region store {path} is damaged: index.bin describes {problem}; extract it again")
        self.hashes, self.positions = self._open_lookup()
        self._max_open = max_open
        self._shards: dict[int, Shard] = {}

    def __len__(self) -> int:
        """Return the number of images."""
        return self.manifest.num_images

    def image_id(self, position: int) -> str:
        """Id of the image at a position."""
        return decode_id(self.id_bytes(position))

    def id_bytes(self, position: int) -> bytes:
        """Encoded id of the image at a position."""
        record = self.index[position]
        start = int(record["id_start"])
        return self._ids[start : start + int(record["id_length"])].tobytes()

    def find(self, encoded: Sequence[bytes]) -> np.ndarray:
        """Positions (B,) int64 of images by their encoded ids, -1 for missing ones."""
        hashes = np.fromiter(map(hash_of_id, encoded), dtype=np.uint64, count=len(encoded))
        starts = np.searchsorted(self.hashes, hashes, side="left").tolist()
        ends = np.searchsorted(self.hashes, hashes, side="right").tolist()
        found = np.full(len(encoded), -1, dtype=np.int64)
        for number, (wanted, start, end) in enumerate(zip(encoded, starts, ends, strict=True)):
            for position in self.positions[start:end].tolist():  # several only where hashes collide
                if position < len(self) and self.id_bytes(position) == wanted:
                    found[number] = position
        return found

    def shard(self, number: int) -> "Shard":
        """Return a shard, opened if necessary."""
        shard = self._shards.get(number)
        if shard is None:
            if len(self._shards) >= self._max_open:
                self._shards.pop(next(iter(self._shards)), None)  # the oldest; a thread that still reads keeps it open
            shard = self._shards[number] = Shard(self.path, self.manifest, number)
        return shard

    def _map(self, name: str, entry: FileChecksum, dtype: np.dtype) -> np.ndarray:
        """Memory-map the committed part of a file, after comparing it with its checksum."""
        file = self.path / name
        if not entry.num_bytes:  # an empty file cannot be mapped, and may not exist yet
            return np.empty(0, dtype=dtype)
        if not file.is_file() or file.stat().st_size < entry.num_bytes or entry.num_bytes % dtype.itemsize:
            raise UserError(f"region store {self.path} is damaged: {name} is missing or too short; extract it again")
        mapped = np.asarray(np.memmap(file, dtype=dtype, mode="r", shape=(entry.num_bytes // dtype.itemsize,)))
        if hashlib.sha256(mapped.data).hexdigest() != entry.sha256:
            raise UserError(f"{file} is damaged: its checksum differs; `dimvl verify {self.path}` names the images")
        return mapped

    def _open_lookup(self) -> tuple[np.ndarray, np.ndarray]:
        file, entry = self.path / "lookup.bin", self.manifest.lookup
        if entry is None:
            log.info("region store %s is unfinished; it is read with its %d images", self.path, len(self))
        elif file.is_file() and file.stat().st_size == entry.num_bytes:
            lookup = self._map("lookup.bin", entry, np.dtype("<u8")).reshape(2, len(self))
            return lookup[0], lookup[1]
        # Unfinished, or the lookup is missing. Only here does memory grow with the store: 16 bytes per image.
        lookup = make_lookup(self.index)
        return lookup[0], lookup[1]


class Shard:
    """One open shard: a file descriptor, and where each array starts.

    Raises:
        UserError: the file is missing or differs from the manifest.

    """

    def __init__(self, folder: Path, manifest: Manifest, number: int) -> None:
        entry = manifest.shards[number]
        self.file = folder / entry.file
        self.descriptor = -1
        try:
            self.descriptor = os.open(self.file, os.O_RDONLY | os.O_NONBLOCK)
            self._places = self._read_header(manifest.layout, entry.num_regions)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError) as error:
            raise UserError(
                f"shard {self.file} is missing or damaged ({error}); `dimvl verify {folder}` names its images"
            ) from None

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def _read_header(self, layout: dict[str, tuple[str, int]], num_regions: int) -> dict[str, tuple[int, int]]:
        """Return where each array starts in the file, and the bytes of one of its rows."""
        size = os.fstat(self.descriptor).st_size
        header_bytes = int.from_bytes(os.pread(self.descriptor, 8, 0), "little")
        if header_bytes > min(size, LONGEST_HEADER):
            raise ValueError("its header is cut off or too long")
        header = json.loads(os.pread(self.descriptor, header_bytes, 8))
        places = {}
        for name, (dtype, columns) in layout.items():
            entry = check_values(header[name], _Array, self.file, "")
            start, end = entry.data_offsets
            width = np.dtype(dtype).itemsize * columns
            wanted = (SAFETENSORS_NAMES[dtype], (num_regions, columns))
            if (entry.dtype, entry.shape) != wanted:
                raise ValueError(f"array {name} differs from the manifest")
            if end - start != num_regions * width or 8 + header_bytes + end > size:
                raise ValueError(f"array {name} is cut off")
            places[name] = 8 + header_bytes + start, width
        return places

    def read_into(self, name: str, row: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes of an array, starting at a row.

        Raises:
            UserError: the file is too short.

        """
        start, width = self._places[name]
        offset = start + row * width
        while (count := os.preadv(self.descriptor, (buffer,), offset)) < len(buffer):
            if not count:
                raise UserError(f"shard {self.file} is cut off; `dimvl verify {self.file.parent}` names its images")
            buffer, offset = buffer[count:], offset + count
