"""Candidates a second that CIDEr-D scores, beside pycocoevalcap's scorer on the same texts in the same run.

    python benchmarks/cider.py --out benchmarks/results/cider.json

The corpus is made up: words drawn by rank (Zipf), in chains that come back, five references of about ten words an
image, the number of images of COCO's Karpathy training split. A batch is that of a self-critical step: several
candidates of each image, each a reference with some words changed. pycocoevalcap is given document frequencies and
n-gram counts ready made, and only its comparison is timed; ours is timed from the tokens on. Times are of the
processor, so that other work on the machine does not count.
"""

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer

from dimvl.metrics.cider import CiderD

WORDS = 10_000
REFERENCES = 5


def main() -> None:
    """Measure and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=113_287)
    parser.add_argument("--batch", type=int, default=64, help="images of a step")
    parser.add_argument("--samples", type=int, default=10, help="candidates of an image")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--machine", default=f"{platform.machine()}, {os.cpu_count()} cores")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    corpus = make_corpus(rng, options.images)
    before, start = peak_megabytes(), time.process_time()
    cider = CiderD(corpus)
    made, memory = time.process_time() - start, peak_megabytes() - before
    images = np.repeat(rng.choice(options.images, options.batch, replace=False), options.samples)
    candidates = [changed(rng, corpus[image][rng.integers(REFERENCES)]) for image in images]
    cider.scores(candidates, images)
    ours = []
    for _ in range(options.repeats):
        start = time.process_time()
        cider.scores(candidates, images)
        ours.append(time.process_time() - start)
    theirs, difference = pycocoevalcap_seconds(cider, corpus, candidates, images)
    result = {
        "command": f"python benchmarks/cider.py --images {options.images} --batch {options.batch} "
        f"--samples {options.samples}",
        "machine": f"{options.machine}, one thread",
        "date": time.strftime("%Y-%m-%d"),
        "candidates": len(candidates),
        "ours_candidates_per_second": round(len(candidates) / float(np.median(ours))),
        "pycocoevalcap_candidates_per_second": round(len(candidates) / theirs),
        "times_faster": round(theirs / float(np.median(ours)), 1),
        "largest_difference_on_one_candidate_an_image": difference,
        "seconds_to_make_from_the_references": round(made, 1),
        "peak_megabytes_to_make": round(memory),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


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


def peak_megabytes() -> float:
    """Most memory that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
