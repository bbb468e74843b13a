"""Applying a trained model to images of a region store, in batches of similar numbers of rows."""

from collections.abc import Iterator, Sequence

import numpy as np

from dimvl.data.annotations import ImageKey
from dimvl.data.prefixes import Prefix, PrefixImages
from dimvl.data.sampler import in_order
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.trained_model import TrainedModel

ROW_BUDGET = 8192
"""Rows of one forward pass."""


def store_batches(
    trained: TrainedModel,
    store: RegionStore,
    images: Sequence[ImageKey],
    text_rows: Sequence[int],
    row_budget: int = ROW_BUDGET,
) -> Iterator[tuple[np.ndarray, list[Prefix]]]:
    """Yield indices into `images`, those of similar size together, with the prefixes of these images.

    Args:
        trained: the model.
        store: regions of the images.
        images: image or images of each item to predict, as records have them.
        text_rows: rows of each item beside its prefix.
        row_budget: most rows of one batch.

    Raises:
        UserError: there are no items, the store lacks an image or is of another extractor, or the model was trained on
            one of the images.

    """
    if not images:
        raise UserError(f"there is nothing to evaluate with {store.path}; give annotations that are not empty")
    processor = trained.processor
    processor.check_extractor(store.extractor, str(store.path))
    reader, found = processor.reader(store), PrefixImages.find(store, images)
    trained.refuse_trained([image_id for image_ids, _ in images for image_id in image_ids])
    for indices in in_order(reader.rows(found) + np.array(text_rows), row_budget):
        yield indices, reader.prefixes(found[indices])


def one_image(image_id: str) -> ImageKey:
    """Return the key of a single image."""
    return (image_id,), ()
