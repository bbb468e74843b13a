"""Batches of a region store's images for a trained model."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from dimvl.data.annotations import ImageKey
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
