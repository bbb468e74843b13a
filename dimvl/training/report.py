"""What a run reports: a progress line, a JSONL file always, and wandb and TensorBoard on request."""

import logging
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dimvl.checkpoints import LOG, PREDICTIONS
from dimvl.config import RunConfig
from dimvl.data.sampler import Step
from dimvl.files import atomic_path, open_own, read_lines, sealed_line, writing
from dimvl.model.work import Work
from dimvl.showing import format_seconds
from dimvl.tasks.task import ValidationScore
from dimvl.training.ranks import Ranks, fail_together
from dimvl.training.tensorboard_log import FOLDER, TensorBoardLog
from dimvl.training.validation import Best
from dimvl.training.wandb_log import WandbLog

logger = logging.getLogger(__name__)
TIMES = ("examples_per_second", "rows_per_second", "data_wait", "rank_wait", "utilisation", "memory_gb", "seconds_left")
"""Fields of a report that depend on the machine; all others are the same in every run of a configuration."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimiser step, as logged.

    `utilisation` is the arithmetic of the model, forward and backward without padding and recomputation, divided by
    what matrix products alone reach on the device in the same time; mean over ranks.
    """

    step: int  # optimiser steps done
    steps: int  # optimiser steps of the whole run
    epoch: int  # counted from 0
    loss: float  # weighted sum of the losses
    losses: Mapping[str, float]  # mean per target, by name
    counts: Mapping[str, int]  # number of targets, by objective
    gradient_norm: float  # before clipping
    learning_rate: float  # of this step
    examples_per_second: float  # since the last report
    rows_per_second: float  # likewise, with those of drawn captions, without the padding of attention
    data_wait: float  # share of the time spent waiting for batches, mean over ranks
    rank_wait: float  # share of the time that a rank spent waiting for others, mean over ranks; 0 for one process
    utilisation: float | None  # see the class; None if it is not counted
    memory_gb: float  # peak memory of rank 0, see `peak_memory_gb`
    seconds_left: float  # estimate for the rest of the run

    def line(self) -> str:
        """Return one line for a terminal."""
        parts = " ".join(
            f"{name}={value:.3f}" for name, value in self.losses.items() if self.counts[name.partition("/")[0]]
        )
        ranks = f" ranks wait {self.rank_wait:.0%}" if self.rank_wait else ""
        reached = "" if self.utilisation is None else f" {self.utilisation:.0%} of peak"
        return (
            f"step {self.step}/{self.steps} loss {self.loss:.3f} [{parts}] lr {self.learning_rate:.1e} "
            f"{self.examples_per_second:.0f} examples/s {self.rows_per_second:.0f} rows/s wait {self.data_wait:.0%}"
            f"{ranks}{reached} {self.memory_gb:.1f} GB left {format_seconds(self.seconds_left)}"
        )


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak in GB (10^9 bytes): allocated by torch on a GPU, or resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Meter:
    """Measures rates between two reports, over all ranks.

    Args:
        ranks: the ranks of the run.
        ideal_seconds: time that some work would take on this rank's device at its peak; None if the work of a step is
            not known from its batches.
        drawn_rows: returns `drawn_rows` of this rank's `TaskModule`.

    """

    def __init__(
        self,
        ranks: Ranks,
        ideal_seconds: Callable[[Work], float] | None = None,
        drawn_rows: Callable[[], int] = lambda: 0,
    ) -> None:
        self.ranks, self.ideal_seconds, self.drawn_rows = ranks, ideal_seconds, drawn_rows
        self._reset()

    def _reset(self) -> None:
        self.start, self.waited_before = time.perf_counter(), self.ranks.waited
        self.drawn_before = self.drawn_rows()
        self.wait, self.work = 0.0, Work()
        self.examples = self.rows = self.steps = 0

    def add(self, step: Step) -> None:
        """Count a finished step: its examples are those of all ranks, its rows those of this rank."""
        self.steps, self.examples, self.rows = self.steps + 1, self.examples + step.examples, self.rows + step.rows
        if self.ideal_seconds is not None:
            self.work = sum((Work.of(batch, padded=False) for batch in step.micro_batches), self.work)

    def rates(self) -> dict[str, float | None]:
        """Return the rates of `StepReport` and `seconds_per_step`, and reset; every rank must call this."""
        ideal = 0.0 if self.ideal_seconds is None else self.ideal_seconds(self.work)
        rows = self.rows + self.drawn_rows() - self.drawn_before
        own = np.array([rows, self.wait, self.ranks.waited - self.waited_before, ideal], dtype=np.float64)
        rows, wait, waited, ideal = self.ranks.sum(own).tolist()
        seconds = max(time.perf_counter() - self.start, 1e-9)
        result = {
            "examples_per_second": self.examples / seconds,
            "rows_per_second": rows / seconds,
            "data_wait": wait / seconds / self.ranks.size,
            "rank_wait": waited / seconds / self.ranks.size,
            "utilisation": None if self.ideal_seconds is None else ideal / seconds / self.ranks.size,
            "seconds_per_step": seconds / max(1, self.steps),
        }
        self._reset()
        return result


