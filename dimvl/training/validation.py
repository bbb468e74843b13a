"""Validation during training: the task's score on held-out data, computed by all ranks together.

Nothing is random but the subset, which its own seed decides, so a resumed run finds the same scores. Batches are
assigned round-robin to ranks; a rank without one left gets an empty batch, so that all ranks call the modules of the
model equally often, which ZeRO 3 needs.
"""

import numpy as np
import torch

from dimvl.callbacks import NamedProgress
from dimvl.config import RunConfig
from dimvl.data.sampler import in_order
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.tasks.base import TaskModule
from dimvl.tasks.task import ValidationScore
from dimvl.training.early_stopping import Validation
from dimvl.training.ranks import Ranks


def build_validation(
    config: RunConfig, module: TaskModule, store: RegionStore, ranks: Ranks, progress: NamedProgress
) -> Validation | None:
    """Prepare the validation that a run asks for; None without the section `validation`.

    Args:
        config: of the run.
        module: its model is scored, in eval mode, and then put back into training mode.
        store: of the training images, used where the validation names none.
        ranks: all ranks, which compute the score together.
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
