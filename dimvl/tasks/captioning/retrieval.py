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
that there is no such choice; they cost less, since each image and each caption is encoded once.

The log-probability is divided by the logarithm of the number of choices. This is a constant, so the gradient stays
unbiased, and the weight of the reward means the same for any data and any number of images. Dividing by the spread of
the drawn captions, as is often done, would bias the gradient.

The other images are drawn by seed, epoch and image, not taken from the batch: ranks and micro-batches change nothing.

Letters: M captions, P prefixes, I images to choose from.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from dimvl.data.layout import ranges
from dimvl.data.prefixes import Prefix
from dimvl.data.processor import Processor
from dimvl.data.sampler import in_order
from dimvl.data.text_store import TextStore
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.tasks.captioning.config import JudgedBy
from dimvl.tasks.inference import ROW_BUDGET
from dimvl.tasks.pretraining.matching import MATCH, match_logits
from dimvl.tasks.retrieval.prediction import EMBED_IMAGE, embed_images, embed_texts, scales
from dimvl.trained_model import TrainedModel, load_model

KEY = "self_critical.retrieval.judge"


@dataclass(frozen=True)
class Judge(ABC):
    """Scores pairs of images and texts by a pretrained model, which is neither trained nor saved.

    Attributes:
        trained: the model.
        knows_none: whether a score of 0 means that a text fits no image better than chance.

    """

    trained: TrainedModel
    knows_none: ClassVar[bool]

    @property
    def processor(self) -> Processor:
        """How the model sees images and texts."""
        return self.trained.processor

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        self.trained.model.to(device)

    def cut(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return texts as long as the model takes them; the last token of a caption without an end is one too many."""
        return [text[: self.processor.text_tokens] for text in texts]

    @abstractmethod
    def rows(self, prefix_rows: np.ndarray, texts: np.ndarray, text_rows: np.ndarray) -> np.ndarray:
        """Rows of prefixes (P,) with their texts."""

    @abstractmethod
    def scores(self, prefixes: Sequence[Prefix], texts: Sequence[np.ndarray]) -> np.ndarray:
        """Scores (M,) of each prefix with its text, whose softmax over images is a probability.

        Args:
            prefixes: M prefixes; consecutive ones that are the same object are computed once where that is possible.
            texts: token ids (T,) of M texts, without [SEP].

        """


class MatchingJudge(Judge):
    """Scores pairs by the matching head: their log-odds."""

    knows_none = True

    def rows(self, prefix_rows: np.ndarray, texts: np.ndarray, text_rows: np.ndarray) -> np.ndarray:
        """Rows of prefixes (P,) with their texts: with one each, unless the model's prefixes do not see the text."""
        return prefix_rows * (1 if self.processor.shared_prefix else texts) + text_rows

    def scores(self, prefixes: Sequence[Prefix], texts: Sequence[np.ndarray]) -> np.ndarray:
        """Log-odds (M,) that each prefix and its text belong together."""
        return match_logits(self.trained, prefixes, self.cut(texts)).cpu().numpy()


class ContrastiveJudge(Judge):
    """Scores pairs by the embeddings of image and text, each encoded alone: their cosine over the temperature."""

    knows_none = False

    def rows(self, prefix_rows: np.ndarray, texts: np.ndarray, text_rows: np.ndarray) -> np.ndarray:
        """Rows of prefixes (P,) with their texts."""
        return prefix_rows + text_rows

    def scores(self, prefixes: Sequence[Prefix], texts: Sequence[np.ndarray]) -> np.ndarray:
        """Scaled cosines (M,)."""
        owners = [next(group) for _, group in groupby(prefixes, key=id)]
        counts = [len(list(group)) for _, group in groupby(prefixes, key=id)]
        images = embed_images(self.trained, owners).pooled.repeat_interleave(torch.tensor(counts), dim=0)
        cosines = (images * embed_texts(self.trained, self.cut(texts)).pooled).sum(dim=1)
        return (scales(self.trained)[0] * cosines).numpy()


def load_judge(folder: Path, own: Processor, store: RegionStore, by: JudgedBy = "matching") -> Judge:
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
        raise UserError(f"{KEY} {folder} has another tokenizer than the captioner; give a judge with the same one")
    for name in ("text_tokens", "max_images"):
        most, needed = getattr(processor, name), getattr(own, name)
        if most < needed:
            raise UserError(
                f"{KEY} {folder} was trained with inputs.{name} {most}, less than the captioner's {needed}; give "
                f"another judge, or a captioner with at most {most}"
            )
    trained.model.requires_grad_(False)
    return {"matching": MatchingJudge, "contrastive": ContrastiveJudge}[by](trained)


class SelfRetrieval:
    """The reward of a caption for finding its own image.

    Args:
        judge: scores pairs.
        captions: the training captions, whose groups name the images.
        store: the regions of these images.
        weight: its weight beside CIDEr-D.

    """

    def __init__(self, judge: Judge, captions: TextStore, store: RegionStore, weight: float) -> None:
        self.judge, self.captions, self.weight = judge, captions, weight
        self.reader = judge.processor.reader(store)

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
        scores = self._scores([texts[place] for place in chosen], owners[chosen], images[chosen])
        return self_retrieval(scores, self.judge.knows_none)[again]

    def _scores(self, texts: Sequence[np.ndarray], owners: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Score each caption with each image: (M, I). The captions of a prefix are scored with an image at once."""
        _, first, counts = np.unique(owners, return_index=True, return_counts=True)
        choices = images.shape[1]
        found = self.captions.images_in(self.reader.store, images[first].flatten())  # of P * I prefixes
        text_rows = np.add.reduceat([len(text) + 1 for text in texts], first)
        rows = self.judge.rows(self.reader.rows(found), counts.repeat(choices), text_rows.repeat(choices))
        scores = np.zeros(images.shape)
        for items in in_order(rows, ROW_BUDGET):
            owner, choice = items // choices, items % choices
            captions, times = ranges(first[owner], counts[owner]), counts[owner].tolist()
            prefixes = self.reader.prefixes(found[items])
            repeated = [prefix for prefix, number in zip(prefixes, times, strict=True) for _ in range(number)]
            judged = self.judge.scores(repeated, [texts[place] for place in captions])
            scores[captions, choice.repeat(times)] = judged
        return scores


def self_retrieval(scores: np.ndarray, none_of_them: bool = True) -> np.ndarray:
    """Return the reward of captions from the scores of their images, the own one first: (M, I) -> (M,).

    1 + log p / log C, where p is the probability of the own image among C choices, I images and, if it is one,
    "none of them": 0 if nothing is known, 1 if the image is certain, below 0 if another choice is more probable than
    chance.
    """
    choices = np.pad(scores, ((0, 0), (int(none_of_them), 0)))
    return 1 + (scores[:, 0] - np.logaddexp.reduce(choices, axis=1)) / np.log(choices.shape[1])
