"""Training of classification: a text, possibly empty, is classified from its last row, which has seen the images.

As in the published classifiers of NLVR2, SNLI-VE and GQA (UNITER: Chen et al., ECCV 2020), with two deliberate
differences: the images of a pair are one prefix, so that each sees the other in every layer, where UNITER compares two
encoded pairs of image and text; and the row is the text's last one, not [CLS], so that `shared_prefix` can compute an
image once for its texts.
"""

from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor

from dimvl.data.batch import Batch
from dimvl.data.processor import Processor
from dimvl.data.targets import LabelTargets, TargetSpec
from dimvl.model.model import DimvlModel
from dimvl.objectives import answer_loss
from dimvl.tasks.base import TaskModule

OBJECTIVE = "labels"


def label_spec(processor: Processor) -> dict[str, TargetSpec]:
    """Return the targets of the only objective."""
    return {OBJECTIVE: TargetSpec(LabelTargets, len(processor.labels))}


def label_logits(model: DimvlModel, batch: Batch) -> Tensor:
    """Label logits of each text: (M, K)."""
    assert model.label_head is not None
    return model.label_head(model(batch)[batch.targets[OBJECTIVE].rows])


class ClassifyModule(TaskModule):
    """Cross entropy, or with several labels binary cross entropy summed over labels."""

    weights = MappingProxyType({OBJECTIVE: 1.0})

    def __init__(self, model: DimvlModel, processor: Processor) -> None:
        super().__init__(model, processor)
        self.objectives = label_spec(processor)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses by name, summed over targets."""
        targets = batch.targets[OBJECTIVE]
        assert isinstance(targets, LabelTargets)
        logits = label_logits(self.model, batch).float()
        if self.processor.several_labels:
            return {OBJECTIVE: answer_loss(logits, targets.scores)}
        return {OBJECTIVE: F.cross_entropy(logits, targets.scores, reduction="sum")}
