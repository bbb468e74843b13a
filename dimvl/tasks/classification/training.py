"""Training of classification: a text, possibly empty, is classified from its last row, which has seen the images.

As in the published classifiers of NLVR2, SNLI-VE and GQA (UNITER: Chen et al., ECCV 2020), with two deliberate
differences: the images of a pair are one prefix, so that each sees the other in every layer, where UNITER compares two
encoded pairs of image and text; and the row is the text's last one, not [CLS], so that `shared_prefix` can compute an
image once for its texts.

With `by_names` an image is compared with a sentence for each label, soft rows and then its name, by the alignment of
the base, and the soft rows are trained: CoOp (Zhou et al., IJCV 2022), with the name at the end and one prompt for all
labels.

Letters: M items, K labels, D width.
"""

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dimvl.data.batch import Batch
from dimvl.data.examples import BatchShape, Example, collate
from dimvl.data.prefixes import Prefix
from dimvl.data.processor import Processor
from dimvl.data.tags import RegionWords
from dimvl.data.targets import LabelTargets, TargetSpec
from dimvl.errors import UserError
from dimvl.model.model import DimvlModel
from dimvl.objectives import answer_loss
from dimvl.showing import short
from dimvl.tasks.base import TaskModule, plain_text

OBJECTIVE = "labels"


def label_spec(processor: Processor) -> dict[str, TargetSpec]:
    """Return the targets of the only objective."""
    return {OBJECTIVE: TargetSpec(LabelTargets, len(processor.labels))}


def label_logits(model: DimvlModel, batch: Batch, processor: Processor) -> Tensor:
    """Label logits of each text or, by names, of each image: (M, K)."""
    rows = model(batch)
    if not processor.class_prompt:
        assert model.label_head is not None
        return model.label_head(rows[batch.targets[OBJECTIVE].rows])
    assert model.align_head is not None
    images = torch.from_numpy(batch.layout.context_starts[batch.layout.text_prefix]).to(rows.device)
    names = name_batch(processor).to(rows.device)
    sentences = model(names)[names.targets[OBJECTIVE].rows]
    aligned = model.align_head(rows[images], rows[:0], sentences, sentences[:0])
    return aligned.scales[0] * aligned.images @ aligned.texts.T


def name_batch(processor: Processor) -> Batch:
    """Return a batch of a sentence for each label, each seen alone: soft rows, its name and [SEP].

    Raises:
        UserError: two names are the same tokens, or one is too long.

    """
    soft, tokenizer = -1 - np.arange(processor.class_prompt), processor.tokenizer
    names = tokenizer.encode_all(list(processor.labels))
    _check_names(processor, names)
    texts = [plain_text(np.concatenate([soft, name]).astype(np.int64), tokenizer) for name in names]
    width, none = processor.extractor.feature_width, np.zeros(0, dtype=np.int64)
    prefix = Prefix(
        features=np.zeros((0, width), np.float32),
        boxes=np.zeros((0, 4), np.float32),
        image_index=none,
        hidden=none.astype(bool),
        context=none,
        words=RegionWords(none, none.astype(np.float32), none) if processor.region_words else None,
    )
    example = Example(source="labels", objective=OBJECTIVE, prefix=prefix, texts=texts, apart=True, target=None)
    shape = BatchShape(objectives=label_spec(processor), text_start=processor.text_start, feature_width=width)
    return collate([example], shape)


def _check_names(processor: Processor, names: Sequence[Sequence[int]]) -> None:
    seen: dict[tuple[int, ...], str] = {}
    for label, name in zip(processor.labels, names, strict=True):
        if (other := seen.setdefault(tuple(name), label)) != label:
            raise UserError(f"labels {short(other)} and {short(label)} are the same tokens; write one in other words")
        if processor.class_prompt + len(name) > processor.text_tokens:
            raise UserError(
                f"label {short(label)} has {len(name)} word pieces, with {processor.class_prompt} soft rows more than "
                f"inputs.text_tokens {processor.text_tokens}; lower adapter.prompt, or shorten the label"
            )


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
        logits = label_logits(self.model, batch, self.processor).float()
        if self.processor.several_labels:
            return {OBJECTIVE: answer_loss(logits, targets.scores)}
        return {OBJECTIVE: F.cross_entropy(logits, targets.scores, reduction="sum")}
