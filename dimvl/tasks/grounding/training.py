"""Training of grounding: a phrase points at the regions of its image."""

from types import MappingProxyType

from torch import Tensor

from dimvl.data.batch import Batch
from dimvl.data.region_targets import Pointed, RegionTargets
from dimvl.data.targets import TargetSpec
from dimvl.model.heads import RegionScores
from dimvl.model.model import DimvlModel
from dimvl.objectives import region_loss
from dimvl.tasks.base import TaskModule
from dimvl.tasks.texts import TextSource

OBJECTIVE = "ground"
SPECS = MappingProxyType({OBJECTIVE: TargetSpec(RegionTargets)})


def region_scores(model: DimvlModel, batch: Batch) -> tuple[RegionScores, RegionTargets]:
    """Logits of each phrase's regions, and what they belong to."""
    targets = batch.targets[OBJECTIVE]
    assert model.region_head is not None and isinstance(targets, RegionTargets)
    rows = model(batch)
    pairs = targets.pair_texts, targets.pair_regions
    return model.region_head(rows[targets.texts], rows[targets.regions], *pairs), targets


class GroundModule(TaskModule):
    """Cross entropy over the regions of a phrase's image, `dimvl.objectives.region_loss`."""

    weights = MappingProxyType({OBJECTIVE: 1.0})
    objectives = SPECS

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses by name, summed over targets."""
        return {OBJECTIVE: region_loss(*region_scores(self.model, batch))}


class PhraseSource(TextSource):
    """Phrases whose labels are the numbers of the right regions."""

    objective = OBJECTIVE
    kind = "phrase"

    def target(self, texts: range) -> Pointed:
        """Return the right regions of some phrases."""
        return Pointed([self.texts.labels(text)[0] for text in texts])
