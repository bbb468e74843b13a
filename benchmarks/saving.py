"""How long training waits for its checkpoints: written while the next steps train, as they are, or at once.

    python -m benchmarks saving

Pretraining at base width (4 layers x 768, BERT's vocabulary: 0.8 GB per checkpoint), 9 steps with a checkpoint after
every third one; both ways take turns. Seconds are wall time that the loop spends in `Saver` for the first two
checkpoints; the run waits for the last one in either case.
"""

import random
import shutil
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.data import run_config, write_run_data
from benchmarks.harness import ratio
from dimvl.checkpoints import latest_checkpoint
from dimvl.tasks.pretraining.config import PretrainConfig
from dimvl.training.checkpoint import Saver
from dimvl.training.run import run_training
from dimvl.training.validation import Best

WAYS = ("while training", "at once")


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Train in both ways by turns, after one round that does not count."""
    waited, whole = ({way: np.zeros(rounds) for way in WAYS} for _ in range(2))
    order = random.Random(0)
    write_run_data(folder, 400)
    for turn in range(-1, rounds):
        for way in order.sample(WAYS, len(WAYS)):
            start = time.perf_counter()
            waits, written = train(folder, device, small, at_once=way == "at once")
            if turn >= 0:
                waited[way][turn], whole[way][turn] = np.mean(waits[:-1]), time.perf_counter() - start
    return {
        "checkpoint_gb": round(written / 1e9, 3),
        "seconds_waited_per_checkpoint": {way: ratio(seconds) for way, seconds in waited.items()},
        "waited": {"while training / at once": ratio(*waited.values())},
        "seconds_of_the_run": {way: ratio(seconds) for way, seconds in whole.items()},
        "run": {"while training / at once": ratio(*whole.values())},
    }


def train(folder: Path, device: str, small: bool, at_once: bool) -> tuple[list[float], int]:
    """Train one run; return the seconds waited at each checkpoint, and the bytes of one checkpoint."""
    waits: list[float] = []

    class Timed(Saver):
        def save(self, step: int, best: Best | None = None) -> None:
            start = time.perf_counter()
            super().save(step, best)
            if at_once:
                self.wait()
            waits.append(time.perf_counter() - start)

    rows, model = (200, {"width": 64, "heads": 4, "inner_width": 256}) if small else (1000, {})
    training = {"steps": 9, "save_every": 3, "device": device, "threads": 1}
    training |= {"rows_per_step": rows, "rows_per_micro_batch": rows}
    config = PretrainConfig(**run_config(folder, "run", model={"layers": 4, **model}, training=training))
    with patch("dimvl.training.loop.Saver", Timed):
        run_training(config)
    newest = latest_checkpoint(config.output)
    assert newest is not None
    written = sum(file.stat().st_size for file in newest.iterdir())
    shutil.rmtree(config.output)
    return waits, written
