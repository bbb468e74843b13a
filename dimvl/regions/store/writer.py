"""Writes region stores: whole shards, each committed at once, so that a killed writer can continue.

A commit is: the shard under its final name, then the tails of `index.bin` and `ids.bin`, then the manifest. Only the
manifest counts; what an interrupted commit left behind is overwritten or removed by the next writer. `reader.py` says
what the files are.

One writer to a folder, held by a lock. To write with several processes, give each its own images and its own folder;
`RegionStore` and the key `regions` of a run take the list of folders as one store.
"""

import hashlib
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save

from dimvl.errors import UserError
from dimvl.files import atomic_path, locked
from dimvl.regions.records import ARRAYS, Extractor, Regions
from dimvl.regions.store.folder import StoreFolder
from dimvl.regions.store.format import (
    INDEX_DTYPE,
    FeatureDtype,
    FileEntry,
    Manifest,
    ShardEntry,
    checksum_of_record,
    checksum_of_rows,
    encode_id,
    first_difference,
    hash_of_id,
    make_lookup,
    quantise,
    read_manifest,
    write_manifest,
)

BOX_TOLERANCE = 0.01
"""How far a box may stand out of the picture, as a fraction: detectors round, but pixels given for fractions do not."""


class _Pending(NamedTuple):
    """An image that waits for its shard to be full."""

    encoded_id: bytes
    width: int
    height: int
    arrays: dict[str, np.ndarray]


