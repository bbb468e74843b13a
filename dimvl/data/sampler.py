"""Optimiser steps, and how the examples of a step are distributed over ranks and micro-batches.

Steps are formed first (`epoch_plan.py`), from seed, epoch, data and row budget alone; distributing them does not change
the examples of a step. So the number of ranks, the micro-batch size and the number of loader processes change no
result, and step i can be built from its number alone: resuming means starting at i.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from dimvl.data.batch import Batch
from dimvl.data.epoch_plan import EpochPlans, ExampleSource
from dimvl.data.examples import BatchShape, collate


def deal(costs: np.ndarray, ranks: int, row_budget: int) -> list[list[np.ndarray]]:
    """Distribute the examples of one step over ranks and micro-batches: the largest first, to the emptiest one.

    Args:
        costs: (D,) rows of the step's examples.
        ranks: number of ranks.
        row_budget: rows of a micro-batch.

    Returns:
        For each rank the same number of micro-batches, each with indices (ascending) into `costs`; some may be empty.

    """
    micro_batches = max(1, -(-int(costs.sum()) // (ranks * row_budget)))
    while True:
        bins: list[list[int]] = [[] for _ in range(ranks * micro_batches)]
        loads = np.zeros(len(bins), dtype=np.int64)
        for place in np.argsort(-costs, kind="stable"):
            lightest = int(loads.argmin())
            bins[lightest].append(int(place))
            loads[lightest] += costs[place]
        if loads.max() <= max(row_budget, costs.max(initial=0)):
            break
        micro_batches += 1
    return [
        [np.array(sorted(bins[rank + ranks * n]), dtype=np.int64) for n in range(micro_batches)]
        for rank in range(ranks)
    ]


@dataclass(frozen=True)
class Step:
    """One rank's part of one optimiser step."""

    epoch: int
    micro_batches: list[Batch]
    examples: int
    rows: int

    def pin_memory(self) -> "Step":
        """Copy the batches to page-locked memory; `torch.utils.data.DataLoader` calls it."""
        return replace(self, micro_batches=[batch.pin_memory() for batch in self.micro_batches])


class TrainingSteps(Dataset[Step]):
    """Optimiser steps by number: `steps[i]` depends on seed, data and budget only.

    Args:
        source: the task's examples.
        shape: what all batches of the task have in common.
        seed: seed of the order of examples.
        steps: number of steps.
        rows_per_step: row budget of an optimiser step over all ranks.
        rows_per_micro_batch: row budget of one forward pass on one rank.
        rank: rank of this process.
        ranks: number of processes.
        plans: folder in which the processes of a run share the plans of large epochs; None keeps them in memory.

    """

    def __init__(
        self,
        source: ExampleSource,
        shape: BatchShape,
        *,
        seed: int,
        steps: int,
        rows_per_step: int,
        rows_per_micro_batch: int,
        rank: int = 0,
        ranks: int = 1,
        plans: Path | None = None,
    ) -> None:
        self.source, self.shape = source, shape
        self.steps, self.rows_per_micro_batch = steps, rows_per_micro_batch
        self.rank, self.ranks = rank, ranks
        self._plans = EpochPlans(source, seed, rows_per_step, plans)
        self._ends: list[int] = []  # steps up to the end of each epoch

    def __len__(self) -> int:
        return self.steps

    def locate(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the epoch of a step, the step's examples (B,) and their rows (B,)."""
        while not self._ends or self._ends[-1] <= step:
            self._ends.append((self._ends[-1] if self._ends else 0) + self._plans.num_steps(len(self._ends)))
        epoch = bisect_right(self._ends, step)
        return epoch, *self._plans[epoch].step(step - (self._ends[epoch - 1] if epoch else 0))

    def __getitem__(self, step: int) -> Step:
        epoch, examples, costs = self.locate(step)
        mine = deal(costs, self.ranks, self.rows_per_micro_batch)[self.rank]
        batches = [collate(self.source.build_all(epoch, examples[places]), self.shape) for places in mine]
        return Step(epoch, batches, len(examples), sum(batch.layout.num_rows for batch in batches))


def in_order(costs: np.ndarray, row_budget: int) -> list[np.ndarray]:
    """Cut examples into batches of at most `row_budget` rows for evaluation, sorted by cost to reduce padding."""
    order = np.argsort(costs, kind="stable")
    batches, start, total = [], 0, 0
    for place, cost in enumerate(costs[order]):
        if place > start and total + cost > row_budget:
            batches.append(order[start:place])
            start, total = place, 0
        total += int(cost)
    return [*batches, order[start:]] if start < len(order) else batches
