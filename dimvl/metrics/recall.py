"""Recall of image-text retrieval by the official protocol: the rank of the best right answer to each query.

Each image looks for its texts (`image_to_text`) and each text for its image (`text_to_image`). R@k is the share of
queries with a right answer among the first k; an image with five captions needs one of them, as in Karpathy and Fei-Fei
(CVPR 2015), VSE++ (Faghri et al., BMVC 2018) and ALBEF (Li et al., NeurIPS 2021). The median rank is rounded down, as
in VSE++.

Different on purpose:

- **Ties count against us.** Published code leaves the order of equal scores to a sort, so a model that scores all
  pairs alike may be right by the order of the file. Here the right answer comes last among equals, and is no candidate
  of a second stage if a wrong one with the same score is not.
- Equal texts of two images are each right for their own image only, as in all published scores.
  `texts_of_other_images` counts them, since each can cost a rank that no model could win.

Scores depend on the size of the gallery. "1k" figures of COCO are the mean over five consecutive folds of 1,000 images
of a file of 5,000 (`folds`), and must not be compared with those of the whole.

Letters: Q queries, G gallery (what is searched), K candidates.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dimvl.errors import NotFinitePredictionError, UserError

RECALLS = (1, 5, 10)
FOLD = 1000
"""Images of a fold."""
DIRECTIONS = ("image_to_text", "text_to_image")
_AT_ONCE = 2**22  # scores in memory at once, beside those that are given

Right = Sequence[Sequence[int]]
"""For each query, the places in the gallery of all that is right for it."""


class Candidates(NamedTuple):
    """The second stage of a search: what it scored of the gallery.

    Attributes:
        places: (Q, K) places in the gallery of the best by the first stage, each once in a row.
        scores: (Q, K) float32.

    """

    places: np.ndarray
    scores: np.ndarray


def ranks(scores: np.ndarray | Iterable[np.ndarray], right: Right, candidates: Candidates | None = None) -> np.ndarray:
    """Return the rank of the best right answer to each query, from 1: (Q,) int64; 0 where nothing is right.

    Equal scores count against the right answer. Right answers do not stand in each other's way.

    Args:
        scores: (Q, G) float32, or chunks (q, G) of consecutive queries. Half precision makes ties.
        right: what is right for each query.
        candidates: scores of a second stage: its candidates come first, by these scores, then the rest of the gallery
            by `scores`.

    Raises:
        NotFinitePredictionError: a score is not a number.

    """
    found, start = [np.zeros(0, dtype=np.int64)], 0
    for chunk in _blocks(scores):
        rows = slice(start, start + len(chunk))
        second = None if candidates is None else Candidates(candidates.places[rows], candidates.scores[rows])
        found.append(_ranks(chunk, right[rows], second))
        start = rows.stop
    assert start == len(right), f"scores of {start} queries, but right answers to {len(right)}"
    return np.concatenate(found)


def _blocks(scores: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for chunk in [scores] if isinstance(scores, np.ndarray) else scores:
        step = max(1, _AT_ONCE // max(1, chunk.shape[1]))
        yield from (chunk[start : start + step] for start in range(0, len(chunk), step))


def _ranks(scores: np.ndarray, right: Right, candidates: Candidates | None) -> np.ndarray:
    counts = [len(places) for places in right]
    query = np.repeat(np.arange(len(right)), counts)
    is_right = np.zeros(scores.shape, dtype=bool)
    is_right[query, np.array([place for places in right for place in places], dtype=np.int64)] = True
    if candidates is None:
        return np.where(counts, 1 + _wrong_ahead(scores, is_right), 0)
    rows, places = np.arange(len(scores))[:, None], candidates.places
    among = is_right[rows, places]
    is_rest = np.ones(scores.shape, dtype=bool)
    is_rest[rows, places] = False
    assert (is_rest.sum(axis=1) == scores.shape[1] - places.shape[1]).all(), "a candidate occurs twice"
    best_left_out = np.max(scores, axis=1, where=is_rest & ~is_right, initial=-np.inf)
    kept = among & (scores[rows, places] > best_left_out[:, None])  # among equals, wrong ones are candidates first
    behind = (~among).sum(axis=1) + _wrong_ahead(scores, is_right, is_rest)
    ahead = np.where(kept.any(axis=1), _wrong_ahead(candidates.scores, kept, ~among), behind)
    return np.where(counts, 1 + ahead, 0)


def _wrong_ahead(scores: np.ndarray, is_right: np.ndarray, counted: np.ndarray | bool = True) -> np.ndarray:
    """Return how many counted wrong answers score at least as high as the best right one: (q,)."""
    if np.isnan(scores).any():
        raise NotFinitePredictionError
    best = np.max(scores, axis=1, where=is_right, initial=-np.inf)
    return np.asarray(((scores >= best[:, None]) & ~is_right & counted).sum(axis=1))


def inverse(right: Right, gallery: int) -> list[list[int]]:
    """Return for each place of a gallery the queries that it is right for: the right answers of the other direction."""
    found: list[list[int]] = [[] for _ in range(gallery)]
    for query, places in enumerate(right):
        for place in places:
            found[place].append(query)
    return found


def recall_scores(ranks_found: np.ndarray) -> dict[str, float]:
    """Return R@1, R@5, R@10 as fractions, their mean, and the median and mean rank.

    Args:
        ranks_found: (Q,) as `ranks` returns them; queries of rank 0 do not count.

    Raises:
        UserError: no query has a right answer.

    """
    known = ranks_found[ranks_found > 0]
    if not len(known):
        raise UserError("no query of this retrieval has a right answer; give images with their texts")
    recalls = {f"r{k}": float((known <= k).mean()) for k in RECALLS}
    mean = sum(recalls.values()) / len(recalls)
    middle, average = float(np.floor(np.median(known))), float(known.mean())
    return {**recalls, "mean_recall": mean, "median_rank": middle, "mean_rank": average, "count": len(known)}


class Fold(NamedTuple):
    """A part of a file, searched as if it were all.

    Attributes:
        images: (I,) places of its images.
        texts: (T,) places of its texts.
        owners: for each of these texts, the places of its images within `images`.

    """

    images: np.ndarray
    texts: np.ndarray
    owners: list[list[int]]


def folds(owners: Right, images: int, size: int = FOLD) -> list[Fold]:
    """Cut a file into consecutive folds of `size` images, in the order of the file.

    A text is in the fold of its first image; further images count where they are in that fold.

    Args:
        owners: the places of the images of each text, its own first.
        images: number of images.
        size: images of a fold.

    Returns:
        The folds; none if the images are not a multiple of `size`, two times or more.

    """
    if images % size or images < 2 * size:
        return []
    found = []
    for start in range(0, images, size):
        texts = [place for place, own in enumerate(owners) if own and start <= own[0] < start + size]
        within = [[image - start for image in owners[text] if start <= image < start + size] for text in texts]
        found.append(Fold(np.arange(start, start + size), np.array(texts, dtype=np.int64), within))
    return found


def mean_scores(of_folds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each score over folds; `count` is the number of queries of all."""
    means = {name: sum(scores[name] for scores in of_folds) / len(of_folds) for name in of_folds[0]}
    return {**means, "count": sum(scores["count"] for scores in of_folds)}


