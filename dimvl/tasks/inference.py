"""Applying a trained model to images of a region store, in batches of similar numbers of rows."""

from collections.abc import Iterator, Sequence

import numpy as np

from dimvl.data.examples import ImageReader, Prefix
from dimvl.data.sampler import in_order
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.trained_model import TrainedModel

ROW_BUDGET = 8192
"""Rows of one forward pass."""


def store_batches(
    trained: TrainedModel,
    store: RegionStore,
    image_ids: Sequence[str],
    text_rows: Sequence[int],
    row_budget: int = ROW_BUDGET,
) -> Iterator[tuple[np.ndarray, list[Prefix]]]:
    """Yield indices into `image_ids`, those of similar size together, with the prefixes of their images.

    Args:
        trained: the model.
        store: regions of the images.
        image_ids: of each item to predict.
        text_rows: rows of each item beside its prefix.
        row_budget: most rows of one batch.

    Raises:
        UserError: there are no items, the store lacks an image or is of another extractor, or the model was trained on
            one of the images.

    """
    if not image_ids:
        raise UserError(f"there is nothing to evaluate with {store.path}; give annotations that are not empty")
    processor = trained.processor
    processor.check_extractor(store.extractor, str(store.path))
    reader = ImageReader(store, processor.tags, processor.max_regions)
    positions = store.positions(image_ids)
    trained.refuse_trained(image_ids)
    for indices in in_order(reader.rows(positions) + np.array(text_rows), row_budget):
        yield indices, reader.prefixes(positions[indices])


def official_id(image_id: str) -> int | str:
    """Return an image id as annotation files have it: a number where it is one."""
    return int(image_id) if image_id.isdecimal() and image_id == str(int(image_id)) else image_id
