"""Candidates per second that CIDEr-D scores, beside pycocoevalcap's scorer on the same texts in the same run.

    python -m benchmarks cider --rounds 10

The corpus is synthetic: words drawn by rank (Zipf), in chains that recur, five references of about ten words per image,
as many images as COCO's Karpathy training split. A batch is that of a self-critical step: several candidates per image,
each a reference with some words changed. pycocoevalcap has its document frequencies and n-gram counts ready and only
its comparison is timed; ours is timed from the tokens on. Times are CPU time.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer

from benchmarks.harness import interleaved, memory
from dimvl.metrics.cider import CiderD

WORDS, REFERENCES = 10_000, 5


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Make the corpus, check the scores and compare speeds; `device` has no effect."""
    rng, (images, batch, samples) = np.random.default_rng(0), (400, 4, 3) if small else (113_287, 64, 10)
    corpus = make_corpus(rng, images)
    before, start = memory()["peak"], time.process_time()
    cider = CiderD(corpus)
    made, peak = time.process_time() - start, memory()["peak"] - before
    chosen = np.repeat(rng.choice(images, batch, replace=False), samples)
    candidates = [changed(rng, corpus[image][rng.integers(REFERENCES)]) for image in chosen]
    ours = float(np.median(interleaved({"ours": lambda: cider.scores(candidates, chosen)}, rounds)["ours"]))
    scorer = pycocoevalcap_scorer(candidates, [corpus[image] for image in chosen])
    scorer.compute_doc_freq()
    start = time.process_time()
    scorer.compute_cider()
    theirs = time.process_time() - start
    firsts = [candidates[place] for place in range(0, len(candidates), samples)]
    references = [corpus[image] for image in chosen[::samples]]
    expected = pycocoevalcap_scorer(firsts, references).compute_score()[1]
    found = CiderD(references).scores(firsts, range(len(firsts)))
    return {
        **{"images": images, "batch": batch, "samples": samples, "candidates": len(candidates)},
        "ours_candidates_per_second": round(len(candidates) / ours),
        "pycocoevalcap_candidates_per_second": round(len(candidates) / theirs),
        "times_faster": round(theirs / ours, 1),
        "largest_difference_on_one_candidate_an_image": float(np.abs(found - expected).max()),
        "seconds_to_make_from_the_references": round(made, 1),
        "peak_megabytes_to_make": round(peak / 2**20),
    }


def make_corpus(rng: np.random.Generator, images: int) -> list[list[list[int]]]:
    """Draw reference texts whose n-grams recur, as those of real captions do."""
    count = images * REFERENCES
    lengths = rng.integers(8, 14, count)
    words = np.minimum(rng.zipf(1.3, (count, 14)), WORDS) - 1
    for place in range(1, 14):  # half of the words are determined by the one before
        follows = rng.random(count) < 0.5
        words[follows, place] = (words[follows, place - 1] * 31 + 7) % 500
    texts = [text[:length] for text, length in zip(words.tolist(), lengths.tolist(), strict=True)]
    return [texts[start : start + REFERENCES] for start in range(0, count, REFERENCES)]


def changed(rng: np.random.Generator, text: list[int]) -> list[int]:
    """Replace some words of a text."""
    return [int(rng.integers(WORDS)) if rng.random() < 0.3 else word for word in text]


def pycocoevalcap_scorer(candidates: list[list[int]], references: list[list[list[int]]]) -> CiderScorer:
    """Make pycocoevalcap's scorer of candidates (M) and the references of each; both may be scored once."""
    scorer = CiderScorer()
    for text, others in zip(candidates, references, strict=True):
        scorer += (" ".join(map(str, text)), [" ".join(map(str, other)) for other in others])
    return scorer
