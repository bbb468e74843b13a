"""Compares every byte of a region store with its checksums, and names what is damaged and the images that it costs."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dimvl.callbacks import Progress
from dimvl.errors import UserError
from dimvl.regions.store.folder import Shard
from dimvl.regions.store.format import (
    INDEX_DTYPE,
    FileEntry,
    Manifest,
    checksum_of_record,
    checksum_of_rows,
    decode_id,
    hash_of_id,
    read_manifest,
)

SHOWN = 8  # images named of each problem


def verify_store(path: Path, progress: Progress | None = None) -> list[str]:
    """Read everything in a store's folder and compare it with the checksums.

    Args:
        path: the folder.
        progress: called with shards done and in total.

    Returns:
        One sentence per problem, naming the file and the first of its images; empty if the store is sound.

    Raises:
        UserError: the folder is no region store.

    """
    try:
        check = _Check(Path(path))
    except UserError as error:
        if not (path / "manifest.json").is_file():
            raise
        return [f"{error}; it has all other checksums and costs every image"]
    return check.run(progress)


class _Check:
    """The files of a store as far as they are there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest = read_manifest(path)
        self.index = _what_is_there(path / "index.bin", self.manifest.index, INDEX_DTYPE)
        self.ids = _what_is_there(path / "ids.bin", self.manifest.ids, np.dtype(np.uint8))

    def run(self, progress: Progress | None) -> list[str]:
        problems = [*self._index_problems(), *self._id_problems(), *self._lookup_problems()]
        first = 0
        for number, entry in enumerate(self.manifest.shards):
            problems += self._shard_problems(number, range(first, first + entry.num_images))
            first += entry.num_images
            if progress is not None:
                progress(number + 1, len(self.manifest.shards))
        return problems

    def _index_problems(self) -> list[str]:
        if _sound(self.path / "index.bin", self.manifest.index):
            return []
        damaged = [n for n, record in enumerate(self.index) if checksum_of_record(record) != record["checksum"]]
        lost = range(len(self.index), self.manifest.num_images)
        return [f"index.bin is damaged or cut off; it costs the images {self._names([*damaged, *lost])}"]

    def _id_problems(self) -> list[str]:
        if _sound(self.path / "ids.bin", self.manifest.ids):
            return []
        damaged = [n for n in range(self.manifest.num_images) if self._id(n) is None]
        return [f"ids.bin is damaged or cut off; it costs the images {self._names(damaged)}"]

    def _lookup_problems(self) -> list[str]:
        file, entry = self.path / "lookup.bin", self.manifest.lookup
        if entry is None or not file.exists() or _sound(file, entry):
            return []
        return ["lookup.bin is damaged or cut off; it costs no image: delete it and the store does without it"]

    def _shard_problems(self, number: int, images: range) -> list[str]:
        entry = self.manifest.shards[number]
        file = self.path / entry.file
        if not file.is_file():
            return [f"{entry.file} is missing; it has the images {self._names(images)}"]
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == entry.sha256:
                return []
        try:
            shard = Shard(self.path, self.manifest, number)
        except UserError:
            return [f"{entry.file} is damaged in its header or cut off; it has the images {self._names(images)}"]
        damaged = [n for n in images if n >= len(self.index) or not self._rows_are_sound(shard, self.index[n])]
        # A header that is damaged and still read gives right rows or rows that do not match their checksums.
        return [f"{entry.file} is damaged; it costs the images {self._names(damaged or images)}"]

    def _rows_are_sound(self, shard: Shard, record: np.void) -> bool:
        arrays = []
        for name, (dtype, columns) in self.manifest.layout.items():
            row_bytes = np.dtype(dtype).itemsize * columns
            arrays.append(bytearray(int(record["num_regions"]) * row_bytes))
            try:
                shard.read_into(name, int(record["first_row"]), memoryview(arrays[-1]))
            except (UserError, OSError, OverflowError):
                return False
        return bool(checksum_of_rows(arrays) == record["rows_checksum"])

    def _id(self, position: int) -> str | None:
        """Id of an image, None where it does not match the hash in the index."""
        if position >= len(self.index):
            return None
        record = self.index[position]
        start, length = int(record["id_start"]), int(record["id_length"])
        encoded = self.ids[start : start + length].tobytes()
        return decode_id(encoded) if hash_of_id(encoded) == record["hash"] else None

    def _names(self, positions: Sequence[int]) -> str:
        """Ids of the first images, or their numbers in the store, counted from 0, where ids are lost; how many more."""
        named = [self._id(position) or f"number {position}" for position in positions[:SHOWN]]
        rest = f" and {len(positions) - SHOWN:,} more" if len(positions) > SHOWN else ""
        return (", ".join(name.encode("utf-8", "backslashreplace").decode() for name in named) or "none") + rest


def _what_is_there(file: Path, entry: FileEntry, dtype: np.dtype) -> np.ndarray:
    """Memory-map the committed part of a file, or what is left of it."""
    length = min(file.stat().st_size if file.is_file() else 0, entry.num_bytes) // dtype.itemsize
    return np.asarray(np.memmap(file, dtype=dtype, mode="r", shape=(length,))) if length else np.empty(0, dtype=dtype)


def _sound(file: Path, entry: FileEntry) -> bool:
    """Whether the committed part of a file has its checksum."""
    return _what_is_there(file, entry, np.dtype(np.uint8)).nbytes == entry.num_bytes and (
        hashlib.sha256(_what_is_there(file, entry, np.dtype(np.uint8)).data).hexdigest() == entry.sha256
    )
