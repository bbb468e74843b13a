"""Validation during training: the task's score on held-out data, computed by all ranks together.

Only the subset is random, and it has its own seed, so a resumed run gets the same scores. Batches are assigned
round-robin to ranks. A rank without one gets an empty batch, since ZeRO 3 needs all ranks to call the model equally
often. Every checkpoint includes the best score so far, so a resumed run stops early where an uninterrupted one does.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from dimvl.callbacks import NamedProgress
from dimvl.config import RunConfig
from dimvl.data.sampler import in_order
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.tasks.base import TaskModule
from dimvl.tasks.task import ValidationScore
from dimvl.training.ranks import Ranks


class Validation(NamedTuple):
    """When and how to validate.

    Attributes:
        score: computes the score; every rank calls it.
        every: steps between validations.
        patience: validations without improvement after which to stop; 0 never stops.

    """

    score: Callable[[], ValidationScore]
    every: int
    patience: int

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether to validate after `step` of `steps` steps; always after the last."""
        return step % self.every == 0 or step == steps

    def gives_up(self, best: "Best | None") -> bool:
        """Return whether the score has not improved for too long."""
        return best is not None and best.misses >= self.patience > 0


class Best(NamedTuple):
    """The best score so far, its step, and the number of validations since then."""

    score: float
    step: int
    misses: int = 0

    @classmethod
    def after(cls, best: "Best | None", score: float, step: int) -> "Best":
        """Return the best after another score; a tie is not an improvement."""
        return cls(score, step) if best is None or score > best.score else best._replace(misses=best.misses + 1)


def build_validation(
    config: RunConfig, module: TaskModule, store: RegionStore, ranks: Ranks, progress: NamedProgress
) -> Validation | None:
    """Prepare the validation of a run; return None without the section `validation`.

    Args:
        config: the run's configuration.
        module: its model is scored in eval mode, and then returned to training mode.
        store: the training images, used unless the validation names its own regions.
        ranks: the ranks that share the work.
        progress: called while the score is computed.

    Raises:
        UserError: annotations or regions that do not fit.

    """
    section = config.validation
    if section is None:
        return None
    if section.regions is not None:
        store = RegionStore(section.regions, config.training.check_reads)
        module.processor.check_extractor(store.extractor, str(store.path))
    validator = task_of(config).validator(config, module, store)
    batches = in_order(validator.costs, config.training.rows_per_micro_batch)

    @torch.inference_mode()
    def score() -> ValidationScore:
        own, nothing = [], np.zeros(0, dtype=np.int64)
        module.eval()
        try:
            for first in range(0, len(batches), ranks.size):
                number = first + ranks.rank
                value = validator.run(batches[number] if number < len(batches) else nothing)
                own += [(number, value)] if number < len(batches) else []
                progress("batches validated", min(first + ranks.size, len(batches)), len(batches))
        finally:
            module.train()
        every = sorted((part for parts in ranks.gather(own) for part in parts), key=lambda part: part[0])
        return validator.result([(batches[number], value) for number, value in every])

    return Validation(score, section.every, section.patience)
