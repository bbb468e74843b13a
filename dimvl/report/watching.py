"""A run in the terminal while it trains: how far it is, its curves, and how it ended."""

import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dimvl.checkpoints import ENDED, LOG, RUN, read_log, run_arguments
from dimvl.files import is_locked, read_json
from dimvl.report.curves import Series, read_losses, read_scores
from dimvl.showing import format_seconds, visible

BLOCKS, ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
"""Eighths of a row of a curve, and what takes their place where the output has no such characters."""
STALE = 120.0
"""Seconds after which a run that trains is said to have logged nothing."""
State = Literal["training", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class View:
    """A run as it is now.

    Attributes:
        name: of its folder.
        state: whether a process trains in it, and if not, how that ended; after a kill it is `stopped`.
        reason: why it stopped or failed, as far as it could say.
        newest: the newest step in its log; None before the first.
        steps: optimiser steps of the whole run.
        age: seconds since the log was written.
        losses: curves, drawn on a logarithmic scale.
        scores: curves of validations.

    """

    name: str
    state: State
    reason: str
    newest: dict[str, Any] | None
    steps: int
    age: float
    losses: list[Series]
    scores: list[Series]

    def lines(self, width: int, height: int, blocks: str = BLOCKS) -> list[str]:
        """Return the view as lines of at most `width` characters; curves are as high as `height` lines allow."""
        done = 0 if self.newest is None else self.newest["step"]
        filled = round(width * min(1.0, done / max(1, self.steps)))
        lines = [*textwrap.wrap(self.summary(), width), blocks[-1] * filled + blocks[1] * (width - filled)]
        rows = int(np.clip((height - 1 - len(lines)) // max(1, len(self.losses) + len(self.scores)) - 1, 1, 6))
        for place, one in enumerate([*self.losses, *self.scores]):
            lines.append(
                f"{visible(one.name)}: {one.values[-1]:.4g} (first {one.values[0]:.4g}, lowest {one.values.min():.4g}, "
                f"highest {one.values.max():.4g})"
            )
            logarithmic = place < len(self.losses) and (one.smooth > 0).all()
            lines += chart(np.log(one.smooth) if logarithmic else one.smooth, width, rows, blocks)
        return [line[:width] for line in lines]

    def summary(self) -> str:
        """Return what the run is doing as one line."""
        parts = [visible(self.name), self.state + (f" ({visible(self.reason)})" if self.reason else "")]
        if self.newest is None:
            return ", ".join([*parts, "no step logged yet"])
        parts += [f"step {self.newest['step']} of {self.steps}", f"loss {self.newest['loss']:.3f}"]
        if self.state == "training":
            parts.append(f"{self.newest['examples_per_second']:.0f} examples/s")
            parts.append(f"{format_seconds(max(0.0, self.newest['seconds_left'] - self.age))} left")
            if self.age > STALE:
                parts.append(f"nothing logged for {format_seconds(self.age)}")
        return ", ".join(parts)


def look(run: Path) -> View:
    """Read a run as it is now.

    Raises:
        UserError: the folder is not a run, or its log cannot be read.

    """
    trains = is_locked(run)  # first: a run that ends meanwhile has written its last lines
    ended = run / ENDED
    if not ended.exists() or (run / RUN).exists():  # a run that failed before its first checkpoint frees its folder
        steps = run_arguments(run)["config"].get("training", {}).get("steps", 0)
    else:
        steps = 0
    log = run / LOG
    records = read_log(log) if log.exists() and log.stat().st_size else []
    newest = next((record for record in reversed(records) if "losses" in record), None)
    state: State
    state, why = ("training", "") if trains else _end(ended, newest)
    return View(
        run.resolve().name,
        state,
        why,
        newest,
        newest["steps"] if newest is not None else steps,
        max(0.0, time.time() - log.stat().st_mtime) if records else 0.0,
        read_losses(log) if newest is not None else [],
        read_scores(log)[:1] if records else [],
    )


def _end(ended: Path, newest: dict[str, Any] | None) -> tuple[State, str]:
    """Return how training ended, and why; a run that was killed, or is of an older version, does not say."""
    if ended.exists():
        found = read_json(ended)
        how = found.get("how") if isinstance(found, dict) else None
        if how in ("finished", "stopped", "failed"):
            return how, str(found.get("reason", ""))
    if newest is not None and newest["step"] == newest["steps"]:
        return "finished", ""
    return "stopped", "no process is training it; start it again to resume"


def chart(values: np.ndarray, width: int, height: int, blocks: str = BLOCKS) -> list[str]:
    """Draw values (n,) as a curve over `height` lines of at most `width` characters, from their lowest to highest."""
    wide = np.repeat(values, max(1, width // len(values)))
    columns = [part.mean() for part in np.array_split(wide, min(width, len(wide)))]
    low, high = min(columns), max(columns)
    full = len(blocks) - 1
    eighths = [1 + round((one - low) / (high - low or 1.0) * (height * full - 1)) for one in columns]
    return [
        "".join(blocks[int(np.clip(one - row * full, 0, full))] for one in eighths) for row in reversed(range(height))
    ]
