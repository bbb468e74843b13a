"""Plans which examples make up each optimiser step of an epoch, in memory that does not grow with the data.

A plan takes 8 bytes per example. The plan of a large epoch is kept in files that all processes of a run map; the first
process that needs an epoch plans it for all, so that no process holds memory of its own per example:

    FOLDER/epoch-3/order.npy   (D,) examples of the epoch, in training order
                   costs.npy   (D,) rows of each example, by its number
                   starts.npy  (S + 1,) where each step starts in `order`

A plan depends on seed, data and row budget only, so it does not matter which process makes it, or how often.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dimvl.data.examples import Example, keyed_generator
from dimvl.errors import UserError
from dimvl.files import atomic_folder, locked

PIECE = 2**14
"""Examples planned at once, which bounds temporary memory. An epoch of at most this many is not written to a file."""

Allocate = Callable[[str, type, int], np.ndarray]
"""Allocates an array to fill, given its name, type and length."""


class ExampleSource(Protocol):
    """The examples of a task, by epoch and number, and their cost in rows."""

    @property
    def enlarging_keys(self) -> Sequence[str]:
        """Keys of the configuration that make an example larger."""
        ...

    def __len__(self) -> int:
        """Return the number of examples D of an epoch."""
        ...

    def costs(self, epoch: int, some: slice) -> np.ndarray:
        """Upper bound of the rows of the examples in a slice."""
        ...

    def build_all(self, epoch: int, indexes: np.ndarray) -> list[Example]:
        """Build the examples (B,) of a batch; the same epoch and number always give the same example.

        A group counts as one here, and consists of several examples, one after the other.
        """
        ...


@dataclass(frozen=True)
class EpochPlan:
    """The steps of an epoch; the module's docstring describes the arrays."""

    order: np.ndarray
    costs: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        """Return the number of steps S."""
        return len(self.starts) - 1

    def step(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the examples (B,) of a step and their rows (B,)."""
        examples = self.order[self.starts[number] : self.starts[number + 1]]
        return examples, self.costs[examples]


def in_memory(name: str, dtype: type, length: int) -> np.ndarray:
    """Allocate an array in the memory of this process."""
    return np.empty(length, dtype)


def plan_epoch(
    source: ExampleSource, epoch: int, seed: int, row_budget: int, allocate: Allocate = in_memory
) -> EpochPlan:
    """Shuffle the examples of an epoch and cut them into optimiser steps of at most `row_budget` rows.

    Raises:
        UserError: no examples, or a single one exceeds the budget.

    """
    count = len(source)
    if not count:
        raise UserError("no examples to train on; give annotations and a region store that belong together")
    costs = allocate("costs", np.int32, count)
    for some in _pieces(count):
        costs[some] = source.costs(epoch, some)
    if costs.max() > row_budget:
        raise UserError(
            f"one example has up to {costs.max()} rows, above training.rows_per_step {row_budget}; raise it, or lower "
            f"{' or '.join(source.enlarging_keys)}"
        )
    order = allocate("order", np.int32 if count < 2**31 else np.int64, count)
    for some in _pieces(count):
        order[some] = np.arange(some.start, some.stop)
    keyed_generator(seed, "order", epoch).shuffle(order)
    found = np.fromiter(_starts(order, costs, row_budget), np.int64)
    starts = allocate("starts", np.int64, len(found) + 2)
    starts[0], starts[1:-1], starts[-1] = 0, found, count
    return EpochPlan(order, costs, starts)


def _starts(order: np.ndarray, costs: np.ndarray, row_budget: int) -> Iterator[int]:
    """Indices in `order` where a step starts, except the first: one more example would exceed the budget."""
    before = 0  # rows of earlier steps, counted from the start of a piece; negative if a step began in an earlier piece
    for some in _pieces(len(order)):
        upto = np.cumsum(costs[order[some]], dtype=np.int64)
        while (place := int(np.searchsorted(upto, before + row_budget, side="right"))) < len(upto):
            yield some.start + place
            before = int(upto[place - 1]) if place else 0
        before -= int(upto[-1])


def _on_disk(path: Path, dtype: type, length: int) -> np.ndarray:
    """Create a file for one array (L,), not empty, and map it for writing.

    Raises:
        OSError: the disk is full. Space is reserved first, because writing to a map on a full disk kills the process.

    """
    mapped = np.lib.format.open_memmap(path, "w+", dtype, (length,))
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return np.asarray(mapped)


def _pieces(count: int) -> Iterator[slice]:
    for start in range(0, count, PIECE):
        yield slice(start, min(start + PIECE, count))


class EpochPlans:
    """The plans of a run by epoch.

    Args:
        source: the examples.
        seed: seed of their order.
        row_budget: rows of an optimiser step.
        folder: where the processes of the run share large plans; None keeps plans in the memory of this process.

    Raises:
        UserError: as `plan_epoch`, or the disk is full.

    """

    def __init__(self, source: ExampleSource, seed: int, row_budget: int, folder: Path | None) -> None:
        self.source, self.seed, self.row_budget = source, seed, row_budget
        self.folder = folder if len(source) > PIECE else None
        self._latest: tuple[int, EpochPlan] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_latest": None}  # another process maps the files itself

    def __getitem__(self, epoch: int) -> EpochPlan:
        if self._latest is None or self._latest[0] != epoch:
            plan = self._make(epoch) if self.folder is None else self._map(self.folder, epoch)
            self._latest = (epoch, plan)
        return self._latest[1]

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch, which is kept for earlier epochs too."""
        if self.folder is None:
            return len(self[epoch])
        return len(_load(self._planned(self.folder, epoch), "starts")) - 1

    def _make(self, epoch: int, allocate: Allocate = in_memory) -> EpochPlan:
        return plan_epoch(self.source, epoch, self.seed, self.row_budget, allocate)

    def _map(self, folder: Path, epoch: int) -> EpochPlan:
        path = self._planned(folder, epoch)
        try:
            return EpochPlan(*(_load(path, name) for name in ("order", "costs", "starts")))
        except FileNotFoundError:  # removed by a process that is two epochs ahead, so an epoch is only a few steps
            return self._make(epoch)

    def _planned(self, folder: Path, epoch: int) -> Path:
        """Return the folder of an epoch's plan, after making it if needed; remove the plans before the previous epoch.

        The lock only avoids duplicate work. Processes on other nodes may not respect it; the first plan to be finished
        is used.
        """
        path = _folder(folder, epoch)
        if not path.exists():
            with locked(folder):
                if not path.exists():
                    with atomic_folder(path, replace=False) as temporary:
                        self._make(epoch, lambda name, *shape: _on_disk(temporary / f"{name}.npy", *shape))
                    for earlier in range(epoch - 1):
                        for name in ("order", "costs"):
                            (_folder(folder, earlier) / f"{name}.npy").unlink(missing_ok=True)
        return path


def _load(plan: Path, name: str) -> np.ndarray:
    return np.asarray(np.load(plan / f"{name}.npy", mmap_mode="r", allow_pickle=False))


def _folder(plans: Path, epoch: int) -> Path:
    return plans / f"epoch-{epoch}"