class Log:
    """The log of a rank that writes nothing; rank 0 has a `RunLog`."""

    def write(self, report: StepReport) -> None:
        """Log one step."""

    def write_validation(self, step: int, found: ValidationScore, best: Best) -> None:
        """Log one validation, and the predictions for its sample."""


@contextmanager
def open_log(run: Path, config: RunConfig, step: int, ranks: Ranks) -> Iterator[Log]:
    """Open the log of a run that has done a number of steps.

    Raises:
        UserError: wandb is requested and does not start.

    """
    with fail_together(ranks):
        log = RunLog(run, config, step) if ranks.rank == 0 else nullcontext(Log())
    with log as opened:
        yield opened


class RunLog(Log):
    """`log.jsonl` and `predictions.jsonl` of a run, wandb and TensorBoard on request; `UserError` if the disk is full.

    When a run resumes, lines logged after its checkpoint are removed, and damaged ones moved to another file.
    """

    def __init__(self, run: Path, config: RunConfig, step: int) -> None:
        kept = _cut_after(run / LOG, step)
        predicted = {line["step"]: line["predictions"] for line in _cut_after(run / PREDICTIONS, step)}
        self._wandb = WandbLog(run, config) if config.training.wandb != "disabled" else None
        for line in kept if self._wandb is not None else []:
            self._to_wandb(line, predicted.get(line["step"], []))
        had = (run / FOLDER).exists()
        self._tensorboard = TensorBoardLog(run, step if had else 0) if config.training.tensorboard else None
        if self._tensorboard is not None and not had:
            for line in kept:
                self._tensorboard.log(line["step"], _flat(line))
        self._log, self._predictions = run / LOG, run / PREDICTIONS
        with writing(self._log):
            self._file = open_own(self._log, "a")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # every line is flushed, or the run is ending because one could not be
            self._file.close()
        for log in (self._wandb, self._tensorboard):
            if log is not None:
                log.finish()

    def write(self, report: StepReport) -> None:
        """Log one step."""
        self._write({name: value for name, value in report.__dict__.items() if value is not None})

    def write_validation(self, step: int, found: ValidationScore, best: Best) -> None:
        """Log one validation as a line of its own, and the predictions for its sample."""
        score, shown = found.score, " ".join(f"{name}={value:.3f}" for name, value in found.parts.items())
        text = "validation after step %d: %.4f%s (best %.4f after step %d)"
        logger.info(text, step, score, f" [{shown}]" if shown else "", best.score, best.step)
        if found.predictions:
            with writing(self._predictions), open_own(self._predictions, "a") as file:
                file.write(sealed_line({"step": step, "predictions": list(found.predictions)}))
        line = {"step": step, "validation": score, "best": best.score, "best_step": best.step}
        parts = {"validation_parts": dict(found.parts)} if found.parts else {}
        self._write(line | parts, found.predictions)

    def _write(self, record: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]] = ()) -> None:
        with writing(self._log):
            self._file.write(sealed_line(record))
            self._file.flush()
        self._to_wandb(record, predictions)
        if self._tensorboard is not None:
            with writing(self._log.with_name(FOLDER)):
                self._tensorboard.log(record["step"], _flat(record))

    def _to_wandb(self, record: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> None:
        """Send a line of the log to wandb."""
        if self._wandb is None:
            return
        self._wandb.log(record["step"], _flat(record))
        if "validation" in record:
            self._wandb.log_predictions(record["step"], predictions)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a line of the log by name; its losses are named `loss/name`."""
    flat = {name: value for name, value in record.items() if not isinstance(value, Mapping)}
    flat |= {f"loss/{name}": value for name, value in record.get("losses", {}).items()}
    return flat | {f"validation/{name}": value for name, value in record.get("validation_parts", {}).items()}


def _cut_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove the lines that were written after a step, and damaged ones, from a file; return the others."""
    if not path.exists():
        return []
    records, damaged = read_lines(path, "step")
    if damaged:
        aside = path.with_name(f"{path.name}.damaged")
        logger.warning("%s: %d damaged lines are moved to %s", path, len(damaged), aside.name)
        with writing(aside), open_own(aside, "ab") as file:
            file.write(b"\n".join([*damaged, b""]))
    kept = [record for record in records if record["step"] <= step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(map(sealed_line, kept)))
    return kept
