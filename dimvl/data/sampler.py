"""Global steps: which documents make up each optimiser step, and how a step is dealt over ranks and micro-batches.

Steps are formed first, from seed, epoch, data and row budget only; dealing them never changes what a step holds. So the
rank count, the micro-batch size and the number of worker processes change no result, and step i can be built from
nothing but its number: resuming is starting at i.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from dimvl.data.batch import Batch
from dimvl.data.documents import BatchShape, Document, collate, keyed_generator
from dimvl.errors import UserError


class DocumentSource(Protocol):
    """What a task offers for training: documents by epoch and index, and their cost in rows."""

    def costs(self, epoch: int) -> np.ndarray:
        """(D,) upper bound of each document's rows."""
        ...

    def build_all(self, epoch: int, indexes: np.ndarray) -> list[Document]:
        """Build documents (B,) of a batch; the same epoch and index give the same document always."""
        ...


def global_steps(costs: np.ndarray, row_budget: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Shuffle the documents of an epoch and cut them into optimiser steps of at most `row_budget` rows.

    Args:
        costs: (D,) rows of each document.
        row_budget: rows of a step.
        generator: keyed by seed and epoch.

    Returns:
        For each step its documents.

    Raises:
        UserError: one document alone is above the budget.

    """
    if len(costs) and costs.max() > row_budget:
        raise UserError(
            f"one document has up to {costs.max()} rows, above training.rows_per_step {row_budget}; raise it"
        )
    order = np.arange(len(costs), dtype=np.int32 if len(costs) < 2**31 else np.int64)
    generator.shuffle(order)
    steps, start, total = [], 0, 0
    for place, cost in enumerate(costs[order]):
        if total + cost > row_budget:
            steps.append(order[start:place])
            start, total = place, 0
        total += int(cost)
    if start < len(order):
        steps.append(order[start:])
    return steps


def deal(costs: np.ndarray, ranks: int, row_budget: int) -> list[list[np.ndarray]]:
    """Deal the documents of one step over ranks and micro-batches, the heaviest first to the lightest place.

    Args:
        costs: (D,) rows of the step's documents.
        ranks: number of ranks.
        row_budget: rows of a micro-batch.

    Returns:
        For each rank the same number of micro-batches, each with places (ascending) into `costs`; some may be empty.

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
    documents: int
    rows: int

    def pin_memory(self) -> "Step":
        """Copy the batches to page-locked memory; `torch.utils.data.DataLoader` calls it."""
        return replace(self, micro_batches=[batch.pin_memory() for batch in self.micro_batches])


class TrainingSteps(Dataset[Step]):
    """Optimiser steps by number: `steps[i]` depends on seed, data and budget only.

    Args:
        source: the task's documents.
        shape: what is fixed about a batch.
        seed: of the order of documents.
        steps: how many there are.
        rows_per_step: row budget of an optimiser step over all ranks.
        rows_per_micro_batch: row budget of one forward on one rank.
        rank: of this process.
        ranks: number of processes.

    """

    def __init__(
        self,
        source: DocumentSource,
        shape: BatchShape,
        *,
        seed: int,
        steps: int,
        rows_per_step: int,
        rows_per_micro_batch: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.source, self.shape, self.seed = source, shape, seed
        self.steps, self.rows_per_step, self.rows_per_micro_batch = steps, rows_per_step, rows_per_micro_batch
        self.rank, self.ranks = rank, ranks
        self._ends: list[int] = []  # steps up to the end of each epoch
        self._plans: dict[int, tuple[np.ndarray, list[np.ndarray]]] = {}  # costs and steps of the epoch at hand

    def __len__(self) -> int:
        return self.steps

    def _locate(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the epoch of a step, the step's documents and their costs."""
        while not self._ends or self._ends[-1] <= step:
            _, plan = self._plan(len(self._ends))
            if not plan:
                raise UserError(
                    "there are no documents to train on; check that annotations and region store belong together"
                )
            self._ends.append((self._ends[-1] if self._ends else 0) + len(plan))
        epoch = bisect_right(self._ends, step)
        costs, plan = self._plan(epoch)
        documents = plan[step - (self._ends[epoch - 1] if epoch else 0)]
        return epoch, documents, costs[documents]

    def _plan(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        if epoch not in self._plans:
            generator = keyed_generator(self.seed, "order", epoch)
            costs = self.source.costs(epoch).astype(np.int32)
            self._plans = {epoch: (costs, global_steps(costs, self.rows_per_step, generator))}
        return self._plans[epoch]

    def __getitem__(self, step: int) -> Step:
        epoch, documents, costs = self._locate(step)
        mine = deal(costs, self.ranks, self.rows_per_micro_batch)[self.rank]
        batches = [collate(self.source.build_all(epoch, documents[places]), self.shape) for places in mine]
        return Step(epoch, batches, len(documents), sum(batch.layout.num_rows for batch in batches))


def in_order(costs: np.ndarray, row_budget: int) -> list[np.ndarray]:
    """Cut documents into batches of at most `row_budget` rows for evaluation, similar costs together: less padding."""
    order = np.argsort(costs, kind="stable")
    batches, start, total = [], 0, 0
    for place, cost in enumerate(costs[order]):
        if place > start and total + cost > row_budget:
            batches.append(order[start:place])
            start, total = place, 0
        total += int(cost)
    return [*batches, order[start:]] if start < len(order) else batches
