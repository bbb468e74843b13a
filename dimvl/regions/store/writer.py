"""Writes region stores shard by shard, so that a killed writer can continue.

A commit is: the shard under its final name, then the tails of `index.bin` and `ids.bin`, then the manifest. Only the
manifest counts; the next writer overwrites or removes what an interrupted commit left behind.

A folder has one writer, which holds a lock. To write with several processes, give each its own images and folder;
`RegionStore` and the key `regions` of a run accept the list of folders as one store.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save

from dimvl.errors import UserError
from dimvl.files import FileChecksum, atomic_path, locked, open_own, writing
from dimvl.regions.records import ARRAYS, Extractor, Regions, check_array
from dimvl.regions.store.folder import StoreFolder
from dimvl.regions.store.format import (
    INDEX_DTYPE,
    FeatureDtype,
    Manifest,
    ShardEntry,
    checksum_of_record,
    checksum_of_rows,
    encode_id,
    estimated_bytes,
    first_difference,
    hash_of_id,
    make_lookup,
    quantise,
    read_manifest,
    write_manifest,
)

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """A checked image as a store holds it.

    Attributes:
        image_id: its id.
        width: in pixels.
        height: in pixels.
        arrays: its rows, with the layout and dtypes of the store.
        checksum: CRC-32 of the rows.
        columns: class_columns and attribute_columns of the store that it fits.

    """

    image_id: str
    width: int
    height: int
    arrays: dict[str, np.ndarray]
    checksum: int
    columns: dict[str, int]

    @property
    def num_regions(self) -> int:
        """Number of regions R."""
        return len(self.arrays["details"])

    @property
    def content(self) -> int:
        """A number that is equal for equal size and rows; see `RegionStoreWriter.contents`."""
        return _content(self.width, self.height, self.num_regions, self.checksum)


def _content(*facts: int) -> int:
    return hash(facts)


class RegionStoreWriter:
    """Writes a new region store or continues one. A context manager, which writes the rest on exit.

    Images become durable shard by shard; a killed writer loses those since the last full shard. The writer (not the
    reader) keeps the ids in memory, about 150 bytes per image.

    Args:
        path: the store's folder; created if missing.
        extractor: the extractor of the regions; must equal that of a store that is continued.
        shard_bytes: a shard is written when its arrays reach this size.
        feature_dtype: how features are stored; must equal that of a store that is continued. int8 with a float32 scale
            per row takes half the space, with errors of at most 1/254 of the row's largest value.

    Attributes:
        contents: image id -> a number that is equal for equal content, for all images, written or pending.

    Raises:
        UserError: the folder has other content, regions of another extractor or dtype, or another writer, or cannot be
            written.

    """

    def __init__(
        self,
        path: Path,
        extractor: Extractor,
        *,
        shard_bytes: int = 64 * 2**20,
        feature_dtype: FeatureDtype = "float16",
    ) -> None:
        self.path = Path(path)
        self.shard_bytes = shard_bytes
        self._pending: list[Prepared] = []
        self._pending_bytes = 0
        with ExitStack() as held:
            busy = f"another process is writing region store {self.path}; wait for it or stop it"
            held.enter_context(locked(self.path, busy))
            self.manifest = self._open(extractor, feature_dtype)
            self._held: ExitStack | None = held.pop_all()

    def __enter__(self) -> "RegionStoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:  # keep what is finished, but report the first error
            with suppress(UserError):
                self.close(finished=False)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self.contents

    def __len__(self) -> int:
        """Return the number of images, written or pending."""
        return len(self.contents)

    def check_space(self, images: int, sample: Sequence[Regions], *, exact: bool = True) -> None:
        """Log the estimated size of images to be written.

        Args:
            images: how many.
            sample: some of them, taken as typical.
            exact: whether they were counted.

        Raises:
            UserError: the disk has less free space.

        """
        regions = sum(map(len, sample)) / len(sample)
        needed = estimated_bytes(
            images,
            regions,
            self.manifest.extractor.feature_width,
            feature_dtype=self.manifest.feature_dtype,
            class_columns=sample[0].class_ids.shape[1],
            attribute_columns=sample[0].attribute_ids.shape[1],
        )
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise UserError(
                f"region store {self.path} would take about {_size(needed)} for {images:,} images of {regions:.3g} "
                f"regions but its disk has {_size(free)} free; free space, choose another place, or keep fewer regions "
                "or int8 features"
            )
        log.info(
            "region store %s will take about %s for %s%d images of %.3g regions; %s are free",
            *(self.path, _size(needed), "" if exact else "about ", images, regions, _size(free)),
        )

    def prepare(self, regions: Regions) -> Prepared:
        """Check an image and copy its arrays to the store's dtypes.

        Raises:
            UserError: the id is not a string, an array has another shape than the store's or a value that is not
                finite, a box has negative sides or is in pixels, a score is not a probability, or an id is not in the
                vocabulary.

        """
        encode_id(regions.image_id)
        manifest = self.manifest
        columns = {"class_columns": manifest.class_columns, "attribute_columns": manifest.attribute_columns}
        if not len(self):
            columns = {
                name: getattr(regions, array).shape[-1]
                for name, array in (("class_columns", "class_ids"), ("attribute_columns", "attribute_ids"))
            }
            manifest = manifest.model_copy(update=columns)
        arrays = _arrays(regions, manifest)
        checksum = checksum_of_rows(arrays[name] for name in manifest.layout if arrays[name].size)
        return Prepared(regions.image_id, int(regions.width), int(regions.height), arrays, checksum, columns)

    def add(self, regions: Regions | Prepared) -> None:
        """Add one image. Its arrays are copied.

        Raises:
            UserError: as `prepare`, or the id is a duplicate, or the disk is full.

        """
        image = regions if isinstance(regions, Prepared) else self.prepare(regions)
        if image.image_id in self.contents:
            raise UserError(f"image {image.image_id!r} is in region store {self.path} already; give each image once")
        if not len(self):
            self.manifest = self.manifest.model_copy(update=image.columns)
        self._pending.append(image)
        self._pending_bytes += sum(array.nbytes for array in image.arrays.values())
        self.contents[image.image_id] = image.content
        if self._pending_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write the pending images as one shard and commit it.

        Raises:
            UserError: the disk is full or the folder cannot be written; the store stays as it was before.

        """
        if self._pending:
            with writing(self.path):
                self._commit()

    def close(self, finished: bool = True) -> None:
        """Write the pending images and the lookup, and release the folder. The writer cannot be used afterwards.

        Args:
            finished: whether all images were added. Otherwise the lookup is not written, which marks the store as
                unfinished.

        Raises:
            UserError: as `flush`.

        """
        if self._held is None:
            return
        try:
            self.flush()
            if not finished:
                return
            with writing(self.path):
                lookup = make_lookup(StoreFolder(self.path).index).astype("<u8").tobytes()
                with atomic_path(self.path / "lookup.bin") as temporary:
                    temporary.write_bytes(lookup)
                entry = FileChecksum(num_bytes=len(lookup), sha256=hashlib.sha256(lookup).hexdigest())
                write_manifest(self.path, self.manifest.model_copy(update={"lookup": entry}))
        finally:
            self._held.close()
            self._held = None

    def _open(self, extractor: Extractor, feature_dtype: FeatureDtype) -> Manifest:
        """Continue the store in the folder, or start one."""
        if not (self.path / "manifest.json").exists():
            if any(not _is_remnant(file) for file in self.path.iterdir()):
                raise UserError(f"{self.path} is neither empty nor a region store; choose another folder")
            nothing = FileChecksum(num_bytes=0, sha256=hashlib.sha256().hexdigest())
            manifest = Manifest(
                extractor=extractor,
                feature_dtype=feature_dtype,
                class_columns=0,
                attribute_columns=0,
                num_images=0,
                num_regions=0,
                index=nothing,
                ids=nothing,
                lookup=None,
                shards=(),
            )
            write_manifest(self.path, manifest)
        manifest = read_manifest(self.path)
        if difference := first_difference(manifest.extractor, extractor):
            raise UserError(
                f"region store {self.path} was made by another extractor: {difference}, in the store and in this "
                "command; choose another folder, or use the same detector, vocabularies and settings"
            )
        if manifest.feature_dtype != feature_dtype:
            raise UserError(
                f"region store {self.path} holds features as {manifest.feature_dtype}, not as {feature_dtype}; "
                f"continue with {manifest.feature_dtype} or choose another folder"
            )
        with writing(self.path):
            self._index_hash = _truncate(self.path / "index.bin", manifest.index)
            self._ids_hash = _truncate(self.path / "ids.bin", manifest.ids)
            committed = {entry.file for entry in manifest.shards}
            for file in self.path.iterdir():
                if _is_remnant(file) or (file.suffix == ".safetensors" and file.name not in committed):
                    file.unlink()
        folder = StoreFolder(self.path)
        facts = [folder.index[name].tolist() for name in ("width", "height", "num_regions", "rows_checksum")]
        contents = map(_content, *facts)
        self.contents = {folder.image_id(place): content for place, content in enumerate(contents)}
        return manifest

    def _commit(self) -> None:
        old, pending = self.manifest, self._pending
        counts = np.array([image.num_regions for image in pending])
        number, num_regions = len(old.shards), int(counts.sum())
        data = save({name: np.concatenate([image.arrays[name] for image in pending]) for name in old.layout})
        file = f"shard-{number:05}.safetensors"
        with atomic_path(self.path / file) as temporary:
            temporary.write_bytes(data)

        ids = [encode_id(image.image_id) for image in pending]
        lengths = np.array([len(encoded) for encoded in ids])
        index = np.zeros(len(ids), dtype=INDEX_DTYPE)
        index["hash"] = [hash_of_id(encoded) for encoded in ids]
        index["first_row"] = np.cumsum(counts) - counts
        index["id_start"] = old.ids.num_bytes + np.cumsum(lengths) - lengths
        index["id_length"] = lengths
        index["shard"] = number
        index["num_regions"] = counts
        index["width"] = [image.width for image in pending]
        index["height"] = [image.height for image in pending]
        index["rows_checksum"] = [image.checksum for image in pending]
        index["checksum"] = [checksum_of_record(record) for record in index]

        entry = ShardEntry(
            file=file, num_images=len(ids), num_regions=num_regions, sha256=hashlib.sha256(data).hexdigest()
        )
        index_hash, ids_hash = self._index_hash.copy(), self._ids_hash.copy()
        changes = {
            "num_images": old.num_images + len(ids),
            "num_regions": old.num_regions + num_regions,
            "index": _append(self.path / "index.bin", old.index, index.tobytes(), index_hash),
            "ids": _append(self.path / "ids.bin", old.ids, b"".join(ids), ids_hash),
            "lookup": None,  # the old one lacks these images; `close` writes a new one
            "shards": (*old.shards, entry),
        }
        manifest = old.model_copy(update=changes)
        write_manifest(self.path, manifest)
        self.manifest, self._index_hash, self._ids_hash = manifest, index_hash, ids_hash
        self._pending, self._pending_bytes = [], 0


