"""The images of a region store, through the image tower of a model, into an index."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.data.prefixes import ImageReader, PrefixImages
from dimvl.data.sampler import in_order
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.search.format import Manifest, check_aligned, read_part
from dimvl.search.writer import IndexWriter
from dimvl.showing import counted
from dimvl.tasks.inference import ROW_BUDGET
from dimvl.tasks.retrieval.prediction import embed_images
from dimvl.trained_model import TrainedModel, model_fingerprint

BLOCK = 1024
"""Images that are sorted by size together; a resumed run forms the same batches."""


class IndexReport(NamedTuple):
    """Numbers of images that were embedded, and that the index had."""

    embedded: int
    kept: int


def index_store(trained: TrainedModel, store: RegionStore, out: Path, progress: Progress | None = None) -> IndexReport:
    """Embed the images of a store that an index lacks, in the order of the store.

    Memory does not grow with the images, except for nine bytes of each. A killed run loses the images since the last
    full part, and one that is interrupted in another way at most one block.

    Args:
        trained: a model that aligns, an export.
        store: one folder; an index that exists must have images of this store only.
        out: folder of the index, new or to continue.
        progress: called with (images done, images in total).

    Raises:
        UserError: the model does not align, or does not fit the store or the index; the store is empty, lacks an image
            of the index or has other regions of it; or the index cannot be written.

    """
    check_aligned(trained)
    trained.processor.check_extractor(store.extractor, store.path)
    if not len(store):
        raise UserError(f"region store {store.path} has no images; give another")
    reader = trained.processor.reader(store)
    first = next(_embedded(trained, reader, np.zeros(1, dtype=np.int64)))[1]
    manifest = Manifest(
        model=model_fingerprint(trained),
        model_name=str(trained.weights.parent),
        store=os.path.abspath(store.path),
        width=first.shape[1],
        parts=(),
    )
    with IndexWriter(out, manifest) as writer:
        todo = np.flatnonzero(_lacking(out, writer.manifest, store))
        writer.use_store(manifest.store)
        done = kept = len(store) - len(todo)
        for start in range(0, len(todo), BLOCK):
            block = todo[start : start + BLOCK]
            rows = torch.empty(len(block), manifest.width)
            for chosen, embeddings in _embedded(trained, reader, block):
                rows[torch.from_numpy(chosen)] = embeddings
                done += len(chosen)
                if progress is not None:
                    progress(done, len(store))
            ids = [store.image_id(position) for position in block.tolist()]
            writer.add(ids, torch.from_numpy(store.checksums(block)), rows)
    return IndexReport(len(todo), kept)


def _embedded(trained: TrainedModel, reader: ImageReader, positions: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield batches of images of similar size: their places in `positions`, and their embeddings (B, W)."""
    found = PrefixImages(positions, np.ones_like(positions))
    for chosen in in_order(reader.rows(found), ROW_BUDGET):
        yield chosen, embed_images(trained, reader.prefixes(found[chosen])).pooled


def _lacking(out: Path, manifest: Manifest, store: RegionStore) -> np.ndarray:
    """Return for each image of a store whether the index lacks it: (images,) bool.

    Raises:
        UserError: the index has an image that the store lacks, or of other regions.

    """
    lacking = np.ones(len(store), dtype=bool)
    for entry in manifest.parts:
        part = read_part(out, manifest, entry)
        ids = part.image_ids()
        found = store.find(ids)
        if missing := np.flatnonzero(found < 0).tolist():
            raise UserError(
                f"{out} has images that region store {store.path} lacks, such as {ids[missing[0]]!r}; give a store "
                "that has them all (`dimvl join` makes one of several), or another folder"
            )
        if changed := np.flatnonzero(store.checksums(found) != part.checksums.numpy()).tolist():
            raise UserError(
                f"region store {store.path} has changed since it was embedded: {counted(len(changed), 'image')} with "
                f"different regions, such as {ids[changed[0]]!r}; rebuild the index in another folder"
            )
        lacking[found] = False
    return lacking
