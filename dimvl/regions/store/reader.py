"""Reads one or several folders as one region store."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.errors import UserError
from dimvl.regions.records import Detections, Extractor, Origin, Regions
from dimvl.regions.store.folder import StoreFolder
from dimvl.regions.store.format import (
    INDEX_DTYPE,
    Manifest,
    checksum_of_rows,
    differ_in_prefix,
    encode_id,
    first_difference,
)
from dimvl.showing import with_others

MAX_OPEN_SHARDS = 256
"""File descriptors per store: half of the common limit of 1,024 then serves two stores."""

IDS_AT_ONCE = 65_536

STATISTICS_IMAGES = 2_000


@dataclass(frozen=True, kw_only=True)
class PackedRegions(Detections):
    """The regions of several images, end to end.

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

    def first(self, limit: int) -> "PackedRegions":
        """Return at most the first `limit` regions of each image, which are the best."""
        starts = np.cumsum(self.num_regions) - self.num_regions
        kept = np.arange(len(self)) - np.repeat(starts, self.num_regions) < limit
        arrays = {name: array[kept] for name, array in self.arrays.items()}
        return PackedRegions(num_regions=np.minimum(self.num_regions, limit), **arrays)


class RegionStore:
    """Reads region stores. Fast to open, pickled as its paths, safe in forked and spawned loader processes.

    Several folders are read as one store of all their images, numbered from folder to folder.

    Args:
        path: the store's folder, or several.
        check: compare the rows of an image with their checksum whenever they are read, so that a damaged file never
            gives wrong rows. The index is always compared, once and now.

    Attributes:
        folders: the opened folders.
        fingerprint: a hash of the images and their positions.

    Raises:
        UserError: a folder is not a store, is damaged or was written by a newer dimvl; or several stores have different
            extractors or an image in common, under one id or two.

    """

    def __init__(self, path: Path | Sequence[Path], check: bool = False) -> None:
        paths = [path] if isinstance(path, str | Path) else path
        if not paths:
            raise UserError("no region store is given; give at least one folder")
        self.check = check
        max_open = max(1, MAX_OPEN_SHARDS // len(paths))
        self.folders = tuple(StoreFolder(Path(folder), max_open=max_open) for folder in paths)
        self._ends = np.cumsum([len(folder) for folder in self.folders])
        self._manifest = common_manifest(self.folders)
        _refuse_duplicates(self.folders)
        refuse_two_ids(self.folders)
        images = "".join(f"{part.manifest.index.sha256}{part.manifest.ids.sha256}" for part in self.folders)
        self.fingerprint = hashlib.sha256(images.encode()).hexdigest()[:20]

    def __reduce__(self) -> tuple[Any, ...]:
        return RegionStore, ([folder.path for folder in self.folders], self.check)

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self._ends[-1])

    def __contains__(self, image_id: str) -> bool:
        return bool(self.find([image_id])[0] >= 0)

    @property
    def path(self) -> str:
        """The folder, or all of them, for messages."""
        return " and ".join(str(folder.path) for folder in self.folders)

    @property
    def extractor(self) -> Extractor:
        """The extractor of the regions."""
        return self.folders[0].manifest.extractor

    def image_id(self, position: int) -> str:
        """Id of the image at a position."""
        owner, local = self._place(np.array([position]))
        return self.folders[owner[0]].image_id(int(local[0]))

    def position(self, image_id: str) -> int:
        """Position of one image; see `positions`."""
        return int(self.positions([image_id])[0])

    def positions(self, image_ids: Iterable[str]) -> np.ndarray:
        """Positions (B,) int64 of images by their ids; a `UserError` if the store lacks one."""
        rest = iter(image_ids)
        found, first, missing = [np.zeros(0, dtype=np.int64)], "", 0
        while ids := list(islice(rest, IDS_AT_ONCE)):
            found.append(self.find(ids))
            lacking = np.flatnonzero(found[-1] < 0)
            if lacking.size and not missing:
                first = ids[lacking[0]]
            missing += lacking.size
        if missing:
            raise UserError(
                f"region store {self.path} lacks image {with_others(first, missing)}; extract their "
                "regions, or remove the images from the annotations"
            )
        return np.concatenate(found)

    def find(self, image_ids: Sequence[str]) -> np.ndarray:
        """Positions (B,) int64 of images by their ids, -1 for missing ones."""
        encoded = list(map(encode_id, image_ids))
        found = np.full(len(encoded), -1, dtype=np.int64)
        for folder, end in zip(self.folders, self._ends.tolist(), strict=True):
            here = folder.find(encoded)
            found = np.where(here >= 0, here + end - len(folder), found)
        return found

    def num_regions(self, positions: np.ndarray) -> np.ndarray:
        """Numbers of regions (B,) int64 of images by position, from the index alone."""
        if len(self.folders) == 1:  # whole records of a large epoch would take 56 bytes per image
            return self.folders[0].index["num_regions"][positions].astype(np.int64)
        return self._records(positions)[0]["num_regions"].astype(np.int64)

    def sizes(self, positions: np.ndarray) -> np.ndarray:
        """Widths and heights (B, 2) int64 in pixels of images by position, from the index alone."""
        records, _ = self._records(positions)
        return np.stack([records["width"], records["height"]], axis=-1).astype(np.int64)

    def checksums(self, positions: np.ndarray) -> np.ndarray:
        """Checksums (B,) int64 of the stored rows of images by position, from the index alone."""
        return self._records(positions)[0]["rows_checksum"].astype(np.int64)

    def read(self, position: int) -> Regions:
        """Regions of one image, with features as float16 or float32.

        Raises:
            UserError: the shard is missing or its structure is damaged; with `check`, the rows are damaged.

        """
        [found] = self.read_packed(np.array([position])).images()
        width, height = self.sizes(np.array([position]))[0].tolist()
        arrays, origin = vars(found.dequantised()), Origin(self.extractor)
        return Regions(image_id=self.image_id(position), width=width, height=height, origin=origin, **arrays)

    def read_packed(
        self,
        positions: np.ndarray,
        *,
        limit: int | None = None,
        features: bool = True,
        allocate: Callable[[tuple[int, int], np.dtype], np.ndarray] = np.empty,
    ) -> PackedRegions:
        """Regions of several images end to end, each image's rows read straight to their place.

        Features are as stored: float16, or int8 with `feature_scales`.

        Args:
            positions: (B,) integers.
            limit: maximum number of regions per image, the first and best; None for all.
            features: False for features of width 0. They are not read, so that no checksum can be compared.
            allocate: returns an array of a shape and dtype to read into, such as one in pinned memory.

        Raises:
            UserError: as `read`.

        """
        records, owners = self._records(positions)
        num_regions = records["num_regions"].astype(np.int64)
        if limit is not None and num_regions.max(initial=0) > limit:
            if self.check and features:  # a checksum covers all rows of an image
                return self.read_packed(positions, allocate=allocate).first(limit)
            num_regions = np.minimum(num_regions, limit)
        rows, (dtype, feature_width) = int(num_regions.sum()), self._manifest.layout["features"]
        wide = allocate((rows, feature_width if features else 0), np.dtype(dtype))
        details = np.empty((rows, self._manifest.layout["details"][1]), dtype=np.float32)
        self._read_rows(positions, records, owners, num_regions, {"features": wide, "details": details})
        arrays, column = {}, 0
        for name, (dtype, columns) in self._manifest.details.items():
            arrays[name] = allocate((rows, columns), np.dtype(dtype))
            np.copyto(arrays[name], details[:, column : column + columns], casting="unsafe")
            column += columns
        return PackedRegions(num_regions=num_regions, features=wide, **arrays)

    def _read_rows(
        self,
        positions: np.ndarray,
        records: np.ndarray,
        owners: np.ndarray,
        num_regions: np.ndarray,
        arrays: dict[str, np.ndarray],
    ) -> None:
        """Fill arrays of a shard, all that are not of width 0, with the first `num_regions` (B,) rows of each image."""
        buffers = [
            (name, array.reshape(-1).view(np.uint8).data, array.itemsize * array.shape[1])
            for name, array in arrays.items()
            if array.shape[1]
        ]
        ends = np.cumsum(num_regions)
        columns = [positions, owners, *(records[name] for name in ("shard", "first_row", "rows_checksum"))]
        columns += [ends - num_regions, ends]
        for position, owner, number, row, checksum, start, end in zip(*map(np.ndarray.tolist, columns), strict=True):
            shard = self.folders[owner].shard(number)
            parts = [buffer[start * width : end * width] for _, buffer, width in buffers]
            for (name, *_), part in zip(buffers, parts, strict=True):
                shard.read_into(name, row, part)
            if self.check and len(parts) == len(arrays) and checksum_of_rows(parts) != checksum:
                raise UserError(
                    f"shard {shard.file} is damaged: the regions of image {self.image_id(position)!r} do not match "
                    f"their checksum; `dimvl verify {shard.file.parent}` lists all damage"
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


def common_manifest(folders: Sequence[StoreFolder]) -> Manifest:
    """Compare the folders, and return the manifest of one that has images."""
    first = next((folder for folder in folders if len(folder)), folders[0])
    for other in folders:
        if difference := first_difference(first.manifest.extractor, other.manifest.extractor):
            raise UserError(
                f"region stores {first.path} and {other.path} have different extractors: {difference}; "
                "combine stores of one detector only"
            )
        for name in ("feature_dtype", "class_columns", "attribute_columns"):
            there, here = getattr(first.manifest, name), getattr(other.manifest, name)
            if there != here and len(other):
                raise UserError(
                    f"region stores {first.path} and {other.path} cannot be combined: {name} is {there!r} and "
                    f"{here!r}; write one of them again with the settings of the other"
                )
    return first.manifest


def common_images(folders: Sequence[StoreFolder]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield each image that two folders have: number of the earlier folder and position in it, and of the later one.

    The lookups of all folders are compared, piece by piece.
    """
    for number, folder in enumerate(folders):
        for before, earlier in enumerate(folders[:number]):
            for start in range(0, len(folder), IDS_AT_ONCE):
                hashes = np.asarray(folder.hashes[start : start + IDS_AT_ONCE])
                places = np.searchsorted(earlier.hashes, hashes)
                same = earlier.hashes[np.minimum(places, len(earlier) - 1)] == hashes if len(earlier) else []
                suspects = folder.positions[start:][np.flatnonzero(same)].tolist()
                found = earlier.find([folder.id_bytes(position) for position in suspects]).tolist()
                for one, other in zip(found, suspects, strict=True):
                    if one >= 0:
                        yield (before, one), (number, other)


def _refuse_duplicates(folders: Sequence[StoreFolder]) -> None:
    """Refuse an image that two folders have."""
    for (one, position), (other, _) in common_images(folders):
        raise UserError(
            f"region stores {folders[one].path} and {folders[other].path} have images in common, such as "
            f"{folders[one].image_id(position)!r}; omit one of the stores or write it without these images"
        )


def refuse_two_ids(folders: Sequence[StoreFolder]) -> None:
    """Refuse an image that two folders have under two ids, of which one is the number at the end of the other."""
    if len(folders) == 1:
        return
    columns = [
        np.concatenate([folder.index[name].astype(np.uint64) for folder in folders])
        for name in ("rows_checksum", "num_regions")
    ]
    contents = columns[0] << np.uint64(32) | columns[1]
    order = np.argsort(contents, kind="stable")
    same = np.flatnonzero((np.diff(contents[order]) == 0) & (columns[1][order][1:] > 0))
    ends = np.cumsum([len(folder) for folder in folders])
    for one, other in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
        owners = np.searchsorted(ends, [one, other], side="right")
        ids = [
            folders[owner].image_id(int(place - ends[owner] + len(folders[owner])))
            for owner, place in zip(owners.tolist(), (one, other), strict=True)
        ]
        if owners[0] != owners[1] and differ_in_prefix(*ids):
            raise UserError(
                f"region stores {folders[owners[0]].path} and {folders[owners[1]].path} have one image under two ids, "
                f"{ids[0]!r} and {ids[1]!r}; omit one of the stores, or import all with --coco-ids or all without"
            )


def feature_statistics(store: RegionStore) -> tuple[np.ndarray, np.ndarray]:
    """Mean (F,) and standard deviation (F,) float32 of each feature dimension, over 2,000 evenly spaced images.

    A thousandth of the mean variance is added to each variance, so that normalising by it does not blow up a dimension
    that hardly varies.

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
    if not variance.any():  # no region differs from another
        return np.zeros(width, np.float32), np.ones(width, np.float32)
    return mean.astype(np.float32), np.sqrt(variance + variance.mean() / 1000).astype(np.float32)
