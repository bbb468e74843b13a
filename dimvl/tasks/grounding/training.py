"""Training of grounding: a phrase points at the regions of its image."""

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
from torch import Tensor

from dimvl.data.batch import Batch
from dimvl.data.examples import Example
from dimvl.data.prefixes import Prefix
from dimvl.data.targets import Pointed, RegionTargets, TargetSpec
from dimvl.data.tokenizer import Tokenizer
from dimvl.model.heads import RegionScores
from dimvl.model.model import DimvlModel
from dimvl.objectives import region_loss
from dimvl.regions.records import Detections
from dimvl.tasks.answering.training import QuestionSource
from dimvl.tasks.base import TaskModule, plain_text

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


def phrase_example(
    source: str,
    prefix: Prefix,
    phrases: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    shared_prefix: bool,
    right: Sequence[np.ndarray] | None = None,
) -> Example:
    """Build an example of one phrase about a prefix, or of several if they share it.

    Args:
        source: the example's name in error messages.
        prefix: images and context.
        phrases: token ids of each phrase.
        tokenizer: the model's tokenizer.
        shared_prefix: whether the prefix does not see the phrases.
        right: numbers of the right regions of each phrase; None for a prediction.

    """
    texts = [plain_text(words, tokenizer) for words in phrases]
    target = Pointed(right)
    return Example(source=source, objective=OBJECTIVE, prefix=prefix, texts=texts, seq2seq=shared_prefix, target=target)


class PhraseSource(QuestionSource):
    """One example per phrase and epoch or, with a shared prefix, per image; labels are the numbers of regions."""

    def build_from(self, regions: Detections, epoch: int, index: int) -> Example:
        """Build the example of a phrase, or of an image's phrases."""
        shared = self.processor.shared_prefix
        phrases = range(*self.texts.groups[index : index + 2]) if shared else range(index, index + 1)
        return phrase_example(
            f"phrase {self.texts.text_id(phrases[0])}",
            self.images.prefix(regions),
            [self.texts.tokens(phrase) for phrase in phrases],
            self.processor.tokenizer,
            shared,
            [self.texts.labels(phrase)[0] for phrase in phrases],
        )
