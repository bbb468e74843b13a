"""Helpers for validation: matched records, the subset to score, the sample to log, and validation on texts."""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic

import numpy as np

from dimvl.config import RunConfig, ValidationConfig
from dimvl.data.examples import keyed_generator
from dimvl.data.matching import Record, in_store, match_file
from dimvl.data.prefixes import Prefix, PrefixImages
from dimvl.data.trained_on import read_trained_on, trained_images
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import TaskModule
from dimvl.tasks.task import ValidationScore, Validator
from dimvl.trained_model import TrainedModel

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


class TextValidator(Validator, Generic[Record]):
    """Predicts something for each text of a file, on its images in the store, and scores it.

    Args:
        config: of the run, with a validation.
        module: the model.
        store: regions of the images.
        path: the file.
        records: what it has.

    Attributes:
        records: those to score.
        texts: what `tokenise` makes of them.
        shown: places of those whose predictions are logged.

    """

    def __init__(
        self, config: RunConfig, module: TaskModule, store: RegionStore, path: Path, records: Sequence[Record]
    ) -> None:
        section = config.validation
        assert section is not None
        every = matched(records, path, config, store)
        self.records = [every[place] for place in subset(len(every), section)]
        self.shown = sample(len(self.records), section)
        self.trained = TrainedModel(module.model, module.processor, path)
        self.texts = self.tokenise()
        self.reader = module.processor.reader(store)
        self.images = PrefixImages.find(store, [record.images for record in self.records])
        self.costs = self.reader.rows(self.images) + np.array([len(text) + 1 for text in self.texts])

    def tokenise(self) -> Sequence[Any]:
        """Return a tokenised text of each record; its length is about the rows that it adds to a prefix."""
        return self.trained.tokenise([record.text for record in self.records])

    def run(self, items: np.ndarray) -> list[Any]:
        """Return what is predicted for each record."""
        prefixes = self.reader.prefixes(self.images[items])
        return self.predict(prefixes, [self.texts[item] for item in items.tolist()])

    def result(self, parts: Sequence[tuple[np.ndarray, Any]]) -> ValidationScore:
        """Score what was predicted for all records."""
        found = {int(item): own for items, values in parts for item, own in zip(items, values, strict=True)}
        return self.score([found[item] for item in range(len(self.records))])

    @abstractmethod
    def predict(self, prefixes: Sequence[Prefix], texts: Sequence[Any]) -> list[Any]:
        """Return a small plain value for each prefix and its text."""

    @abstractmethod
    def score(self, found: Sequence[Any]) -> ValidationScore:
        """Score what was predicted for each record."""
