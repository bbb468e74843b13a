"""Writes region stores: whole shards, each committed at once, so that a killed writer can continue.

A commit is: the shard under its final name, then the tails of `index.bin` and `ids.bin`, then the manifest. Only the
manifest counts; what an interrupted commit left behind is overwritten or removed by the next writer. `store.py` says
what the files are.
"""

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from safetensors.numpy import save

from dimvl.errors import UserError
from dimvl.files import atomic_path, write_json
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store import RegionStore
from dimvl.regions.store_format import (
    INDEX_DTYPE,
    FileEntry,
    Manifest,
    ShardEntry,
    encode_id,
    hash_of_id,
    make_lookup,
    read_manifest,
)


class RegionStoreWriter:
    """Writes a new region store or continues one. A context manager: its end writes what is left.

    Images become durable shard by shard; a killed writer loses those since the last full shard. The writer (not the
    reader) keeps the ids in memory, about 100 bytes an image.

    Args:
        path: the store's folder; made if it is missing.
        extractor: who makes the regions; must be the same as in a store that is continued.
        shard_bytes: a shard is written when its arrays reach so many bytes.

    Raises:
        UserError: the folder has other content, another extractor's regions or another writer, or cannot be written.

    """

    def __init__(self, path: Path, extractor: Extractor, *, shard_bytes: int = 64 * 2**20) -> None:
        self.path = Path(path)
        self.shard_bytes = shard_bytes
        self._pending: list[tuple[bytes, int, int, dict[str, np.ndarray]]] = []
        self._pending_bytes = 0
        self._lock = _lock(self.path)
        try:
            self.manifest = self._open(extractor)
        except BaseException:
            os.close(self._lock)
            raise

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
            UserError: the id is there already, an array has another shape than the store's or a value that is not
                finite, or the disk is full.

        """
        if regions.image_id in self._ids:
            raise UserError(f"image {regions.image_id!r} is in region store {self.path} already; give each image once")
        if not len(self):
            self.manifest = self.manifest.model_copy(
                update={
                    "class_columns": regions.class_ids.shape[1],
                    "attribute_columns": regions.attribute_ids.shape[1],
                }
            )
        arrays = {
            name: _checked(regions, name, np.dtype(dtype), columns)
            for name, (dtype, columns) in self.manifest.layout.items()
        }
        self._pending.append((encode_id(regions.image_id), regions.width, regions.height, arrays))
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
        if self._lock < 0:
            return
        try:
            self.flush()
            lookup = self.path / "lookup.npy"
            with atomic_path(lookup) as temporary, temporary.open("wb") as file:
                np.save(file, make_lookup(np.fromfile(self.path / "index.bin", dtype=INDEX_DTYPE)))
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        finally:
            os.close(self._lock)
            self._lock = -1

    def _open(self, extractor: Extractor) -> Manifest:
        """Take over the store in the folder, or begin one."""
        if not (self.path / "manifest.json").exists():
            if any(not _is_remnant(file) for file in self.path.iterdir()):
                raise UserError(f"{self.path} is neither empty nor a region store; choose another folder")
            nothing = FileEntry(num_bytes=0, sha256=hashlib.sha256().hexdigest())
            manifest = Manifest(
                extractor=extractor,
                class_columns=0,
                attribute_columns=0,
                num_images=0,
                num_regions=0,
                index=nothing,
                ids=nothing,
                shards=(),
            )
            self._write_manifest(manifest)
        manifest = read_manifest(self.path)
        if manifest.extractor != extractor:
            raise UserError(_other_extractor(self.path, manifest.extractor, extractor))
        try:
            self._index_hash = _cut(self.path / "index.bin", manifest.index)
            self._ids_hash = _cut(self.path / "ids.bin", manifest.ids)
            committed = {entry.file for entry in manifest.shards}
            for file in self.path.iterdir():
                if _is_remnant(file) or (file.suffix == ".safetensors" and file.name not in committed):
                    file.unlink()
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        store = RegionStore(self.path)
        self._ids = {store.image_id(position) for position in range(len(store))}
        return manifest

    def _commit(self) -> None:
        old = self.manifest
        counts = np.array([len(arrays["boxes"]) for *_, arrays in self._pending])
        number, num_regions = len(old.shards), int(counts.sum())
        data = save({name: np.concatenate([arrays[name] for *_, arrays in self._pending]) for name in old.layout})
        file = f"shard-{number:05}.safetensors"
        with atomic_path(self.path / file) as temporary:
            temporary.write_bytes(data)

        ids = [encoded for encoded, *_ in self._pending]
        lengths = np.array([len(encoded) for encoded in ids])
        index = np.zeros(len(ids), dtype=INDEX_DTYPE)
        index["hash"] = [hash_of_id(encoded) for encoded in ids]
        index["first_row"] = np.cumsum(counts) - counts
        index["id_start"] = old.ids.num_bytes + np.cumsum(lengths) - lengths
        index["id_length"] = lengths
        index["shard"] = number
        index["num_regions"] = counts
        index["width"] = [width for _, width, _, _ in self._pending]
        index["height"] = [height for _, _, height, _ in self._pending]

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
                "shards": (*old.shards, entry),
            }
        )
        self._write_manifest(manifest)
        self.manifest, self._index_hash, self._ids_hash = manifest, index_hash, ids_hash
        self._pending, self._pending_bytes = [], 0

    def _write_manifest(self, manifest: Manifest) -> None:
        write_json(self.path / "manifest.json", manifest.model_dump(mode="json"))


def _checked(regions: Regions, name: str, dtype: np.dtype, columns: int) -> np.ndarray:
    """Copy one array of an image to the store's dtype."""
    with np.errstate(over="ignore"):  # a float32 beyond float16 becomes infinite, which is refused below
        array = np.array(getattr(regions, name), dtype=dtype, order="C")
    if array.shape != (len(regions), columns):
        raise UserError(
            f"image {regions.image_id!r} has {name} of shape {array.shape}, but this store holds "
            f"{(len(regions), columns)}; use the detector that the store was begun with"
        )
    if not np.isfinite(array).all():
        raise UserError(f"image {regions.image_id!r} has {name} that are not finite in {dtype}; check the detector")
    return array


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
    running = hashlib.sha256(file.read_bytes() if file.is_file() else b"")
    if running.hexdigest() != committed.sha256:
        raise UserError(f"region store {file.parent} is damaged: {file.name} is not as written; extract it again")
    return running


def _is_remnant(file: Path) -> bool:
    """Whether a file is what a killed writer left of an atomic write."""
    return file.name.startswith(".") and file.suffix == ".part"


def _lock(path: Path) -> int:
    """Lock a store's folder for this process; the operating system unlocks it when the process ends, however."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"another process is writing region store {path}; wait for it or end it") from None
    except OSError:
        pass  # a file system without locks: one writer at a time is then up to the user
    return descriptor


def _other_extractor(path: Path, there: Extractor, given: Extractor) -> str:
    differing = next(name for name in vars(there) if getattr(there, name) != getattr(given, name))
    return (
        f"region store {path} was made by another extractor ({differing} is {getattr(there, differing)!r} there and "
        f"{getattr(given, differing)!r} here); choose another folder or the same detector"
    )


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write region store {path}: {error.strerror or error}; free space or choose another place")
