"""How good concepts are: average precision of words against captions, and pointing at people's boxes for a word.

Letters: I images, W words, K part of them, S bootstrap samples, R regions, P boxes of people.
"""

from typing import NamedTuple

import numpy as np

from dimvl.concepts.data import LabelledImages
from dimvl.metrics.intervals import draws, percentiles
from dimvl.regions.naming.base import NAMES_KEPT
from dimvl.regions.naming.concepts import ConceptNamer


class Precision(NamedTuple):
    """Mean average precision over words, with an interval over images.

    Attributes:
        mean: of the words.
        low: lower end of the 95% interval.
        high: upper end.
        words: number of words that occur in the captions measured on; the others are left out.

    """

    mean: float
    low: float
    high: float
    words: int


class AveragePrecision:
    """Average precision of words against captions.

    It is the mean, over the images that have the word, of the precision among the images ranked at least as high; no
    interpolation. Images with equal probability are ranked by their number.

    Args:
        probabilities: (I, W) of each word in each image.
        labels: (I, W) bool, whether a caption of the image has the word.

    """

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        self._order = np.argsort(-probabilities, axis=0, kind="stable")
        self._hits = np.take_along_axis(labels, self._order, axis=0)
        self.images = len(labels)

    def of_words(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the average precision (W,) of each word, NaN for one that no image has.

        Args:
            weights: (I,) how often each image counts; once by default.

        """
        weight = np.ones(self.images) if weights is None else weights
        ranked = weight[self._order]
        hits = ranked * self._hits
        above = np.cumsum(hits, axis=0) / np.maximum(np.cumsum(ranked, axis=0), 1)
        with np.errstate(invalid="ignore"):
            return np.asarray((above * hits).sum(0) / hits.sum(0))

    def means(self, groups: dict[str, np.ndarray], replicates: int, seed: int) -> dict[str, Precision]:
        """Average over groups of words, with intervals by the bootstrap over images.

        Images drawn twice raise the average precision of a rare word, so the quantiles of the samples are moved by the
        difference between the mean and the samples' own.

        Args:
            groups: name -> (K,) ids of its words; those without an occurrence do not count.
            replicates: S; with 0 the intervals are the means.
            seed: of the samples.

        """
        every = self.of_words()
        samples = [self.of_words(counts) for block in draws(self.images, replicates, seed) for counts in block]
        result = {}
        for name, words in groups.items():
            if not len(words) or np.isnan(every[words]).all():
                continue
            mean = float(np.nanmean(every[words]))
            means = [float(np.nanmean(sample[words])) for sample in samples if not np.isnan(sample[words]).all()]
            spread = percentiles(np.array(means) - np.mean(means)) if means else None
            low, high = (mean, mean) if spread is None else (mean + spread.low, mean + spread.high)
            result[name] = Precision(mean, low, high, int((~np.isnan(every[words])).sum()))
        return result


def tag_quality(namer: ConceptNamer, images: LabelledImages, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """Compare the tags that images would get with the words of their captions.

    Where the extractor has no classes, the tags of an image are the best words of its regions, else all that its
    regions keep; only those with a score of at least the threshold count.

    Args:
        namer: names the regions.
        images: I images.
        labels: (I, W) bool, whether a caption of the image has the word.
        threshold: smallest score of a tag; `inputs.concept_score` of a run.

    Returns:
        `threshold`; `per_image`, tags of an image; `precision`, the share of the tags that are in a caption of their
        image; and `recall`, the share of the words of an image's captions that are tags.

    """
    kept = NAMES_KEPT if images.store.extractor.classes else 1
    tags = np.zeros_like(labels)
    for number in range(len(images)):
        ids, scores = namer.name(images.regions(np.array([number]))[0].to(namer.network.mean.device))
        tags[number, ids[:, :kept][scores[:, :kept] >= threshold].cpu().numpy()] = True
    hits = float((tags & labels).sum())
    return {
        "threshold": threshold,
        "per_image": float(tags.sum(1).mean()),
        "precision": hits / max(float(tags.sum()), 1),
        "recall": hits / max(float(labels.sum()), 1),
    }


def is_inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether points (R, 2) lie in one of some boxes (P, 4); (R,) bool."""
    low, high = boxes[:, :2], boxes[:, 2:]
    inside = np.asarray(((points[:, None] >= low) & (points[:, None] <= high)).all(-1))
    return np.asarray(inside.any(1))


def best_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the highest intersection over union (R,) of boxes (R, 4) with others (P, 4)."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(some[:, 2:] - some[:, :2], 0, None).prod(-1) for some in (boxes, others)]
    return np.asarray((shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-12)).max(1))