def _arrays(regions: Regions, manifest: Manifest) -> dict[str, np.ndarray]:
    """Check an image and copy its arrays to the store's dtypes."""
    regions = regions.dequantised()
    regions.check(manifest.extractor)
    quantised = manifest.feature_dtype == "int8"
    dtypes = {**manifest.details, "features": ("<f4" if quantised else "<f2", manifest.extractor.feature_width)}
    arrays = {name: _converted(regions, name, np.dtype(dtypes[name][0]), dtypes[name][1]) for name in ARRAYS}
    if quantised:
        arrays["features"], arrays["feature_scales"] = quantise(arrays["features"])
    details = np.concatenate([arrays[name].astype("<f4") for name in manifest.details], axis=1)
    return {"features": arrays["features"], "details": details}


def _converted(regions: Regions, name: str, dtype: np.dtype, columns: int) -> np.ndarray:
    """Copy one array of an image to the store's dtype."""
    with np.errstate(over="ignore"):  # values beyond float16 become infinite, which is refused below
        array = np.asarray(getattr(regions, name)).astype(dtype, order="C")
    if array.shape[1] != columns:
        raise UserError(
            f"image {regions.image_id!r} has {name} of shape {array.shape}, but this store holds "
            f"{(len(regions), columns)}; use the detector that the store was started with"
        )
    check_array(array, len(regions), f"image {regions.image_id!r} has {name}")
    return array


