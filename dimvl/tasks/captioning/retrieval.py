"""Self-retrieval: a reward for captions that find their own image among others.

CIDEr-D pays for what most references share, so self-critical training drops what tells an image from others. A caption
that is also judged by how well its image is found from it keeps that: Luo et al., "Discriminability objective for
training descriptive captions" (CVPR 2018), and Liu et al., "Show, tell and discriminate" (ECCV 2018), by a margin
between images of a batch; Cho et al., "Fine-grained image captioning with CLIP reward" (Findings of NAACL 2022), by the
score of its own image alone. Here the judge is a pretrained model that stays as it is.

A matching head trained on true and drawn pairs estimates the log-odds of a pair, so a softmax over images is the
probability that the caption was written about each of them. One more choice, "about none of them", has log-odds 0: a
caption with a false detail loses even where it fits the other images still less, and with a single image the reward is
that of Cho et al. The scaled cosines of contrastive alignment tell images apart, but not whether any of them fits, so
that there is no such choice; they cost less, since each image is encoded once for all training, and each caption once.

The log-probability is divided by the logarithm of the number of choices. This is a constant, so the gradient stays
unbiased, and the weight of the reward means the same for any data and any number of images. Dividing by the spread of
the drawn captions, as is often done, would bias the gradient.

The other images are drawn by seed, epoch and image, not taken from the batch: ranks and micro-batches change nothing.

Letters: M captions, P prefixes, I images to choose from, G images in all, E dimensions.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from dimvl.data.layout import ranges
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.sampler import in_order
from dimvl.data.text_store import TextStore
from dimvl.errors import UserError
from dimvl.files.kept import kept_array
from dimvl.regions.store import RegionStore
from dimvl.tasks.captioning.config import JudgedBy
from dimvl.tasks.inference import ROW_BUDGET
from dimvl.tasks.pretraining.matching import MATCH, match_logits
from dimvl.tasks.retrieval.prediction import EMBED_IMAGE, embed_groups, embed_texts, scales
from dimvl.trained_model import TrainedModel, load_model, model_fingerprint

logger = logging.getLogger(__name__)
KEY = "self_critical.retrieval.judge"


def load_judge(folder: Path, own: Processor, store: RegionStore, by: JudgedBy = "matching") -> TrainedModel:
    """Load the judge of captions that a model with processor `own` writes about the images of a store.

    Raises:
        UserError: it cannot judge them.

    """
    trained = load_model(folder)
    processor = trained.processor
    if by == "matching" and not MATCH.available(processor):
        raise UserError(f"{KEY} {folder} has no matching head; give a pretraining run or its export")
    if by == "contrastive" and not EMBED_IMAGE.available(processor):
        raise UserError(
            f"{KEY} {folder} was not trained to align; give a run with contrastive alignment, or by=matching"
        )
    if conflict := processor.extractor.conflict(store.extractor):
        raise UserError(
            f"{KEY} {folder} was trained on regions of {processor.extractor.name}, and {store.path} was made by "
            f"{store.extractor.name} ({conflict}); give a judge that was trained on regions of that extractor"
        )
    if processor.tokenizer.fingerprint != own.tokenizer.fingerprint:
        raise UserError(f"{KEY} {folder} has a different tokenizer from the captioner; give a judge with the same one")
    for name in ("text_tokens", "max_images"):
        most, needed = getattr(processor, name), getattr(own, name)
        if most < needed:
            raise UserError(
                f"{KEY} {folder} was trained with inputs.{name} {most}, less than the captioner's {needed}; give "
                f"another judge, or a captioner with at most {most}"
            )
    trained.model.requires_grad_(False)
    return trained


class SelfRetrieval(ABC):
    """The reward of a caption for finding its own image.

    Args:
        judge: a pretrained model, which is neither trained nor saved.
        captions: the training captions, whose groups name the images.
        store: the regions of these images.
        weight: its weight beside CIDEr-D.

    Attributes:
        knows_none: whether a score of 0 means that a text fits no image better than chance.

    """

    knows_none: ClassVar[bool]

    def __init__(self, judge: TrainedModel, captions: TextStore, store: RegionStore, weight: float) -> None:
        self.judge, self.captions, self.store, self.weight = judge, captions, store, weight

    def prepare(self, device: torch.device) -> None:
        """Move the judge, and compute what is the same for all captions; every rank calls it, captions or not."""
        self.judge.model.to(device)

    def rewards(self, texts: Sequence[np.ndarray], owners: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Return `self_retrieval` of each caption: (M,).

        Args:
            texts: token ids of M captions, without [SEP].
            owners: (M,) prefix of each caption, ascending.
            images: (M, I) groups of the images to choose from, its own first; equal for all captions of a prefix.

        """
        if not len(texts):
            return np.zeros(0)
        seen: dict[tuple[int, bytes], int] = {}
        pairs = zip(owners.tolist(), texts, strict=True)
        same = np.array([seen.setdefault((owner, text.tobytes()), place) for place, (owner, text) in enumerate(pairs)])
        chosen, again = np.unique(same, return_inverse=True)  # equal captions of an image are judged once
        # The last token of a caption without an end may be one too many.
        cut = [texts[place][: self.judge.processor.text_tokens] for place in chosen]
        return self_retrieval(self.scores(cut, owners[chosen], images[chosen]), self.knows_none)[again]

    @abstractmethod
    def scores(self, texts: Sequence[np.ndarray], owners: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Score each caption with each of its images: (M, I); a softmax over them is a probability."""


class MatchingRetrieval(SelfRetrieval):
    """Scores are log-odds of the matching head."""

    knows_none = True

    @cached_property
    def reader(self) -> ImageReader:
        """Regions of the store, as the judge sees them."""
        return self.judge.processor.reader(self.store)

    def scores(self, texts: Sequence[np.ndarray], owners: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Score each caption with each image: (M, I). The captions of a prefix are scored with an image at once."""
        _, first, counts = np.unique(owners, return_index=True, return_counts=True)
        choices = images.shape[1]
        found = self.captions.images_in(self.store, images[first].flatten())  # of P * I prefixes
        text_rows = np.add.reduceat([len(text) + 1 for text in texts], first)
        # A prefix is computed once for each text, unless it does not see them.
        times = np.ones_like(counts) if self.judge.processor.shared_prefix else counts
        rows = self.reader.rows(found) * times.repeat(choices) + text_rows.repeat(choices)
        scores = np.zeros(images.shape)
        for items in in_order(rows, ROW_BUDGET):
            owner, choice = items // choices, items % choices
            captions, numbers = ranges(first[owner], counts[owner]), counts[owner].tolist()
            prefixes = self.reader.prefixes(found[items])
            repeated = [prefix for prefix, number in zip(prefixes, numbers, strict=True) for _ in range(number)]
            judged = match_logits(self.judge, repeated, [texts[place] for place in captions])
            scores[captions, choice.repeat(numbers)] = judged.cpu().numpy()
        return scores


class ContrastiveRetrieval(SelfRetrieval):
    """Scores are cosines of the embeddings of image and text over the temperature."""

    knows_none = False

    def prepare(self, device: torch.device) -> None:
        """Move the judge, and embed the images before the first captions."""
        super().prepare(device)
        _ = self.images

    @cached_property
    def images(self) -> np.ndarray:
        """Embeddings (G, E) of the images of all groups, kept in a file beside the texts."""
        judge, captions = self.judge, self.captions

        def compute() -> np.ndarray:
            logger.info("embedding %d images by the judge of captions, once", captions.num_groups)
            with self.exact():
                return embed_groups(judge, captions, self.store).numpy()

        parts = (model_fingerprint(judge), captions.path.name, self.store.fingerprint)
        return kept_array(captions.path.parent, "judged", parts, compute)

    def scores(self, texts: Sequence[np.ndarray], owners: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Score each caption with each image: (M, I)."""
        with self.exact():
            written = embed_texts(self.judge, texts).pooled.numpy()
        scores = np.zeros(images.shape)
        _, first, counts = np.unique(owners, return_index=True, return_counts=True)
        for start, count in zip(first.tolist(), counts.tolist(), strict=True):
            scores[start : start + count] = written[start : start + count] @ self.images[images[start]].T
        return scores * float(scales(self.judge)[0])

    def exact(self) -> torch.autocast:
        """Compute in float32, also within a step of bf16."""
        return torch.autocast(next(self.judge.model.parameters()).device.type, enabled=False)


def self_retrieval(scores: np.ndarray, none_of_them: bool = True) -> np.ndarray:
    """Return the reward of captions from the scores of their images, the own one first: (M, I) -> (M,).

    1 + log p / log C, where p is the probability of the own image among C choices, I images and, if it is one,
    "none of them": 0 if nothing is known, 1 if the image is certain, below 0 if another choice is more probable than
    chance.
    """
    choices = np.pad(scores, ((0, 0), (int(none_of_them), 0)))
    return 1 + (scores[:, 0] - np.logaddexp.reduce(choices, axis=1)) / np.log(choices.shape[1])


RETRIEVALS: Mapping[JudgedBy, type[SelfRetrieval]] = {
    "matching": MatchingRetrieval,
    "contrastive": ContrastiveRetrieval,
}