def texts_of_other_images(texts: Sequence[str], owners: Right) -> int:
    """Return how many texts are also, word for word, a text of another image."""
    seen: dict[str, set[int]] = defaultdict(set)
    for text, images in zip(texts, owners, strict=True):
        seen[text.strip()].update(images[:1])
    return sum(len(seen[text.strip()]) > 1 for text in texts)


def extra_owners(
    image_ids: Sequence[Any], text_ids: Sequence[Any]
) -> dict[str, tuple[list[list[int]], list[list[int]]]]:
    """Return right answers beyond the file's own for COCO's test images, by the package eccv-caption.

    People judged pairs of the test images of Karpathy's splits that retrieval models had found. `cxc`: Crisscrossed
    Captions (Parekh et al., EACL 2021). `eccv`: ECCV Caption (Chun et al., ECCV 2022), which has 1,261 of the images
    and 1,332 of the texts as queries. Both keep the whole file as gallery. Two answers of `eccv` are of no test image,
    and cannot be found.

    Args:
        image_ids: COCO's image numbers, in the order of the gallery.
        text_ids: COCO's caption numbers, which are the `sentid` of Karpathy's file.

    Returns:
        By name: the texts that are right for each image, and the images that are right for each text; empty where the
        name has none, as for an image that is not among its queries.

    Raises:
        UserError: the package is not installed, or its images and texts are not these.

    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it can do without ujson and tqdm, and says so
            from eccv_caption import Metrics
    except ImportError:
        raise UserError("extra_positives needs the package eccv-caption; pip install 'dimvl[retrieval]'") from None
    known = Metrics()
    places = [{str(name): place for place, name in enumerate(names)} for names in (image_ids, text_ids)]
    for own, theirs, noun in zip(
        places, (known.coco_gts["i2t"], known.coco_gts["t2i"]), ("image", "text"), strict=True
    ):
        if lacking := [name for name in theirs if str(name) not in own]:
            raise UserError(
                f"extra_positives needs all 5,000 test images of COCO in Karpathy's splits, and {noun} {lacking[0]} of "
                "them is missing; give the test split of dataset_coco.json, or omit extra_positives"
            )
    found = {}
    for name, pairs in (("cxc", known.cxc_gts), ("eccv", known.eccv_gts)):
        both = []
        for direction, (own, other) in (("i2t", places), ("t2i", places[::-1])):
            right: list[list[int]] = [[] for _ in own]
            for query, answers in pairs[direction].items():
                right[own[str(query)]] = [other[str(one)] for one in answers if str(one) in other]
            both.append(right)
        found[name] = (both[0], both[1])
    return found
