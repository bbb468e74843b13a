"""Which examples make up each optimiser step of an epoch, without memory that grows with the data.

A plan takes 8 bytes an example. Where there are many, a run keeps it in files that all its processes map, and the first
one that needs an epoch plans it for all of them, so that no process holds anything of its own per example:

    FOLDER/epoch-3/order.npy   (D,) examples of the epoch, in the order in which they come
                   costs.npy   (D,) rows of each example, by its number
                   starts.npy  (S + 1,) where each step starts in `order`

What an epoch holds depends on seed, data and row budget only, so it does not matter who plans it, or how often.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dimvl.data.examples import Example, keyed_generator
from dimvl.errors import UserError
from dimvl.files import atomic_folder, locked

PIECE = 2**14
"""Documents planned at once: what is computed on the way stays small. No more than these are not worth a file."""

Allocate = Callable[[str, type, int], np.ndarray]
"""Gives an array to fill, by name, type and length."""


class ExampleSource(Protocol):
    """What a task offers for training: examples by epoch and number, and their cost in rows."""

    def __len__(self) -> int:
        """Return the number of examples D of an epoch."""
        ...

    def costs(self, epoch: int, some: slice) -> np.ndarray:
        """Upper bound of the rows of some examples."""
        ...

    def build_all(self, epoch: int, indexes: np.ndarray) -> list[Example]:
        """Build examples (B,) of a batch; the same epoch and number give the same example always."""
        ...


@dataclass(frozen=True)
class EpochPlan:
    """The steps of an epoch; the arrays are those of the module's text."""

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
    """Allocate an array of this process."""
    return np.empty(length, dtype)


def plan_epoch(
    source: ExampleSource, epoch: int, seed: int, row_budget: int, allocate: Allocate = in_memory
) -> EpochPlan:
    """Shuffle the examples of an epoch and cut them into optimiser steps of at most `row_budget` rows.

    Raises:
        UserError: there are no examples, or one alone is above the budget.

    """
    count = len(source)
    if not count:
        raise UserError("there are no examples to train on; check that annotations and region store belong together")
    costs = allocate("costs", np.int32, count)
    for some in _pieces(count):
        costs[some] = source.costs(epoch, some)
    if costs.max() > row_budget:
        raise UserError(
            f"one example has up to {costs.max()} rows, above training.rows_per_step {row_budget}; raise it"
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
    """Places in `order` where a step starts, but the first: one example more would exceed the budget."""
    before = 0  # rows, from the start of a piece, up to which the steps before the present one go; negative at first
    for some in _pieces(len(order)):
        upto = np.cumsum(costs[order[some]], dtype=np.int64)
        while (place := int(np.searchsorted(upto, before + row_budget, side="right"))) < len(upto):
            yield some.start + place
            before = int(upto[place - 1]) if place else 0
        before -= int(upto[-1])


def _on_disk(path: Path, dtype: type, length: int) -> np.ndarray:
    """Make a file of one array (L,), not empty, and map it to be filled.

    Raises:
        OSError: the disk is full. The space is taken beforehand: a full disk would kill a process that fills a map.

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
        seed: of their order.
        row_budget: rows of an optimiser step.
        folder: where all processes of the run keep them if they are large; None to keep them in memory of this one.

    Raises:
        UserError: as `plan_epoch`; the disk is full.

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
        """Return the number of steps of an epoch; of earlier ones nothing else is kept."""
        if self.folder is None:
            return len(self[epoch])
        return len(_load(self._planned(self.folder, epoch), "starts")) - 1

    def _make(self, epoch: int, allocate: Allocate = in_memory) -> EpochPlan:
        return plan_epoch(self.source, epoch, self.seed, self.row_budget, allocate)

    def _map(self, folder: Path, epoch: int) -> EpochPlan:
        path = self._planned(folder, epoch)
        try:
            return EpochPlan(*(_load(path, name) for name in ("order", "costs", "starts")))
        except FileNotFoundError:  # forgotten: other processes are two epochs ahead, so an epoch is a few steps
            return self._make(epoch)

    def _planned(self, folder: Path, epoch: int) -> Path:
        """Give the plan of an epoch, made first if no process has done so; forget those before the last one.

        The lock spares work and no more, since processes of other nodes may not heed it: the first one to be done wins.
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
