"""The interface between a task and the training loop, and the texts that tasks are made of."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from dimvl.data.batch import Batch, Targets
from dimvl.data.documents import BatchShape, Text
from dimvl.data.processor import Processor, Variant
from dimvl.data.tokenizer import Tokenizer
from dimvl.model.model import DimvlModel
from dimvl.objectives import mask_tokens

NOTHING = np.zeros(0, dtype=np.int64)


class Task(nn.Module):
    """A model and what it is trained for: `task(batch)` gives the losses, each summed over its targets.

    Attributes:
        name: of the task.
        objectives: objective -> type of its targets.
        weights: loss name (`objective` or `objective/part`) -> weight.

    """

    name: ClassVar[str]
    objectives: ClassVar[Mapping[str, type[Targets]]]
    weights: Mapping[str, float]

    def __init__(self, model: DimvlModel, processor: Processor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor

    @property
    def shape(self) -> BatchShape:
        """What is fixed about this task's batches."""
        extractor = self.processor.extractor
        return BatchShape(
            objectives=self.objectives,
            text_start=self.processor.text_start,
            feature_width=extractor.feature_width,
            classes=len(extractor.classes),
            answers=len(self.processor.answers),
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name, summed over targets; every head runs, on zero rows if need be."""
        raise NotImplementedError


def plain_text(words: np.ndarray, tokenizer: Tokenizer) -> Text:
    """`words [SEP]` with nothing to predict."""
    return Text(token_ids=np.append(words, tokenizer.sep), places=NOTHING, labels=NOTHING)


def masked_text(
    words: np.ndarray, generator: np.random.Generator, tokenizer: Tokenizer, share: float, whole_words: bool
) -> Text:
    """`words [SEP]` with a share of the words masked."""
    masked = mask_tokens(words, generator, tokenizer, share, whole_words=whole_words)
    return Text(token_ids=np.append(masked.token_ids, tokenizer.sep), places=masked.places, labels=masked.labels)


def seq2seq_text(
    words: np.ndarray, generator: np.random.Generator, tokenizer: Tokenizer, variant: Variant, share: float
) -> Text:
    """A text that is predicted from its prefix and its own past.

    `causal`: `[CLS] words`, where every row predicts the next token, [SEP] at the end. `masked` (VLP, UniLM):
    `words [SEP]` with a share of the tokens masked, the final [SEP] among them.
    """
    whole = np.append(words, tokenizer.sep)
    if variant == "causal":
        rows = np.append(tokenizer.cls, words)
        return Text(token_ids=rows, places=np.arange(len(rows)), labels=whole, has_start=True)
    masked = mask_tokens(whole, generator, tokenizer, share)
    return Text(token_ids=masked.token_ids, places=masked.places, labels=masked.labels)
