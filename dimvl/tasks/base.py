"""Building blocks of tasks: a model with its losses, a source of examples, and texts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from dimvl.config import Variant
from dimvl.data.batch import Batch
from dimvl.data.examples import BatchShape, Example, KeyedUniform, Text
from dimvl.data.prefixes import ImageReader, PrefixImages, PrefixRegions
from dimvl.data.processor import Processor
from dimvl.data.targets import TargetSpec
from dimvl.data.text_store import TextStore
from dimvl.data.tokenizer import Tokenizer
from dimvl.model.model import DimvlModel
from dimvl.objectives import mask_tokens

NOTHING = np.zeros(0, dtype=np.int64)


class TaskModule(nn.Module):
    """A model and its losses: `module(batch)` returns each loss, summed over its targets.

    Attributes:
        objectives: objective -> kind and width of its targets.
        weights: loss name (`objective` or `objective/part`) -> weight.
        all_ranks: logical AND over ranks, for loops in which all ranks must call modules equally often.
        drawn_rows: rows of texts that this module has drawn and trained on so far; they are not in its batches.

    """

    objectives: Mapping[str, TargetSpec]
    weights: Mapping[str, float]

    def __init__(self, model: DimvlModel, processor: Processor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.all_ranks: Callable[[bool], bool] = bool
        self.drawn_rows = 0

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def shape(self) -> BatchShape:
        """The properties that all batches of this task share."""
        return BatchShape(
            objectives=dict(self.objectives),  # spawned loader processes need a picklable mapping
            text_start=self.processor.text_start,
            feature_width=self.processor.extractor.feature_width,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses by name, summed over targets; every head runs, if only on zero rows."""
        raise NotImplementedError


class ConceptDropout:
    """Draws which training examples have no tags, and which no words in their regions, by seed, epoch and example.

    Args:
        share: share of the examples, of either kind.
        seed: seed of the run.

    """

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.seed = share, seed
        self._drawn: tuple[int, KeyedUniform] | None = None

    def without(self, epoch: int, span: slice) -> np.ndarray:
        """Return (D, 2) bool for a span of an epoch's examples: without tags, without words in their regions."""
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, KeyedUniform(self.seed, "concepts", epoch))
        drawn: np.ndarray = self._drawn[1][2 * span.start : 2 * span.stop].reshape(-1, 2) < self.share
        return drawn


