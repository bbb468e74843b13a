"""The hard negatives of a run, by the embeddings of an earlier model.

Letters: G images with captions, T texts, E dimensions, K neighbours.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dimvl.data.processor import Processor
from dimvl.data.text_store import TextStore
from dimvl.errors import UserError
from dimvl.files.kept import kept_array
from dimvl.regions.store import RegionStore
from dimvl.tasks.pretraining.config import HardNegativesConfig
from dimvl.tasks.retrieval.prediction import EMBED_IMAGE, embed_groups, embed_texts
from dimvl.trained_model import TrainedModel, load_model

logger = logging.getLogger(__name__)
KEY = "hard_negatives.model"
IMAGES_AT_ONCE, TEXTS_AT_ONCE = 128, 512


def find_neighbours(config: HardNegativesConfig, own: Processor, captions: TextStore, store: RegionStore) -> np.ndarray:
    """Return the images whose captions fit each image best, best first: (G, K) int32.

    An image is compared with the mean embedding of the captions of each other one. The result is kept in a file beside
    the texts, named after all that it depends on, which the processes that build batches map.

    Raises:
        UserError: the model cannot embed these images and texts, or there are too few images.

    """
    if captions.num_groups <= config.among:
        raise UserError(
            f"hard_negatives.among is {config.among} but only {captions.num_groups - 1} other images have captions; "
            "lower it"
        )
    trained = load_model(config.model)
    _check(trained, config.model, own, store)

    def compute() -> np.ndarray:
        logger.info("finding the hard negatives of %d images by %s", captions.num_groups, config.model)
        ready = trained.for_prediction()
        images, texts = embed_groups(ready, captions, store), _mean_text_embeddings(ready, captions)
        return _nearest(images, texts, captions, config.among)

    parts = (trained.weights_sha256, captions.path.name, store.fingerprint, config.among)
    return kept_array(captions.path.parent, "neighbours", parts, compute)


def _check(trained: TrainedModel, folder: Path, own: Processor, store: RegionStore) -> None:
    processor = trained.processor
    if not EMBED_IMAGE.available(processor):
        raise UserError(f"{KEY} {folder} was not trained to align; give a run with contrastive alignment")
    if conflict := processor.extractor.conflict(store.extractor):
        raise UserError(
            f"{KEY} {folder} was trained on regions of {processor.extractor.name}, and {store.path} was made by "
            f"{store.extractor.name} ({conflict}); give a model that was trained on regions of that extractor"
        )
    if processor.tokenizer.fingerprint != own.tokenizer.fingerprint or processor.text_tokens < own.text_tokens:
        raise UserError(
            f"{KEY} {folder} has a different tokenizer from this run or takes shorter texts; give one with the same "
            "inputs"
        )


def _mean_text_embeddings(trained: TrainedModel, captions: TextStore) -> Tensor:
    """Return the mean embedding of the captions of each group: (G, E)."""
    found = []
    for start in range(0, len(captions), TEXTS_AT_ONCE):
        texts = range(start, min(start + TEXTS_AT_ONCE, len(captions)))
        found.append(embed_texts(trained, [captions.tokens(text).astype(np.int64) for text in texts]).pooled)
    owners = torch.from_numpy(np.repeat(np.arange(captions.num_groups), np.diff(captions.groups)))
    sums = torch.zeros(captions.num_groups, found[0].shape[1]).index_add_(0, owners, torch.cat(found))
    return sums / torch.bincount(owners, minlength=captions.num_groups)[:, None]


def _nearest(images: Tensor, texts: Tensor, captions: TextStore, count: int) -> np.ndarray:
    """Return the best other groups of each one that have no image in common with it: (G, K).

    Those of which there are fewer than K come again.
    """
    found = np.empty((len(images), count), np.int32)
    shared: dict[int, set[int]] = {}
    for one, other in captions.pairs_with_common_images(np.arange(captions.num_groups)):
        shared.setdefault(one, set()).add(other)
    for start in range(0, len(images), IMAGES_AT_ONCE):
        scores = images[start : start + IMAGES_AT_ONCE] @ texts.T
        for row, own in enumerate(scores):
            index = start + row
            own[[index, *shared.get(index, ())]] = -torch.inf
            best = own.argsort(descending=True, stable=True)[: min(count, int(own.isfinite().sum()))].tolist()
            found[index] = np.resize(
                best or [index], count
            )  # if all share an image, the image itself, which is refused
    return found
