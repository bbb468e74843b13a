"""Helpers for validation: matched records, the subset to score and the sample to log."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dimvl.config import RunConfig, ValidationConfig
from dimvl.data.examples import keyed_generator
from dimvl.data.matching import Record, in_store, match_file
from dimvl.data.trained_on import read_trained_on, trained_images
from dimvl.regions.store import RegionStore

logger = logging.getLogger(__name__)
SHOWN = 32
"""Number of predictions logged at each validation."""


def matched(records: Sequence[Record], path: Path, config: RunConfig, store: RegionStore) -> list[Record]:
    """Return the records on images of the store; warn about images that the run trains on.

    Raises:
        UserError: the file does not fit the store.

    """
    match = match_file(path, records, store, config.inputs, config.match)
    match.check(store, config.missing, "missing=skip")
    found = list(in_store(records, match))
    images = list(dict.fromkeys(image for record in found for image in record.image_ids))
    if seen := trained_images(images, read_trained_on(config.output)):
        logger.warning(
            "%d of the %d images of %s are trained on, such as %r; the validation score will be too high",
            *(len(seen), len(images), path, seen[0]),
        )
    return found


def subset(number: int, section: ValidationConfig) -> np.ndarray:
    """Draw the items to score out of `number`, ascending; without `section.subset`, return all."""
    if section.subset is None or section.subset >= number:
        return np.arange(number)
    return np.sort(keyed_generator(section.seed, "validation").permutation(number)[: section.subset])


def sample(number: int, section: ValidationConfig) -> list[int]:
    """Draw the items whose predictions are logged, ascending; the same ones at every validation."""
    drawn = keyed_generator(section.seed, "predictions").permutation(number)[:SHOWN]
    return [int(place) for place in np.sort(drawn)]
