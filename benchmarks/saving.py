"""How long training waits for its checkpoints: written while the next steps train, as they are, or at once.

    python -m benchmarks saving

Pretraining at base width (4 layers x 768, BERT's vocabulary: 0.8 GB a checkpoint), 9 steps with a checkpoint after each
third one, both ways by turns. Seconds are those of the clock that the loop spends in `Saver`, for the first two
checkpoints; the last one is waited for either way.
"""

import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.harness import ratio
from benchmarks.step_memory import write_data
from dimvl.checkpoints import latest_checkpoint
from dimvl.tasks.pretraining import PretrainConfig
from dimvl.training.checkpoint import Saver
from dimvl.training.early_stopping import Best
from dimvl.training.run import run_training

WAYS = ("while training", "at once")


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Train by turns in both ways, after one round that does not count."""
    waited, whole = ({way: np.zeros(rounds) for way in WAYS} for _ in range(2))
    order = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, 400)
        for turn in range(-1, rounds):
            for way in order.sample(WAYS, len(WAYS)):
                start = time.perf_counter()
                waits, written = train(folder, device, small, at_once=way == "at once")
                if turn >= 0:
                    waited[way][turn], whole[way][turn] = np.mean(waits[:-1]), time.perf_counter() - start
    return {
        "checkpoint_gb": round(written / 1e9, 3),
        "seconds_waited_per_checkpoint": {way: quantiles(seconds) for way, seconds in waited.items()},
        "waited": {"while training / at once": ratio(*waited.values())},
        "seconds_of_the_run": {way: quantiles(seconds) for way, seconds in whole.items()},
        "run": {"while training / at once": ratio(*whole.values())},
    }


def train(folder: Path, device: str, small: bool, at_once: bool) -> tuple[list[float], int]:
    """Train one run; seconds waited at each checkpoint, and the bytes of one."""
    waits: list[float] = []

    class Timed(Saver):
        def save(self, step: int, best: Best | None = None) -> None:
            start = time.perf_counter()
            super().save(step, best)
            if at_once:
                self.wait()
            waits.append(time.perf_counter() - start)

    budget = {"rows_per_step": 200 if small else 1000, "rows_per_micro_batch": 200 if small else 1000}
    config = PretrainConfig.model_validate(
        {
            "output": folder / "run",
            "regions": folder / "regions",
            "captions": folder / "captions.json",
            "inputs": {"tokenizer": folder / "tokenizer.json"},
            "model": {
                "layers": 4,
                "width": 64 if small else 768,
                "heads": 4 if small else 12,
                "inner_width": 256 if small else 3072,
            },
            "training": {"steps": 9, "save_every": 3, "device": device, "threads": 1, **budget},
        }
    )
    with patch("dimvl.training.loop.Saver", Timed):
        run_training(config)
    newest = latest_checkpoint(config.output)
    assert newest is not None
    written = sum(file.stat().st_size for file in newest.iterdir())
    shutil.rmtree(config.output)
    return waits, written


def quantiles(seconds: np.ndarray) -> list[float]:
    """Median, 10th and 90th percentile."""
    return [round(float(value), 3) for value in np.quantile(seconds, [0.5, 0.1, 0.9])]