class RegionStoreWriter:
    """Writes a new region store or continues one. A context manager: its end writes what is left.

    Images become durable shard by shard; a killed writer loses those since the last full shard. The writer (not the
    reader) keeps the ids in memory, about 100 bytes an image.

    Args:
        path: the store's folder; made if it is missing.
        extractor: who makes the regions; must be the same as in a store that is continued.
        shard_bytes: a shard is written when its arrays reach so many bytes.
        feature_dtype: how features are kept. int8 with a float32 scale per row takes half the space, and every value
            comes back within 1/254 of the largest of its row; must be the same as in a store that is continued.

    Raises:
        UserError: the folder has other content, another extractor's or dtype's regions or another writer, or cannot
            be written.

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
        self._pending: list[_Pending] = []
        self._pending_bytes = 0
        with ExitStack() as held:
            busy = f"another process is writing region store {self.path}; wait for it or end it"
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
        else:  # keep what is finished, but let the first error be the one that is seen
            with suppress(UserError):
                self.close()

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._ids

    def __len__(self) -> int:
        """Return the number of images, written or waiting for their shard to be full."""
        return len(self._ids)

    def add(self, regions: Regions) -> None:
        """Add one image. Its arrays are copied.

        Raises:
            UserError: the id is there already or is no text, an array has another shape than the store's or a value
                that is not finite, a box has negative sides or is in pixels, a score is no probability, an id is not
                in the vocabulary, or the disk is full.

        """
        encoded_id = encode_id(regions.image_id)
        if regions.image_id in self._ids:
            raise UserError(f"image {regions.image_id!r} is in region store {self.path} already; give each image once")
        manifest = self.manifest
        if not len(self):
            columns = {
                name: getattr(regions, array).shape[-1]
                for name, array in (("class_columns", "class_ids"), ("attribute_columns", "attribute_ids"))
            }
            manifest = manifest.model_copy(update=columns)
        arrays = _arrays(regions, manifest)
        self.manifest = manifest
        self._pending.append(_Pending(encoded_id, int(regions.width), int(regions.height), arrays))
        self._pending_bytes += sum(array.nbytes for array in arrays.values())
        self._ids.add(regions.image_id)
        if self._pending_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one shard and commit it.

        Raises:
            UserError: the disk is full or the folder cannot be written; the store stays as it was before.

        """
        if not self._pending:
            return
        try:
            self._commit()
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def close(self) -> None:
        """Write what waits and the lookup, and let other writers in. The writer is of no use afterwards.

        Raises:
            UserError: as `flush`.

        """
        if self._held is None:
            return
        try:
            self.flush()
            lookup = make_lookup(StoreFolder(self.path).index).astype("<u8").tobytes()
            with atomic_path(self.path / "lookup.bin") as temporary:
                temporary.write_bytes(lookup)
            entry = FileEntry(num_bytes=len(lookup), sha256=hashlib.sha256(lookup).hexdigest())
            write_manifest(self.path, self.manifest.model_copy(update={"lookup": entry}))
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        finally:
            self._held.close()
            self._held = None

    def _open(self, extractor: Extractor, feature_dtype: FeatureDtype) -> Manifest:
        """Take over the store in the folder, or begin one."""
        if not (self.path / "manifest.json").exists():
            if any(not _is_remnant(file) for file in self.path.iterdir()):
                raise UserError(f"{self.path} is neither empty nor a region store; choose another folder")
            nothing = FileEntry(num_bytes=0, sha256=hashlib.sha256().hexdigest())
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
                f"region store {self.path} was made by another extractor: there and here, {difference}; "
                "choose another folder or the same detector"
            )
        if manifest.feature_dtype != feature_dtype:
            raise UserError(
                f"region store {self.path} holds features as {manifest.feature_dtype}, not as {feature_dtype}; "
                f"go on with {manifest.feature_dtype} or choose another folder"
            )
        try:
            self._index_hash = _cut(self.path / "index.bin", manifest.index)
            self._ids_hash = _cut(self.path / "ids.bin", manifest.ids)
            committed = {entry.file for entry in manifest.shards}
            for file in self.path.iterdir():
                if _is_remnant(file) or (file.suffix == ".safetensors" and file.name not in committed):
                    file.unlink()
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        folder = StoreFolder(self.path)
        self._ids = {folder.image_id(position) for position in range(len(folder))}
        return manifest

    def _commit(self) -> None:
        old = self.manifest
        counts = np.array([len(image.arrays["details"]) for image in self._pending])
        number, num_regions = len(old.shards), int(counts.sum())
        data = save({name: np.concatenate([image.arrays[name] for image in self._pending]) for name in old.layout})
        file = f"shard-{number:05}.safetensors"
        with atomic_path(self.path / file) as temporary:
            temporary.write_bytes(data)

        ids = [image.encoded_id for image in self._pending]
        lengths = np.array([len(encoded) for encoded in ids])
        index = np.zeros(len(ids), dtype=INDEX_DTYPE)
        index["hash"] = [hash_of_id(encoded) for encoded in ids]
        index["first_row"] = np.cumsum(counts) - counts
        index["id_start"] = old.ids.num_bytes + np.cumsum(lengths) - lengths
        index["id_length"] = lengths
        index["shard"] = number
        index["num_regions"] = counts
        index["width"] = [image.width for image in self._pending]
        index["height"] = [image.height for image in self._pending]
        index["rows_checksum"] = [
            checksum_of_rows(image.arrays[name] for name in old.layout if image.arrays[name].size)
            for image in self._pending
        ]
        index["checksum"] = [checksum_of_record(record) for record in index]

        entry = ShardEntry(
            file=file, num_images=len(ids), num_regions=num_regions, sha256=hashlib.sha256(data).hexdigest()
        )
        index_hash, ids_hash = self._index_hash.copy(), self._ids_hash.copy()
        manifest = old.model_copy(
            update={
                "num_images": old.num_images + len(ids),
                "num_regions": old.num_regions + num_regions,
                "index": _append(self.path / "index.bin", old.index, index.tobytes(), index_hash),
                "ids": _append(self.path / "ids.bin", old.ids, b"".join(ids), ids_hash),
                "lookup": None,  # that of the images before: it is written anew at the end
                "shards": (*old.shards, entry),
            }
        )
        write_manifest(self.path, manifest)
        self.manifest, self._index_hash, self._ids_hash = manifest, index_hash, ids_hash
        self._pending, self._pending_bytes = [], 0


def _arrays(regions: Regions, manifest: Manifest) -> dict[str, np.ndarray]:
    """Check an image and copy its arrays to the store's dtypes."""
    _check_size(regions)
    regions = regions.dequantised()
    quantised = manifest.feature_dtype == "int8"
    dtypes = {**manifest.details, "features": ("<f4" if quantised else "<f2", manifest.extractor.feature_width)}
    arrays = {name: _checked(regions, name, np.dtype(dtypes[name][0]), dtypes[name][1]) for name in ARRAYS}
    if quantised:
        arrays["features"], arrays["feature_scales"] = quantise(arrays["features"])
    _check_boxes(regions.image_id, arrays["boxes"])
    for kind, vocabulary in (("class", manifest.extractor.classes), ("attribute", manifest.extractor.attributes)):
        _check_names(regions.image_id, kind, arrays[f"{kind}_ids"], arrays[f"{kind}_scores"], len(vocabulary))
    details = np.concatenate([arrays[name].astype("<f4") for name in manifest.details], axis=1)
    return {"features": arrays["features"], "details": details}


