"""What a run tells: one progress line, a JSONL file always, wandb when asked."""

import json
import logging
import resource
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from dimvl.config import RunConfig
from dimvl.data.sampler import Step
from dimvl.errors import UserError
from dimvl.files import atomic_path, git_revision
from dimvl.training.early_stopping import Best
from dimvl.training.ranks import Ranks, together

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimiser step, as logged.

    Attributes:
        step: optimiser steps done.
        steps: of the whole run.
        epoch: from 0.
        loss: weighted sum.
        losses: by name, mean per target.
        counts: targets by objective.
        gradient_norm: before clipping.
        learning_rate: that this step used.
        documents_per_second: since the last report.
        rows_per_second: likewise; all rows are valid, there is no padding outside attention.
        data_wait: share of the time spent waiting for batches, mean over ranks.
        rank_wait: share of the time that a rank spent waiting for others, mean over ranks; 0 for one.
        memory_gb: peak of the process of rank 0.
        seconds_left: estimate for the rest of the run.

    """

    step: int
    steps: int
    epoch: int
    loss: float
    losses: Mapping[str, float]
    counts: Mapping[str, int]
    gradient_norm: float
    learning_rate: float
    documents_per_second: float
    rows_per_second: float
    data_wait: float
    rank_wait: float
    memory_gb: float
    seconds_left: float

    def line(self) -> str:
        """One line for a terminal."""
        parts = " ".join(
            f"{name}={value:.3f}" for name, value in self.losses.items() if self.counts[name.partition("/")[0]]
        )
        ranks = f" ranks wait {self.rank_wait:.0%}" if self.rank_wait else ""
        return (
            f"step {self.step}/{self.steps} loss {self.loss:.3f} [{parts}] lr {self.learning_rate:.1e} "
            f"{self.documents_per_second:.0f} documents/s {self.rows_per_second:.0f} rows/s wait {self.data_wait:.0%}"
            f"{ranks} {self.memory_gb:.1f} GB left {format_seconds(self.seconds_left)}"
        )


def format_seconds(seconds: float) -> str:
    """Minutes and seconds, with hours if need be."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def peak_memory_gb() -> float:
    """Peak resident memory of this process in GB (10^9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Meter:
    """Rates between two reports, over all ranks."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._start_anew()

    def _start_anew(self) -> None:
        self.start, self.waited_before = time.perf_counter(), self.ranks.waited
        self.wait = 0.0
        self.documents = self.rows = self.steps = 0

    def add(self, step: Step) -> None:
        """Count a step that was done; its documents are those of all ranks, its rows those of this one."""
        self.steps, self.documents, self.rows = self.steps + 1, self.documents + step.documents, self.rows + step.rows

    def rates(self) -> dict[str, float]:
        """Documents and rows a second, shares of waiting, seconds a step; starts anew. Every rank must call it."""
        own = np.array([self.rows, self.wait, self.ranks.waited - self.waited_before], dtype=np.float64)
        rows, wait, waited = self.ranks.sum(own).tolist()
        seconds = max(time.perf_counter() - self.start, 1e-9)
        result = {
            "documents_per_second": self.documents / seconds,
            "rows_per_second": rows / seconds,
            "data_wait": wait / seconds / self.ranks.size,
            "rank_wait": waited / seconds / self.ranks.size,
            "seconds_per_step": seconds / max(1, self.steps),
        }
        self._start_anew()
        return result


@contextmanager
def open_log(run: Path, config: RunConfig, step: int, ranks: Ranks) -> Iterator["Log"]:
    """Open the log of a run on rank 0; what the others log goes nowhere.

    Raises:
        UserError: wandb is asked for and not installed.

    """
    log: RunLog | None = None
    with together(ranks):
        if ranks.rank == 0:
            log = RunLog(run, config, step)
    if log is None:
        yield NoLog()
    else:
        with log:
            yield log


class Log(Protocol):
    """Where a run writes what it reports."""

    def write(self, report: StepReport) -> None:
        """Log one step."""
        ...

    def write_validation(self, step: int, score: float, best: Best) -> None:
        """Log one validation."""
        ...


class NoLog:
    """Of a rank that does not write."""

    def write(self, report: StepReport) -> None:
        """Do nothing."""

    def write_validation(self, step: int, score: float, best: Best) -> None:
        """Do nothing."""


class RunLog:
    """`log.jsonl` of a run and, when asked, wandb. A resumed run takes off what was logged after its checkpoint."""

    def __init__(self, run: Path, config: RunConfig, step: int) -> None:
        self.path = run / "log.jsonl"
        if self.path.exists():
            whole = [line for line in self.path.read_text().splitlines() if line.endswith("}")]  # a kill cuts the last
            kept = [line for line in whole if json.loads(line)["step"] <= step]
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept))
        self._file: TextIO = self.path.open("a")
        self._wandb = _start_wandb(run, config) if config.training.wandb != "disabled" else None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write_validation(self, step: int, score: float, best: Best) -> None:
        """Log one validation, as a line of its own."""
        self._write({"step": step, "validation": score, "best": best.score, "best_step": best.step})
        logger.info("validation after step %d: %.4f (best %.4f after step %d)", step, score, best.score, best.step)
        if self._wandb is not None:
            self._wandb.log({"validation": score}, step=step)

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def write(self, report: StepReport) -> None:
        """Log one step."""
        self._write(report.__dict__)
        if self._wandb is not None:
            flat = {f"loss/{name}": value for name, value in report.losses.items()}
            rest = {name: value for name, value in report.__dict__.items() if not isinstance(value, Mapping)}
            self._wandb.log({**rest, **flat}, step=report.step)


def _start_wandb(run: Path, config: RunConfig) -> Any:
    """Start or continue the wandb run that belongs to this folder."""
    try:
        import wandb
    except ImportError:
        raise UserError("training.wandb needs the package wandb; install it with pip install 'dimvl[wandb]'") from None
    record = run / "wandb_id"
    identity = record.read_text() if record.exists() else uuid.uuid4().hex[:12]
    record.write_text(identity)
    settings = {**config.model_dump(mode="json"), "git_revision": git_revision()}
    mode: Any = config.training.wandb
    return wandb.init(project="dimvl", name=run.name, id=identity, resume="allow", dir=run, mode=mode, config=settings)
