"""The region store: regions of many images in one folder, between the detector and everything that trains.

The folder, every number little-endian:

    manifest.json            what is in it; replacing this file is what commits a change
    index.bin                one `INDEX_DTYPE` record per image, in written order; the position is an image's number
    ids.bin                  the image ids as UTF-8, end to end
    lookup.npy               (2, images) uint64: hashes of the ids in rising order, and their positions
    shard-00000.safetensors  flat arrays of the regions of consecutive images: features, boxes, class_ids, ...

`index.bin` and `ids.bin` only ever grow, and what lies behind the counts of the manifest does not exist. So a reader
sees one finished state whatever a writer does or however it ends.

Nothing is kept in Python objects per image: index, ids and lookup are memory-mapped, rows are read with `preadv`, which
has no file position, so forked processes may share the descriptors. Ids are found by a 64-bit hash and then compared
themselves, so colliding hashes do no harm. `store_format.py` has the formats, `store_writer.py` writes.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.errors import UserError
from dimvl.files import sha256
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store_format import (
    INDEX_DTYPE,
    FileEntry,
    Manifest,
    decode_id,
    encode_id,
    hash_of_id,
    make_lookup,
    read_manifest,
)

log = logging.getLogger(__name__)

MAX_OPEN_SHARDS = 256
"""Descriptors a store holds at most; half of the common limit of 1,024 serves two stores."""

SAFETENSORS_NAMES = {"<f2": "F16", "<f4": "F32", "<i2": "I16"}


@dataclass(frozen=True, kw_only=True)
class PackedRegions:
    """The regions of several images, end to end: what a batch is made of.

    Shapes: B images, N regions of all of them; the rest as in `Regions`.

    Attributes:
        num_regions: (B,) int64 regions of each image.
        boxes: (N, 4) float32.
        features: (N, F) float16.
        class_ids: (N, K) int16.
        class_scores: (N, K) float16.
        attribute_ids: (N, A) int16.
        attribute_scores: (N, A) float16.

    """

    num_regions: np.ndarray
    boxes: np.ndarray
    features: np.ndarray
    class_ids: np.ndarray
    class_scores: np.ndarray
    attribute_ids: np.ndarray
    attribute_scores: np.ndarray


class RegionStore:
    """Reads a region store. Cheap to open, pickled as its path, safe under forked and spawned loader processes.

    Args:
        path: the store's folder.

    Raises:
        UserError: there is no store, it is damaged, or a newer dimvl wrote it.

    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._index = self._map("index.bin", self.manifest.index, INDEX_DTYPE)
        self._ids = self._map("ids.bin", self.manifest.ids, np.dtype(np.uint8))
        self._hashes, self._positions = self._open_lookup()
        self._shards: dict[int, _Shard] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RegionStore, (self.path,)

    def __len__(self) -> int:
        """Return the number of images."""
        return self.manifest.num_images

    def __contains__(self, image_id: str) -> bool:
        return self._find([image_id])[0] >= 0

    @property
    def extractor(self) -> Extractor:
        """Who made the regions."""
        return self.manifest.extractor

    def image_id(self, position: int) -> str:
        """Id of the image at a position."""
        record = self._index[position]
        return decode_id(self._id_bytes(record))

    def position(self, image_id: str) -> int:
        """Position of one image; see `positions`."""
        return int(self.positions([image_id])[0])

    def positions(self, image_ids: Iterable[str]) -> np.ndarray:
        """Positions (B,) int64 of images by their ids.

        Raises:
            UserError: the store lacks one of them.

        """
        image_ids = list(image_ids)
        found = self._find(image_ids)
        if (missing := np.flatnonzero(found < 0)).size:
            others = f" and {len(missing) - 1:,} others" if len(missing) > 1 else ""
            raise UserError(
                f"region store {self.path} lacks image {image_ids[missing[0]]!r}{others}; "
                "extract the regions of these images or leave them out of the annotations"
            )
        return found

    def num_regions(self, positions: np.ndarray) -> np.ndarray:
        """Numbers of regions (B,) int64 of images by position, from the index alone."""
        return self._index[positions]["num_regions"].astype(np.int64)

    def sizes(self, positions: np.ndarray) -> np.ndarray:
        """Widths and heights (B, 2) int64 in pixels of images by position, from the index alone."""
        records = self._index[positions]
        return np.stack([records["width"], records["height"]], axis=-1).astype(np.int64)

    def read(self, position: int) -> Regions:
        """Regions of one image.

        Raises:
            UserError: the shard is missing or damaged in its structure (only `verify` finds a flipped bit).

        """
        packed = self.read_packed(np.array([position]))
        width, height = self.sizes(np.array([position]))[0].tolist()
        arrays = {name: getattr(packed, name) for name in self.manifest.layout}
        return Regions(image_id=self.image_id(position), width=width, height=height, **arrays)

    def read_packed(
        self, positions: np.ndarray, allocate: Callable[[tuple[int, int], np.dtype], np.ndarray] = np.empty
    ) -> PackedRegions:
        """Regions of several images end to end, each image's rows read straight to their place.

        Args:
            positions: (B,) integers.
            allocate: gives an array of a shape and dtype to read into, such as one in pinned memory.

        Raises:
            UserError: as `read`.

        """
        records = self._index[positions]
        num_regions = records["num_regions"].astype(np.int64)
        ends = np.cumsum(num_regions)
        layout = self.manifest.layout
        arrays = {
            name: allocate((int(num_regions.sum()), columns), np.dtype(dtype))
            for name, (dtype, columns) in layout.items()
        }
        targets = [
            (name, array.reshape(-1).view(np.uint8).data, array.itemsize * array.shape[1])
            for name, array in arrays.items()
        ]
        rows = (records["shard"], records["first_row"], ends - num_regions, ends)
        for shard, first_row, start, end in zip(*(column.tolist() for column in rows), strict=True):
            reader = self._shard(shard)
            for name, target, width in targets:
                reader.read_into(name, first_row * width, target[start * width : end * width])
        return PackedRegions(num_regions=num_regions, **arrays)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Read everything and compare it with the checksums.

        Args:
            progress: called with shards done and in total.

        Returns:
            One sentence per problem, naming the file and the images in it; empty if the store is sound.

        """
        problems = [
            f"{name} is damaged: its checksum differs; which regions belong to which image is not certain"
            for name, mapped, entry in (
                ("index.bin", self._index, self.manifest.index),
                ("ids.bin", self._ids, self.manifest.ids),
            )
            if hashlib.sha256(mapped.data).hexdigest() != entry.sha256
        ]
        if not self._lookup_is_sound():
            problems.append("lookup.npy is damaged; delete it and the store finds images without it")
        first = 0
        for number, entry in enumerate(self.manifest.shards):
            file = self.path / entry.file
            if not file.exists():
                problems.append(f"{entry.file} is missing, with the images {self._names(first, entry.num_images)}")
            elif sha256(file) != entry.sha256:
                names = self._names(first, entry.num_images)
                problems.append(f"{entry.file} is damaged: its checksum differs; it has the images {names}")
            first += entry.num_images
            if progress is not None:
                progress(number + 1, len(self.manifest.shards))
        return problems

    def _names(self, first: int, count: int) -> str:
        return ", ".join(self.image_id(position) for position in range(first, first + count))

    def _lookup_is_sound(self) -> bool:
        rising = np.all(self._hashes[:-1] <= self._hashes[1:])
        in_range = np.all(self._positions < len(self))
        return bool(rising and in_range and np.array_equal(self._index["hash"][self._positions], self._hashes))

    def _map(self, name: str, entry: FileEntry, dtype: np.dtype) -> np.ndarray:
        """Memory-map the committed part of a file."""
        file = self.path / name
        if not entry.num_bytes:  # an empty file cannot be mapped, and may not be there yet
            return np.empty(0, dtype=dtype)
        if not file.is_file() or file.stat().st_size < entry.num_bytes or entry.num_bytes % dtype.itemsize:
            raise UserError(f"region store {self.path} is damaged: {name} is missing or too short; extract it again")
        return np.asarray(np.memmap(file, dtype=dtype, mode="r", shape=(entry.num_bytes // dtype.itemsize,)))

    def _open_lookup(self) -> tuple[np.ndarray, np.ndarray]:
        file = self.path / "lookup.npy"
        if len(self) and file.is_file():
            try:
                lookup = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
            except (ValueError, EOFError, OSError):
                raise UserError(f"{file} is damaged; delete it and the store finds images without it") from None
            if lookup.shape == (2, len(self)) and lookup.dtype == np.uint64:
                return lookup[0], lookup[1]
        # The writer has not come to its end. Here alone memory grows with the store: 16 bytes an image.
        log.info("region store %s is unfinished: %d images; it is read as it stands", self.path, len(self))
        lookup = make_lookup(self._index)
        return lookup[0], lookup[1]

    def _id_bytes(self, record: np.void) -> bytes:
        start = int(record["id_start"])
        return self._ids[start : start + int(record["id_length"])].tobytes()

    def _find(self, image_ids: list[str]) -> np.ndarray:
        """Positions (B,) of images, -1 for those not there."""
        encoded = list(map(encode_id, image_ids))
        hashes = np.fromiter(map(hash_of_id, encoded), dtype=np.uint64, count=len(encoded))
        starts = np.searchsorted(self._hashes, hashes, side="left").tolist()
        ends = np.searchsorted(self._hashes, hashes, side="right").tolist()
        found = np.full(len(encoded), -1, dtype=np.int64)
        for number, (wanted, start, end) in enumerate(zip(encoded, starts, ends, strict=True)):
            for position in self._positions[start:end].tolist():  # more than one only where hashes collide
                if self._id_bytes(self._index[position]) == wanted:
                    found[number] = position
        return found

    def _shard(self, number: int) -> "_Shard":
        shard = self._shards.get(number)
        if shard is None:
            if len(self._shards) >= MAX_OPEN_SHARDS:
                self._shards.pop(next(iter(self._shards)), None)  # oldest; a thread still reading keeps it open
            shard = self._shards[number] = _Shard(self.path / self.manifest.shards[number].file, self.manifest, number)
        return shard


class _Shard:
    """One open shard: a descriptor and where each array starts."""

    def __init__(self, file: Path, manifest: Manifest, number: int) -> None:
        self.file = file
        self.descriptor = -1
        try:
            self.descriptor = os.open(file, os.O_RDONLY)
            self.starts = self._read_header(manifest.layout, manifest.shards[number].num_regions)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"shard {file} is missing or damaged ({error}); `dimvl verify {file.parent}` names its images"
            ) from None

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def _read_header(self, layout: dict[str, tuple[str, int]], num_regions: int) -> dict[str, int]:
        size = os.fstat(self.descriptor).st_size
        header_bytes = int.from_bytes(os.pread(self.descriptor, 8, 0), "little")
        if header_bytes > size:
            raise ValueError("its header is cut off")
        header = json.loads(os.pread(self.descriptor, header_bytes, 8))
        starts = {}
        for name, (dtype, columns) in layout.items():
            entry = header[name]
            start, end = entry["data_offsets"]
            wanted = (SAFETENSORS_NAMES[dtype], [num_regions, columns])
            if (entry["dtype"], entry["shape"]) != wanted:
                raise ValueError(f"array {name} is not as the manifest says")
            if end - start != num_regions * columns * np.dtype(dtype).itemsize or 8 + header_bytes + end > size:
                raise ValueError(f"array {name} is cut off")
            starts[name] = 8 + header_bytes + start
        return starts

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill a buffer of bytes from `offset` bytes into an array."""
        offset += self.starts[name]
        while len(buffer):
            count = os.preadv(self.descriptor, [buffer], offset)
            if not count:
                raise UserError(f"shard {self.file} is cut off; `dimvl verify {self.file.parent}` names its images")
            buffer, offset = buffer[count:], offset + count