def _checked(regions: Regions, name: str, dtype: np.dtype, columns: int) -> np.ndarray:
    """Copy one array of an image to the store's dtype."""
    given = np.asarray(getattr(regions, name))
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float16 becomes infinite, which is refused below
        array = given.astype(dtype, order="C")
    if array.shape != (len(regions), columns):
        raise UserError(
            f"image {regions.image_id!r} has {name} of shape {array.shape}, but this store holds "
            f"{(len(regions), columns)}; use the detector that the store was begun with"
        )
    if dtype.kind == "i" and not np.array_equal(array, given):  # int16 would hold another number
        raise UserError(
            f"image {regions.image_id!r} has {name} that are no whole numbers of 16 bits; check the detector"
        )
    if not np.isfinite(array).all():
        raise UserError(f"image {regions.image_id!r} has {name} that are not finite in {dtype}; check the detector")
    return array


def _check_size(regions: Regions) -> None:
    for name in ("width", "height"):
        if not 0 < (value := getattr(regions, name)) < 2**32:
            raise UserError(f"image {regions.image_id!r} has {name} {value!r}; give the picture's pixels, at least 1")


def _check_boxes(image_id: str, boxes: np.ndarray) -> None:
    """Refuse boxes with swapped corners and boxes that are no fractions. A side of 0 is legal."""
    swapped = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    outside = ((boxes < -BOX_TOLERANCE) | (boxes > 1 + BOX_TOLERANCE)).any(axis=1)
    for wrong, what in (
        (swapped, "whose right or lower side comes before the left or upper one; give corners x1, y1, x2, y2"),
        (outside, "beyond the picture; give fractions of its width and height, not pixels"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(f"image {image_id!r} has box {row}, {boxes[row].tolist()}, {what}")


def _check_names(image_id: str, kind: str, ids: np.ndarray, scores: np.ndarray, vocabulary: int) -> None:
    """Refuse ids that the vocabulary lacks and scores that are no probabilities."""
    if ids.size and (ids.min() < -1 or ids.max() >= vocabulary):
        wrong = ids.min() if ids.min() < -1 else ids.max()
        raise UserError(
            f"image {image_id!r} has {kind} id {wrong} but the extractor names {vocabulary}, numbered from 0; "
            "give the vocabulary that belongs to the detector, or -1 for none"
        )
    if scores.size and (scores.min() < 0 or scores.max() > 1):
        wrong = scores.min() if scores.min() < 0 else scores.max()
        raise UserError(f"image {image_id!r} has {kind} score {wrong:g}; give probabilities from 0 to 1, not logits")


def _append(file: Path, committed: FileEntry, data: bytes, running: "hashlib._Hash") -> FileEntry:
    """Write behind the committed part of a file, over whatever an interrupted commit left there."""
    with file.open("r+b") as stream:
        stream.seek(committed.num_bytes)
        stream.write(data)
        stream.truncate()
        stream.flush()
        os.fsync(stream.fileno())
    running.update(data)
    return FileEntry(num_bytes=committed.num_bytes + len(data), sha256=running.hexdigest())


def _cut(file: Path, committed: FileEntry) -> "hashlib._Hash":
    """Cut a growing file to its committed length and hash it; make it if nothing is committed."""
    if not committed.num_bytes:
        file.write_bytes(b"")
    elif file.is_file() and file.stat().st_size > committed.num_bytes:
        os.truncate(file, committed.num_bytes)
    running = hashlib.sha256()
    if file.is_file():
        with file.open("rb") as stream:
            while some := stream.read(2**20):
                running.update(some)
    if running.hexdigest() != committed.sha256:
        raise UserError(f"region store {file.parent} is damaged: {file.name} is not as written; extract it again")
    return running


def _is_remnant(file: Path) -> bool:
    """Whether a file is what a killed writer left of an atomic write."""
    return file.name.startswith(".") and file.suffix == ".part"


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write region store {path}: {error.strerror or error}; free space or choose another place")
