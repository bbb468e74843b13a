"""The region store: regions of many images in one or several folders, between the detector and all that trains.

A folder, every number little-endian:

    manifest.json            what is in it, with a checksum of itself; replacing this file is what commits a change
    index.bin                one `INDEX_DTYPE` record per image, in written order; the position is an image's number
    ids.bin                  the image ids as UTF-8, end to end
    lookup.bin               (2, images) uint64: hashes of the ids in rising order, and their positions
    shard-00000.safetensors  regions of consecutive images: `features`, and `details`, one float32 matrix of boxes,
                             class ids and scores, attribute ids and scores side by side

`index.bin` and `ids.bin` only ever grow, and what lies behind the counts of the manifest does not exist. So a reader
sees one finished state whatever a writer does or however it ends. A folder has one writer at a time; several processes
write several folders, which are then read as one store.

Features are float16, or int8 with a scale per row, which is the first column of `details` then. A packed read gives
them as they are kept, so that no more has to get to the device of a model than lies on the disk.

Nothing is kept in Python objects per image: index, ids and lookup are memory-mapped, rows are read with `preadv`, which
has no file position, so forked processes may share the descriptors. Ids are found by a 64-bit hash and then compared
themselves, so colliding hashes do no harm.

Around this file: `format.py` has the formats, `folder.py` opens one folder, `writer.py` writes,
`check.py` verifies, `summary.py` counts.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.errors import UserError
from dimvl.regions.records import Detections, Extractor, Regions
from dimvl.regions.store.folder import StoreFolder
from dimvl.regions.store.format import INDEX_DTYPE, Manifest, checksum_of_rows, encode_id, first_difference

MAX_OPEN_SHARDS = 256
"""Descriptors a store holds at most; half of the common limit of 1,024 serves two stores."""

IDS_AT_ONCE = 65_536

STATISTICS_IMAGES = 2_000


@dataclass(frozen=True, kw_only=True)
class PackedRegions(Detections):
    """The regions of several images, end to end: what a batch is made of.

    Attributes:
        num_regions: (B,) int64 regions of each image.

    """

    num_regions: np.ndarray

    def images(self) -> list[Detections]:
        """Return the images one by one, as views."""
        ends = np.cumsum(self.num_regions)
        arrays = self.arrays
        return [
            Detections(**{name: array[start:end] for name, array in arrays.items()})
            for start, end in zip((ends - self.num_regions).tolist(), ends.tolist(), strict=True)
        ]

    def best(self, most: int) -> "PackedRegions":
        """Return the first `most` regions of each image."""
        first = np.cumsum(self.num_regions) - self.num_regions
        kept = np.arange(len(self)) - np.repeat(first, self.num_regions) < most
        arrays = {name: array[kept] for name, array in self.arrays.items()}
        return PackedRegions(num_regions=np.minimum(self.num_regions, most), **arrays)


class RegionStore:
    """Reads region stores. Cheap to open, pickled as its path, safe under forked and spawned loader processes.

    Several folders are read as one store of all their images: positions count on from folder to folder.

    Args:
        path: the store's folder, or several.
        check: compare what is read with its checksums, so that a damaged file can never give wrong rows: the index
            once, here, and the rows of an image each time they are read.

    Attributes:
        folders: the opened folders.
        fingerprint: of the images and their positions.

    Raises:
        UserError: there is no store, it is damaged, or a newer dimvl wrote it; several stores are of different
            extractors or have an image in common.

    """

    def __init__(self, path: Path | Sequence[Path], check: bool = False) -> None:
        paths = [path] if isinstance(path, str | Path) else path
        if not paths:
            raise UserError("no region store is given; give at least one folder")
        self.check = check
        most = max(1, MAX_OPEN_SHARDS // len(paths))
        self.folders = tuple(StoreFolder(Path(folder), check=check, max_open=most) for folder in paths)
        self._ends = np.cumsum([len(folder) for folder in self.folders])
        self._manifest = _common_manifest(self.folders)
        _refuse_doubles(self.folders)
        images = "".join(f"{part.manifest.index.sha256}{part.manifest.ids.sha256}" for part in self.folders)
        self.fingerprint = hashlib.sha256(images.encode()).hexdigest()[:20]

    def __reduce__(self) -> tuple[Any, ...]:
        return RegionStore, ([folder.path for folder in self.folders], self.check)

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self._ends[-1])

    def __contains__(self, image_id: str) -> bool:
        return self._find([image_id])[0] >= 0

    @property
    def path(self) -> str:
        """The folder, or all of them, for messages."""
        return " and ".join(str(folder.path) for folder in self.folders)

    @property
    def extractor(self) -> Extractor:
        """Who made the regions."""
        return self.folders[0].manifest.extractor

    def image_id(self, position: int) -> str:
        """Id of the image at a position."""
        owner, local = self._place(np.array([position]))
        return self.folders[owner[0]].image_id(int(local[0]))

    def position(self, image_id: str) -> int:
        """Position of one image; see `positions`."""
        return int(self.positions([image_id])[0])

    def positions(self, image_ids: Iterable[str]) -> np.ndarray:
        """Positions (B,) int64 of images by their ids.

        Raises:
            UserError: the store lacks one of them.

        """
        rest = iter(image_ids)
        found, first, missing = [np.zeros(0, dtype=np.int64)], "", 0
        while some := list(islice(rest, IDS_AT_ONCE)):
            found.append(self._find(some))
            lacking = np.flatnonzero(found[-1] < 0)
            if lacking.size and not missing:
                first = some[lacking[0]]
            missing += lacking.size
        if missing:
            others = f" and {missing - 1:,} others" if missing > 1 else ""
            raise UserError(
                f"region store {self.path} lacks image {first!r}{others}; "
                "extract the regions of these images or leave them out of the annotations"
            )
        return np.concatenate(found)

    def num_regions(self, positions: np.ndarray) -> np.ndarray:
        """Numbers of regions (B,) int64 of images by position, from the index alone."""
        if len(self.folders) == 1:  # whole records of a large epoch would take 56 bytes each
            return self.folders[0].index["num_regions"][positions].astype(np.int64)
        return self._records(positions)[0]["num_regions"].astype(np.int64)

    def sizes(self, positions: np.ndarray) -> np.ndarray:
        """Widths and heights (B, 2) int64 in pixels of images by position, from the index alone."""
        records, _ = self._records(positions)
        return np.stack([records["width"], records["height"]], axis=-1).astype(np.int64)

    def read(self, position: int) -> Regions:
        """Regions of one image, with features as float16 or float32.

        Raises:
            UserError: the shard is missing or damaged in its structure; with `check`, any damage of the rows.

        """
        [found] = self.read_packed(np.array([position])).images()
        width, height = self.sizes(np.array([position]))[0].tolist()
        return Regions(image_id=self.image_id(position), width=width, height=height, **vars(found.dequantised()))

    def read_packed(
        self,
        positions: np.ndarray,
        *,
        most: int | None = None,
        allocate: Callable[[tuple[int, int], np.dtype], np.ndarray] = np.empty,
    ) -> PackedRegions:
        """Regions of several images end to end, each image's rows read straight to their place.

        Features are as the store keeps them: float16, or int8 with `feature_scales`.

        Args:
            positions: (B,) integers.
            most: only the first so many of each image, which are the best; None for all.
            allocate: gives an array of a shape and dtype to read into, such as one in pinned memory.

        Raises:
            UserError: as `read`.

        """
        records, owners = self._records(positions)
        num_regions = records["num_regions"].astype(np.int64)
        if most is not None and num_regions.max(initial=0) > most:
            if self.check:  # a checksum is of all rows
                return self.read_packed(positions, allocate=allocate).best(most)
            num_regions = np.minimum(num_regions, most)
        rows, (dtype, feature_width) = int(num_regions.sum()), self._manifest.layout["features"]
        features = allocate((rows, feature_width), np.dtype(dtype))
        details = np.empty((rows, self._manifest.layout["details"][1]), dtype=np.float32)
        self._read_rows(positions, records, owners, num_regions, (features, details))
        arrays, column = {}, 0
        for name, (dtype, columns) in self._manifest.details.items():
            arrays[name] = allocate((rows, columns), np.dtype(dtype))
            np.copyto(arrays[name], details[:, column : column + columns], casting="unsafe")
            column += columns
        return PackedRegions(num_regions=num_regions, features=features, **arrays)

    def _read_rows(
        self,
        positions: np.ndarray,
        records: np.ndarray,
        owners: np.ndarray,
        num_regions: np.ndarray,
        arrays: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Fill features and details with the first `num_regions` (B,) rows of each image."""
        (features, wide), (details, narrow) = (
            (array.reshape(-1).view(np.uint8).data, array.itemsize * array.shape[1]) for array in arrays
        )
        ends = np.cumsum(num_regions)
        columns = [positions, owners, *(records[name] for name in ("shard", "first_row", "rows_checksum"))]
        columns += [ends - num_regions, ends]
        for position, owner, number, row, checksum, start, end in zip(*map(np.ndarray.tolist, columns), strict=True):
            shard = self.folders[owner].shard(number)
            parts = features[start * wide : end * wide], details[start * narrow : end * narrow]
            shard.read_into("features", row, parts[0])
            shard.read_into("details", row, parts[1])
            if self.check and checksum_of_rows(parts) != checksum:
                raise UserError(
                    f"shard {shard.file} is damaged: the regions of image {self.image_id(position)!r} do not match "
                    f"their checksum; `dimvl verify {shard.file.parent}` tells what else is"
                )

    def _place(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Folder (B,) and position in it (B,) of images by position."""
        owners = np.searchsorted(self._ends, positions, side="right")
        return owners, positions - np.concatenate([[0], self._ends])[owners]

    def _records(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index records (B,) of images by position, and their folders (B,)."""
        if len(self.folders) == 1:
            return self.folders[0].index[positions], np.zeros(len(positions), dtype=np.int64)
        owners, local = self._place(positions)
        records = np.empty(len(positions), dtype=INDEX_DTYPE)
        for owner in np.unique(owners).tolist():
            records[owners == owner] = self.folders[owner].index[local[owners == owner]]
        return records, owners

    def _find(self, image_ids: Sequence[str]) -> np.ndarray:
        """Positions (B,) of images, -1 for those not there."""
        encoded = list(map(encode_id, image_ids))
        found = np.full(len(encoded), -1, dtype=np.int64)
        for folder, end in zip(self.folders, self._ends.tolist(), strict=True):
            here = folder.find(encoded)
            found = np.where(here >= 0, here + end - len(folder), found)
        return found


def _common_manifest(folders: Sequence[StoreFolder]) -> Manifest:
    """Manifest of a folder that has images, after comparing all of them.

    Raises:
        UserError: they cannot be read as one store.

    """
    first = next((folder for folder in folders if len(folder)), folders[0])
    for other in folders:
        if difference := first_difference(first.manifest.extractor, other.manifest.extractor):
            raise UserError(
                f"region stores {first.path} and {other.path} are of different extractors: {difference}; "
                "use stores of one detector together"
            )
        for name in ("feature_dtype", "class_columns", "attribute_columns"):
            there, here = getattr(first.manifest, name), getattr(other.manifest, name)
            if there != here and len(other):
                raise UserError(
                    f"region stores {first.path} and {other.path} cannot be used together: {name} is {there!r} and "
                    f"{here!r}; write one of them anew with the settings of the other"
                )
    return first.manifest


def _refuse_doubles(folders: Sequence[StoreFolder]) -> None:
    """Compare the lookups of all folders, a piece at a time.

    Raises:
        UserError: an image is in two of them.

    """
    for number, folder in enumerate(folders):
        for earlier in folders[:number]:
            for start in range(0, len(folder), IDS_AT_ONCE):
                hashes = np.asarray(folder.hashes[start : start + IDS_AT_ONCE])
                places = np.searchsorted(earlier.hashes, hashes)
                same = earlier.hashes[np.minimum(places, len(earlier) - 1)] == hashes if len(earlier) else []
                suspects = [folder.id_bytes(position) for position in folder.positions[start:][np.flatnonzero(same)]]
                for position in earlier.find(suspects).tolist():
                    if position >= 0:
                        raise UserError(
                            f"region stores {earlier.path} and {folder.path} have images in common, such as "
                            f"{earlier.image_id(position)!r}; leave one of the stores out or write it without these"
                        )


def feature_statistics(store: RegionStore) -> tuple[np.ndarray, np.ndarray]:
    """Mean (F,) and standard deviation (F,) float32 of each feature dimension, of at most 2,000 images evenly spaced.

    A thousandth of the mean variance is added to each, so that a dimension that hardly changes is not blown up.

    Raises:
        UserError: as `RegionStore.read`.

    """
    positions = np.linspace(0, len(store) - 1, min(len(store), STATISTICS_IMAGES)).astype(np.int64)
    width = store.extractor.feature_width
    count, total, squares = 0, np.zeros(width), np.zeros(width)
    for part in np.array_split(positions, -(-len(positions) // 64)) if len(positions) else []:
        features = store.read_packed(part).dequantised().features.astype(np.float64)
        count, total, squares = count + len(features), total + features.sum(0), squares + (features**2).sum(0)
    mean = total / max(count, 1)
    variance = np.maximum(squares / max(count, 1) - mean**2, 0)
    if not variance.any():  # no two different regions
        return np.zeros(width, np.float32), np.ones(width, np.float32)
    return mean.astype(np.float32), np.sqrt(variance + variance.mean() / 1000).astype(np.float32)