class ImageSource(ABC):
    """Examples for `dimvl.data.sampler.TrainingSteps`: by default one for each group of texts about the same images.

    Nothing is held in memory per example.

    Args:
        texts: tokenised texts.
        images: reads the region store.

    Attributes:
        dropout: leaves out concepts in training; None in validation.

    """

    dropout: ConceptDropout | None = None

    def __init__(self, texts: TextStore, images: ImageReader) -> None:
        self.texts, self.images = texts, images
        texts.positions_in(images.store)  # looked up here and not in each loader process

    def __len__(self) -> int:
        """Return the number of examples D of an epoch."""
        return self.texts.num_groups

    @property
    def enlarging_keys(self) -> Sequence[str]:
        """Keys of the configuration that make an example larger."""
        return ["adapter.prompt", "inputs.max_regions"] if self.images.tags.prompt else ["inputs.max_regions"]

    def groups(self, examples: np.ndarray) -> np.ndarray:
        """Group of texts of each of the examples (B,): (B,)."""
        return examples

    def prefix_images(self, examples: np.ndarray) -> PrefixImages:
        """Images of examples (B,) in the region store."""
        return self.texts.images_in(self.images.store, self.groups(examples))

    def prefix_rows(self, epoch: int, span: slice, hidden: np.ndarray | None = None) -> np.ndarray:
        """Prefix rows of a span of an epoch's examples (D,), an upper bound for those in which regions are hidden.

        Args:
            epoch: number of the epoch.
            span: examples.
            hidden: (D,) bool, examples some of whose regions are hidden; None for none.

        """
        untagged = None if self.dropout is None else self.dropout.without(epoch, span)[:, 0]
        return self.images.rows(self.prefix_images(np.arange(span.start, span.stop)), untagged, hidden)

    @abstractmethod
    def costs(self, epoch: int, span: slice) -> np.ndarray:
        """Upper bound of the rows of a span of examples."""

    def build(self, epoch: int, index: int) -> Example:
        """Build one example of an epoch that is not a group."""
        [example] = self.build_all(epoch, np.array([index]))
        return example

    def build_all(self, epoch: int, indexes: np.ndarray) -> list[Example]:
        """Build examples (B,) of an epoch, reading all their images at once; one does not depend on the others.

        One of the B may be a group, for which several examples are returned, one after the other.
        """
        found = self.read(epoch, indexes)
        return [self.build_from(regions, epoch, index) for regions, index in zip(found, indexes.tolist(), strict=True)]

    def read(self, epoch: int, indexes: np.ndarray) -> list[PrefixRegions]:
        """Read the regions of examples (B,) of an epoch, without the concepts that dropout leaves out."""
        found = self.images.read(self.prefix_images(indexes))
        return [
            self._with_dropout(regions, epoch, index) for regions, index in zip(found, indexes.tolist(), strict=True)
        ]

    def _with_dropout(self, regions: PrefixRegions, epoch: int, index: int) -> PrefixRegions:
        """Leave out the tags or the words of an example's regions if they are drawn for dropout."""
        if self.dropout is None:
            return regions
        untagged, unnamed = self.dropout.without(epoch, slice(index, index + 1))[0].tolist()
        return replace(regions, tags=not untagged, words=not unnamed)

    @abstractmethod
    def build_from(self, regions: PrefixRegions, epoch: int, index: int) -> Example:
        """Build one example from the regions of its images."""


def shared_rows(captions: TextStore, limit: int, span: slice) -> np.ndarray:
    """Upper bound of the rows of up to `limit` captions of each group in a span, including [CLS] or [SEP]."""
    lengths, starts = captions.lengths_of(span)
    longest = np.maximum.reduceat(lengths + 1, starts)
    return np.minimum(np.add.reduceat(lengths + 1, starts), longest * limit)


def plain_text(words: np.ndarray, tokenizer: Tokenizer) -> Text:
    """Return `words [SEP]` with nothing to predict."""
    return Text(token_ids=_with_end(words, tokenizer), places=NOTHING, labels=NOTHING)


def masked_text(
    words: np.ndarray, generator: np.random.Generator, tokenizer: Tokenizer, share: float, whole_words: bool
) -> Text:
    """Return `words [SEP]` with a share of the words masked."""
    masked = mask_tokens(words, generator, tokenizer, share, whole_words=whole_words)
    return Text(token_ids=_with_end(masked.token_ids, tokenizer), places=masked.places, labels=masked.labels)


def seq2seq_text(
    words: np.ndarray, generator: np.random.Generator, tokenizer: Tokenizer, variant: Variant, share: float
) -> Text:
    """Return a text that is predicted from its prefix and its own past.

    `causal`: `[CLS] words`, where every row predicts the next token, [SEP] at the end. `masked` (VLP, UniLM):
    `words [SEP]` with a share of the tokens masked, possibly the final [SEP].
    """
    if variant == "causal":
        return causal_text(words, tokenizer)
    masked = mask_tokens(_with_end(words, tokenizer), generator, tokenizer, share)
    return Text(token_ids=masked.token_ids, places=masked.places, labels=masked.labels)


def causal_text(words: np.ndarray, tokenizer: Tokenizer) -> Text:
    """Return `[CLS] words`, where every row predicts the next token, [SEP] at the end."""
    whole = _with_end(words, tokenizer)
    rows = np.empty_like(whole)
    rows[0], rows[1:] = tokenizer.cls, words
    return Text(token_ids=rows, places=np.arange(len(rows)), labels=whole, has_start=True)


def _with_end(words: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    whole = np.empty(len(words) + 1, dtype=np.int64)
    whole[:-1] = words
    whole[-1] = tokenizer.sep
    return whole