def _append(file: Path, committed: FileChecksum, data: bytes, running: "hashlib._Hash") -> FileChecksum:
    """Write after the committed part of a file, over the rest of an interrupted commit."""
    with open_own(file, "r+b") as stream:
        stream.seek(committed.num_bytes)
        stream.write(data)
        stream.truncate()
        stream.flush()
        os.fsync(stream.fileno())
    running.update(data)
    return FileChecksum(num_bytes=committed.num_bytes + len(data), sha256=running.hexdigest())


def _truncate(file: Path, committed: FileChecksum) -> "hashlib._Hash":
    """Cut a growing file to its committed length and hash it; create it if nothing is committed."""
    if not committed.num_bytes:
        open_own(file, "wb").close()
    elif file.is_file() and file.stat().st_size > committed.num_bytes:
        with open_own(file, "r+b") as stream:
            stream.truncate(committed.num_bytes)
    running = hashlib.sha256()
    if file.is_file():
        with file.open("rb") as stream:
            running = hashlib.file_digest(stream, "sha256")
    if running.hexdigest() != committed.sha256:
        raise UserError(f"region store {file.parent} is damaged: {file.name} has changed; extract it again")
    return running


def _is_remnant(file: Path) -> bool:
    """Whether a file is what a killed writer left of an atomic write."""
    return file.name.startswith(".") and file.suffix == ".part"


def _size(count: float) -> str:
    """Format a number of bytes."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"
