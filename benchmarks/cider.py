"""Candidates a second that CIDEr-D scores, beside pycocoevalcap's scorer on the same texts in the same run.

    python -m benchmarks cider --rounds 10

The corpus is made up: words drawn by rank (Zipf), in chains that come back, five references of about ten words an
image, the number of images of COCO's Karpathy training split. A batch is that of a self-critical step: several
candidates of each image, each a reference with some words changed. pycocoevalcap is given example frequencies and
n-gram counts ready made, and only its comparison is timed; ours is timed from the tokens on. Times are of the
processor, so that other work on the machine does not count.
"""

import time
from typing import Any

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer

from benchmarks.harness import interleaved, memory
from dimvl.metrics.cider import CiderD

WORDS = 10_000
REFERENCES = 5


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Make, check and compare; `device` changes nothing here."""
    rng, (images, batch, samples) = np.random.default_rng(0), (400, 4, 3) if small else (113_287, 64, 10)
    corpus = make_corpus(rng, images)
    before, start = memory()["peak"], time.process_time()
    cider = CiderD(corpus)
    made, peak = time.process_time() - start, memory()["peak"] - before
    chosen = np.repeat(rng.choice(images, batch, replace=False), samples)
    candidates = [changed(rng, corpus[image][rng.integers(REFERENCES)]) for image in chosen]
    seconds = interleaved({"ours": lambda: cider.scores(candidates, chosen)}, rounds)["ours"]
    ours, (theirs, difference) = float(np.median(seconds)), pycocoevalcap_seconds(cider, corpus, candidates, chosen)
    return {
        **{"images": images, "batch": batch, "samples": samples, "candidates": len(candidates)},
        "ours_candidates_per_second": round(len(candidates) / ours),
        "pycocoevalcap_candidates_per_second": round(len(candidates) / theirs),
        "times_faster": round(theirs / ours, 1),
        "largest_difference_on_one_candidate_an_image": difference,
        "seconds_to_make_from_the_references": round(made, 1),
        "peak_megabytes_to_make": round(peak / 2**20),
    }


def make_corpus(rng: np.random.Generator, images: int) -> list[list[list[int]]]:
    """Reference texts whose n-grams come back, as those of real captions do."""
    count = images * REFERENCES
    lengths = rng.integers(8, 14, count)
    words = np.minimum(rng.zipf(1.3, (count, 14)), WORDS) - 1
    for place in range(1, 14):  # half of the words follow from the one before
        follows = rng.random(count) < 0.5
        words[follows, place] = (words[follows, place - 1] * 31 + 7) % 500
    texts = [text[:length] for text, length in zip(words.tolist(), lengths.tolist(), strict=True)]
    return [texts[start : start + REFERENCES] for start in range(0, count, REFERENCES)]


def changed(rng: np.random.Generator, text: list[int]) -> list[int]:
    """Give a text some other words."""
    return [int(rng.integers(WORDS)) if rng.random() < 0.3 else word for word in text]


def pycocoevalcap_seconds(
    cider: CiderD, corpus: list[list[list[int]]], candidates: list[list[int]], images: np.ndarray
) -> tuple[float, float]:
    """Seconds of pycocoevalcap's comparison, and the largest difference of a score where both see the same corpus."""
    scorer = CiderScorer()
    for text, image in zip(candidates, images, strict=True):
        scorer += (joined(text), [joined(reference) for reference in corpus[image]])
    scorer.compute_doc_freq()
    start = time.process_time()
    scorer.compute_cider()
    seconds = time.process_time() - start
    scorer = CiderScorer()
    chosen, places = np.unique(images, return_index=True)
    for image, place in zip(chosen, places, strict=True):
        scorer += (joined(candidates[place]), [joined(reference) for reference in corpus[image]])
    expected = scorer.compute_score()[1]
    found = CiderD([corpus[image] for image in chosen]).scores(
        [candidates[place] for place in places], range(len(places))
    )
    return seconds, float(np.abs(found - expected).max())


def joined(text: list[int]) -> str:
    """Write a text as pycocoevalcap reads it."""
    return " ".join(map(str, text))
