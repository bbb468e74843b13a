"""What the tests of whole runs share: reading a run's results, and stopping a run at a step."""

import json
import os
import signal
from pathlib import Path

from safetensors.torch import load_file

from dimvl.checkpoints import latest_checkpoint
from dimvl.training.report import TIMES

ROOT = Path(__file__).parents[2]
FILES = ("model.safetensors", "optimiser.safetensors")


def bytes_of(run):
    """Bytes of the newest checkpoint's weights and optimiser state."""
    folder = latest_checkpoint(run)
    return [(folder / name).read_bytes() for name in FILES]


def weights_of(run):
    return load_file(latest_checkpoint(run) / "model.safetensors")


def log_of(run):
    """What was logged, without times."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def at_step(step, action):
    """A progress callback that does something at one step."""

    def progress(report):
        if report.step == step:
            action()

    return progress


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


class Killed(BaseException):
    pass


def kill():
    raise Killed
