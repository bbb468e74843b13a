"""Makes one region store of several, such as the parts that several processes wrote.

Shards are linked where the file system allows it, else copied; only the index is written anew. So the rows of each
image are the same bytes, and their order is that of the stores.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save

from dimvl.callbacks import Progress
from dimvl.errors import UserError
from dimvl.files import FileChecksum, atomic_folder, reading, sha256
from dimvl.regions.store.folder import Shard, StoreFolder
from dimvl.regions.store.format import (
    INDEX_DTYPE,
    Manifest,
    ShardEntry,
    checksum_of_record,
    make_lookup,
    write_manifest,
)
from dimvl.regions.store.reader import common_images, common_manifest, refuse_two_ids

CONTENT = ["width", "height", "num_regions", "rows_checksum"]


class JoinReport(NamedTuple):
    """The result of a join.

    Attributes:
        images: images of the new store.
        repeated: images that several stores have with the same content, and the new store once.

    """

    images: int
    repeated: int


def join_stores(out: Path, paths: Sequence[Path], progress: Progress | None = None) -> JoinReport:
    """Write a new store of all images of several stores, whole or not at all.

    Args:
        out: its folder, which must not exist or be empty.
        paths: the stores; they stay as they are.
        progress: called with the shards done and in total.

    Raises:
        UserError: `out` is there, a store is unfinished or damaged, they differ in extractor or settings, two images
            have one id or one image two, or the disk is full.

    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it, or choose another folder")
    folders = [StoreFolder(path, max_open=1) for path in paths]
    for folder in folders:
        if folder.manifest.lookup is None:
            raise UserError(f"region store {folder.path} is unfinished; repeat the command that writes it, then join")
    manifest = common_manifest(folders)
    refuse_two_ids(folders)
    repeated = _repeated(folders)
    with atomic_folder(out, replace=False) as temporary:
        if out.exists():
            out.rmdir()
        manifest = _write(temporary, folders, manifest, repeated, progress)
        write_manifest(temporary, manifest)
    return JoinReport(manifest.num_images, sum(map(len, repeated)))


def _repeated(folders: Sequence[StoreFolder]) -> list[set[int]]:
    """Return the positions of each store's images that an earlier store has with the same content."""
    repeated: list[set[int]] = [set() for _ in folders]
    for (earlier, one), (number, other) in common_images(folders):
        if any(folders[earlier].index[one][name] != folders[number].index[other][name] for name in CONTENT):
            raise UserError(
                f"image {folders[number].image_id(other)!r} has different regions in {folders[number].path} and "
                f"{folders[earlier].path}; give different images different ids, or omit one of the stores"
            )
        repeated[number].add(other)
    return repeated


def _write(
    out: Path,
    folders: Sequence[StoreFolder],
    manifest: Manifest,
    repeated: Sequence[set[int]],
    progress: Progress | None,
) -> Manifest:
    """Write all files but the manifest, which is returned."""
    total, done = sum(len(folder.manifest.shards) for folder in folders), 0
    shards: list[ShardEntry] = []
    with (out / "index.bin").open("wb") as index_file, (out / "ids.bin").open("wb") as ids_file:
        for folder, dropped in zip(folders, repeated, strict=True):
            ends = np.cumsum([entry.num_images for entry in folder.manifest.shards], dtype=np.int64)
            for number, end in enumerate(ends.tolist()):
                start = end - folder.manifest.shards[number].num_images
                kept = [position for position in range(start, end) if position not in dropped]
                if kept:
                    records = folder.index[kept]
                    shards.append(_write_shard(out, len(shards), folder, number, records))
                    ids = [folder.id_bytes(position) for position in kept]
                    records["shard"] = len(shards) - 1
                    records["id_start"] = ids_file.tell() + np.cumsum(records["id_length"]) - records["id_length"]
                    records["checksum"] = [checksum_of_record(record) for record in records]
                    ids_file.write(b"".join(ids))
                    index_file.write(records.tobytes())
                done += 1
                if progress is not None:
                    progress(done, total)
    index = np.fromfile(out / "index.bin", dtype=INDEX_DTYPE)
    (out / "lookup.bin").write_bytes(make_lookup(index).astype("<u8").tobytes())
    changes = {name: _checksum(out / f"{name}.bin") for name in ("index", "ids", "lookup")}
    return manifest.model_copy(
        update={
            **changes,
            "num_images": len(index),
            "num_regions": sum(entry.num_regions for entry in shards),
            "shards": tuple(shards),
        }
    )


def _write_shard(out: Path, place: int, folder: StoreFolder, number: int, records: np.ndarray) -> ShardEntry:
    """Link or copy a shard; or, without some of its images, write it anew, and let `records` say where the rows are."""
    entry, shard = folder.manifest.shards[number], Shard(folder.path, folder.manifest, number)
    target, changes = out / f"shard-{place:05}.safetensors", {}
    if len(records) == entry.num_images:
        with reading(shard.file):
            _link_or_copy(shard.file, target)
    else:
        counts = records["num_regions"].astype(np.int64)
        data = save(_rows(folder.manifest, shard, records, int(counts.sum())))
        target.write_bytes(data)
        records["first_row"] = np.cumsum(counts) - counts
        changes = {
            "num_images": len(records),
            "num_regions": int(counts.sum()),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    return entry.model_copy(update={"file": target.name, **changes})


def _rows(manifest: Manifest, shard: Shard, records: np.ndarray, num_regions: int) -> dict[str, np.ndarray]:
    """Read the rows of some images of a shard, as stored."""
    arrays = {}
    for name, (dtype, columns) in manifest.layout.items():
        arrays[name] = np.empty((num_regions, columns), dtype)
        rows, end = arrays[name].reshape(-1).view(np.uint8).data, 0
        for record in records:
            start, end = end, end + int(record["num_regions"]) * columns * np.dtype(dtype).itemsize
            shard.read_into(name, int(record["first_row"]), rows[start:end])
    return arrays


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; shards never change. Where that is not possible, copy it."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _checksum(file: Path) -> FileChecksum:
    return FileChecksum(num_bytes=file.stat().st_size, sha256=sha256(file))
