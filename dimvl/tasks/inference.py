"""Batches of a region store's images for a trained model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.config import EvaluationOptions
from dimvl.data.annotations import ImageKey
from dimvl.data.matching import Record, in_store, match_file
from dimvl.data.prefixes import Prefix, PrefixImages
from dimvl.data.sampler import in_order
from dimvl.errors import NotFinitePredictionError, UserError
from dimvl.regions.store import RegionStore
from dimvl.trained_model import TrainedModel

ROW_BUDGET = 8192
"""Maximum number of rows of one forward pass."""


def finite(probabilities: Tensor) -> Tensor:
    """Return predictions unchanged; a `NotFinitePredictionError` if one is not a finite number."""
    if not probabilities.isfinite().all():
        raise NotFinitePredictionError
    return probabilities


def records_in_store(
    path: Path, records: Sequence[Record], trained: TrainedModel, store: RegionStore, options: EvaluationOptions
) -> tuple[list[Record], int]:
    """Return the records of a file on images of the store, and the number of the others.

    Raises:
        UserError: the file does not fit the store, or it has others and `options.missing` does not skip them.

    """
    match = match_file(path, records, store, trained.processor, options.match, "--match ")
    match.check(store, options.missing, "--skip-missing")
    return list(in_store(records, match)), match.texts_missing


def store_batches(
    trained: TrainedModel, store: RegionStore, images: Sequence[ImageKey], text_rows: Sequence[int]
) -> Iterator[tuple[np.ndarray, list[Prefix]]]:
    """Yield batches of items of similar size: their indices and prefixes.

    Args:
        trained: the model.
        store: regions of the images.
        images: image or images of each item, as in records.
        text_rows: rows of each item besides its prefix.

    Raises:
        UserError: no items, an image that the store lacks or that the model was trained on, or a store of another
            extractor.

    """
    if not images:
        raise UserError(f"there is nothing to evaluate with {store.path}; give annotations with at least one record")
    processor = trained.processor
    processor.check_extractor(store.extractor, str(store.path))
    reader, found = processor.reader(store), PrefixImages.find(store, images)
    trained.refuse_trained([image_id for image_ids, _ in images for image_id in image_ids])
    for indices in in_order(reader.rows(found) + np.array(text_rows), ROW_BUDGET):
        yield indices, reader.prefixes(found[indices])


def pair_batches(
    trained: TrainedModel, store: RegionStore, images: Sequence[ImageKey], text_rows: Sequence[int], shared: bool
) -> Iterator[tuple[list[int], list[Prefix]]]:
    """Yield batches of pairs of images and texts: their indices, and a prefix for each.

    Args:
        trained: the model.
        store: regions of the images.
        images: image or images of each pair, as in records.
        text_rows: rows of each pair besides its prefix.
        shared: whether pairs about the same images come one after the other, with the same prefix (the same object).

    Raises:
        UserError: as `store_batches`.

    """
    groups: dict[Any, list[int]] = {}
    for place, key in enumerate(images):
        groups.setdefault(key if shared else place, []).append(place)
    grouped = list(groups.values())
    rows = [sum(text_rows[place] for place in group) for group in grouped]
    for chosen, prefixes in store_batches(trained, store, [images[group[0]] for group in grouped], rows):
        pairs = [(place, prefix) for prefix, one in zip(prefixes, chosen, strict=True) for place in grouped[one]]
        yield [place for place, _ in pairs], [prefix for _, prefix in pairs]


def predict_texts(
    trained: TrainedModel,
    store: RegionStore,
    images: Sequence[ImageKey],
    texts: Sequence[Any],
    apply: Callable[[list[Prefix], list[Any]], Iterable[Any]],
    progress: Progress | None = None,
) -> list[Any]:
    """Predict something for each pair of images and a text, in their order.

    If the model's prefixes do not depend on the text, images are computed once for all their texts.

    Args:
        trained: the model.
        store: regions of the images.
        images: image or images of each pair, as in records.
        texts: a tokenised text of each pair, whose length is about the rows that it adds to a prefix.
        apply: from prefixes and texts of a batch to what is predicted for each.
        progress: called with (predictions made, predictions in total).

    Raises:
        UserError: as `store_batches`.

    """
    found: dict[int, Any] = {}
    rows = [len(text) + 1 for text in texts]
    for places, prefixes in pair_batches(trained, store, images, rows, trained.processor.shared_prefix):
        found |= zip(places, apply(prefixes, [texts[place] for place in places]), strict=True)
        if progress is not None:
            progress(len(found), len(texts))
    return [found[place] for place in range(len(texts))]
