"""Writes an index part by part.

A commit is a part under its own name, then the manifest. Only the manifest counts: what an interrupted commit left
behind is removed by the next writer. A last part that is not full is written again, with more images, under a new name.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from dimvl.errors import UserError
from dimvl.files import FileChecksum, locked, sha256, writing
from dimvl.files.weights import save_weights
from dimvl.search.format import (
    MANIFEST,
    PART_IMAGES,
    UNIT,
    Manifest,
    Part,
    PartEntry,
    check_parts,
    read_manifest,
    read_part,
    write_manifest,
)


class IndexWriter:
    """Writes a new index or continues one. A context manager, which writes the rest on exit, also after an error.

    Args:
        path: folder of the index; created if missing.
        manifest: the index without parts. Model and width must be those of an index that is continued.

    Attributes:
        manifest: what is committed.

    Raises:
        UserError: the folder has other content, an index of another model, or another writer; or it is damaged.

    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        with ExitStack() as held:
            busy = f"another process is writing the index {path}; wait for it or stop it"
            held.enter_context(locked(path, busy))
            self.manifest = self._open(manifest)
            check_parts(path, self.manifest)
            self._ids: list[str] = []
            self._rows: list[tuple[Tensor, Tensor]] = []
            self._whole = self.manifest.parts  # of the manifest, those that stay as they are
            if self._whole and self._whole[-1].num_images < PART_IMAGES:
                last = read_part(path, self.manifest, self._whole[-1])
                self._whole = self._whole[:-1]
                self._ids, self._rows = last.image_ids(), [(last.checksums, last.embeddings)]
            self._held = held.pop_all()

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._held, suppress(UserError) if kind else nullcontext():  # report the first error
            if self._written + len(self._ids) > self.manifest.num_images:
                self._commit(len(self._ids))

    def add(self, image_ids: Sequence[str], checksums: Tensor, embeddings: Tensor) -> None:
        """Add images that the index lacks; a part is written as soon as it is full.

        Args:
            image_ids: N ids.
            checksums: (N,) int64 of their regions.
            embeddings: (N, W) float32 of unit length.

        Raises:
            UserError: the disk is full or the folder cannot be written; the index stays as it was before.

        """
        assert (embeddings.norm(dim=1) - 1).abs().lt(UNIT).all(), "bounds of a search hold for unit length"
        self._ids += image_ids
        self._rows.append((checksums, embeddings))
        while len(self._ids) >= PART_IMAGES:
            self._commit(PART_IMAGES)

    def use_store(self, store: str) -> None:
        """Record the folder of the region store, if it is another one than before."""
        if self.manifest.store != store:
            self.manifest = self.manifest.model_copy(update={"store": store})
            write_manifest(self.path, self.manifest)

    @property
    def _written(self) -> int:
        """Images of the parts that stay as they are."""
        return sum(part.num_images for part in self._whole)

    def _open(self, wanted: Manifest) -> Manifest:
        """Read the manifest or write the first one, and remove what an interrupted commit left behind."""
        if not (self.path / MANIFEST).exists():
            if any(not _is_remnant(file) for file in self.path.iterdir()):
                raise UserError(f"{self.path} is neither empty nor an index of images; choose another folder")
            write_manifest(self.path, wanted)
        manifest = read_manifest(self.path)
        if (manifest.model, manifest.width) != (wanted.model, wanted.width):
            raise UserError(
                f"{self.path} was made by a different model ({manifest.model_name}) from {wanted.model_name}; give the "
                "model that made it, or choose another folder"
            )
        committed = {part.file for part in manifest.parts}
        with writing(self.path):
            for file in self.path.iterdir():
                if _is_remnant(file) or (file.suffix == ".safetensors" and file.name not in committed):
                    file.unlink()
        return manifest

    def _commit(self, count: int) -> None:
        """Write the first images that wait as a part."""
        checksums, embeddings = (torch.cat(columns) for columns in zip(*self._rows, strict=True))
        part = Part.of(self._ids[:count], checksums[:count], embeddings[:count])
        file = self.path / f"part-{len(self._whole):05}-{count}.safetensors"
        save_weights(file, part._asdict())
        content = FileChecksum(num_bytes=os.path.getsize(file), sha256=sha256(file))
        entry = PartEntry(file=file.name, num_images=count, content=content)
        manifest = self.manifest.model_copy(update={"parts": (*self._whole, entry)})
        write_manifest(self.path, manifest)
        self.manifest, self._whole = manifest, manifest.parts
        self._ids, self._rows = self._ids[count:], [(checksums[count:], embeddings[count:])]


def _is_remnant(file: Path) -> bool:
    """Whether a file is one that an interrupted `atomic_path` left behind."""
    return file.name.startswith(".") and file.suffix == ".part"
