"""Measure at which share of its compute one training reaches the final loss of another of the same length.

python tools/compute_to_loss.py PRETRAINED/shared-0-1 PRETRAINED/qkv-0-1 PRETRAINED/all-0-1

This is the measure of Mixture-of-Transformers (Liang et al., TMLR 2025), for models with as many operations a step: the
steps that a run needs for the baseline's final loss, over those that the baseline itself needs. The final loss is the
mean of the last tenth of the steps; a loss along the way is the mean of a tenth of the steps as well, so that both have
the same noise. Below 1 is faster; null where the loss is never reached.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from dimvl.files import read_text

TENTH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", type=Path, help="run whose final loss is to be reached")
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    baseline = losses(arguments.baseline)
    for run in arguments.runs:
        own = losses(run)
        final = {"final_loss": round(float(own[-(len(own) // TENTH) :].mean()), 4)}
        steps = reached(baseline, own)
        share = None if steps is None else round(steps / (reached(baseline, baseline) or len(baseline)), 3)
        print(json.dumps({"run": str(run), "share": share, **final}))


def losses(run: Path) -> np.ndarray:
    """Return the logged training losses of a run, in order."""
    records = [json.loads(line) for line in read_text(run / "log.jsonl").splitlines()]
    return np.array([record["loss"] for record in records if "loss" in record])


def reached(baseline: np.ndarray, own: np.ndarray) -> int | None:
    """Return the number of log lines after which a run has the final loss of the baseline; None if never."""
    width = len(baseline) // TENTH
    means = np.convolve(own, np.ones(width) / width, mode="valid")  # the mean that ends at each place from `width`
    below = np.flatnonzero(means <= baseline[-width:].mean() + 1e-9)
    return int(below[0]) + width if len(below) else None


if __name__ == "__main__":
    main()
