"""Compares every byte of a region store with its checksums, and names damaged files and the images lost with them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dimvl.callbacks import Progress
from dimvl.errors import UserError
from dimvl.files import FileChecksum, sha256
from dimvl.regions.store.folder import Shard
from dimvl.regions.store.format import (
    INDEX_DTYPE,
    Manifest,
    checksum_of_record,
    checksum_of_rows,
    decode_id,
    hash_of_id,
    index_problem,
    read_manifest,
)

SHOWN = 8  # images named per problem


def verify_store(path: Path, progress: Progress | None = None) -> list[str]:
    """Read everything in a store's folder and compare it with the checksums.

    Args:
        path: the folder.
        progress: called with the shards done and in total.

    Returns:
        One sentence per problem, with the file and the first images lost; empty if the store is sound.

    Raises:
        UserError: the folder is not a region store.

    """
    try:
        check = _Check(Path(path))
    except UserError as error:
        if not (path / "manifest.json").is_file():
            raise
        return [f"{error}; without it every image is lost"]
    return check.run(progress)


class _Check:
    """The files of a store, as far as they exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest = read_manifest(path)
        self.index = _existing(path / "index.bin", self.manifest.index, INDEX_DTYPE)
        self.ids = _existing(path / "ids.bin", self.manifest.ids, np.dtype(np.uint8))

    def run(self, progress: Progress | None) -> list[str]:
        problems = []
        if not _sound(self.path / "index.bin", self.manifest.index):
            damaged = [n for n, record in enumerate(self.index) if checksum_of_record(record) != record["checksum"]]
            names = self._names([*damaged, *range(len(self.index), self.manifest.num_images)])
            problems.append(f"index.bin is damaged or cut off; lost images: {names}")
        elif problem := index_problem(self.index, self.manifest):
            return [f"index.bin describes {problem}; without it every image is lost"]
        wrong = [n for n in range(len(self.index)) if self._id(n) is None]
        if wrong or not _sound(self.path / "ids.bin", self.manifest.ids):
            problems.append(f"ids.bin is damaged or cut off; lost images: {self._names(wrong)}")
        file, lookup = self.path / "lookup.bin", self.manifest.lookup
        if lookup is not None and file.exists() and not _sound(file, lookup):
            problems.append(
                "lookup.bin is damaged or cut off; no image is lost: delete it, and the store works without it"
            )
        first = 0
        for number, entry in enumerate(self.manifest.shards):
            problems += self._shard_problems(number, range(first, first + entry.num_images))
            first += entry.num_images
            if progress is not None:
                progress(number + 1, len(self.manifest.shards))
        return problems

    def _shard_problems(self, number: int, images: range) -> list[str]:
        entry = self.manifest.shards[number]
        file = self.path / entry.file
        if not file.is_file():
            return [f"{entry.file} is missing; lost images: {self._names(images)}"]
        sound = sha256(file) == entry.sha256
        try:
            shard = Shard(self.path, self.manifest, number)
        except UserError:
            return [f"{entry.file} has a damaged header or is cut off; lost images: {self._names(images)}"]
        if sound:
            return []
        damaged = [n for n in images if n >= len(self.index) or not self._rows_are_sound(shard, self.index[n])]
        # A damaged header that can still be read leads to correct rows, or to rows that do not match their checksums.
        return [f"{entry.file} is damaged; lost images: {self._names(damaged or images)}"]

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
        """Id of an image, None if it does not match the hash in the index."""
        if position >= len(self.index):
            return None
        record = self.index[position]
        start, length = int(record["id_start"]), int(record["id_length"])
        encoded = self.ids[start : start + length].tobytes()
        return decode_id(encoded) if hash_of_id(encoded) == record["hash"] else None

    def _names(self, positions: Sequence[int]) -> str:
        """Ids of the first images, or their numbers from 0 where the ids are lost, and how many more there are."""
        named = [self._id(position) or f"number {position}" for position in positions[:SHOWN]]
        rest = f" and {len(positions) - SHOWN:,} more" if len(positions) > SHOWN else ""
        return (", ".join(name.encode("utf-8", "backslashreplace").decode() for name in named) or "none") + rest


def _existing(file: Path, entry: FileChecksum, dtype: np.dtype) -> np.ndarray:
    """Memory-map the committed part of a file, or what exists of it."""
    length = min(file.stat().st_size if file.is_file() else 0, entry.num_bytes) // dtype.itemsize
    return np.asarray(np.memmap(file, dtype=dtype, mode="r", shape=(length,))) if length else np.empty(0, dtype=dtype)


def _sound(file: Path, entry: FileChecksum) -> bool:
    """Whether the committed part of a file matches its checksum."""
    return hashlib.sha256(_existing(file, entry, np.dtype(np.uint8)).data).hexdigest() == entry.sha256
