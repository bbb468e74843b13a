"""What the tests of whole runs share: reading a run's results, and stopping a run at a step."""

import os
import signal
from pathlib import Path

from safetensors.torch import load_file

from dimvl.checkpoints import latest_checkpoint, read_log
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
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_log(run / "log.jsonl")]


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
