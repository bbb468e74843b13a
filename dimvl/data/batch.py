"""The ragged batch: examples laid out as one matrix of rows, without padding.

Rows stand in three blocks: the regions of all prefixes, then the contexts of all prefixes, then all texts. So all
visual rows come first, and a projection for one modality is a slice. Which rows belong together is told by the `Layout`
alone.

Letters: P prefixes, T texts, N rows, Nv visual rows, Nl language rows, F region feature, M targets.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the integer ranges `start, start + 1, ...` of the given lengths: (S,), (S,) -> (sum of lengths,)."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def starts_of(lengths: np.ndarray, first: int = 0) -> np.ndarray:
    """Where each of the consecutive pieces starts, the first one at `first`: (S,) -> (S,)."""
    return first + np.cumsum(lengths) - lengths


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which rows belong together.

    Attributes:
        num_regions: (P,) visual rows of each prefix; 0 is legal.
        num_context: (P,) context rows of each prefix; 0 is legal.
        text_lengths: (T,) rows of each text.
        text_prefix: (T,) the prefix of each text, ascending.
        seq2seq: (P,) True: the prefix sees itself only and a text sees the prefix and its own past (any number of
            texts); False: prefix and text see each other entirely (at most one text).

    """

    num_regions: np.ndarray
    num_context: np.ndarray
    text_lengths: np.ndarray
    text_prefix: np.ndarray
    seq2seq: np.ndarray

    def __post_init__(self) -> None:
        """Check that a bidirectional prefix has at most one text."""
        texts = np.bincount(self.text_prefix, minlength=len(self.num_regions))
        if (texts[~self.seq2seq] > 1).any():
            raise ValueError("a bidirectional prefix takes at most one text; give it one prefix per text")

    @property
    def num_vision(self) -> int:
        """Number of visual rows Nv."""
        return int(self.num_regions.sum())

    @property
    def num_rows(self) -> int:
        """Number of rows N."""
        return self.num_vision + int(self.num_context.sum()) + int(self.text_lengths.sum())

    @property
    def region_starts(self) -> np.ndarray:
        """(P,) row of each prefix's first region."""
        return starts_of(self.num_regions)

    @property
    def context_starts(self) -> np.ndarray:
        """(P,) row of each prefix's first context token."""
        return starts_of(self.num_context, self.num_vision)

    @property
    def text_starts(self) -> np.ndarray:
        """(T,) row of each text's first token."""
        return starts_of(self.text_lengths, self.num_vision + int(self.num_context.sum()))


class WordTargets(NamedTuple):
    """Words to predict: rows (M,) into the row matrix, labels (M,) token ids."""

    rows: Tensor
    labels: Tensor


class CaptionTargets(NamedTuple):
    """Words of captions to predict, where the captions of highest loss may be dropped.

    rows (M,) into the row matrix, labels (M,) token ids, texts (M,) the text of each word, drop (P,) how many texts of
    each prefix are dropped.
    """

    rows: Tensor
    labels: Tensor
    texts: Tensor
    drop: Tensor


class SampleTargets(NamedTuple):
    """Captions to draw.

    rows (M,) the prefix that each is of (no row: its rows are not there yet), images (M,) the image's place in the
    references, draws (M, L) numbers in [0, 1) that decide the words.
    """

    rows: Tensor
    images: Tensor
    draws: Tensor


class ObjectTargets(NamedTuple):
    """Regions to predict.

    rows (M,), whose features the batch has, class_probabilities (M, K + 1) whose last column is the mass of background
    and of classes that the store did not keep.
    """

    rows: Tensor
    class_probabilities: Tensor


class MatchTargets(NamedTuple):
    """Pairs to judge.

    rows (M,) of [CLS] or of the text's last token, labels (M,) float, 1 = the text belongs to the image.
    """

    rows: Tensor
    labels: Tensor


class AnswerTargets(NamedTuple):
    """Questions: rows (M,) of their last token, scores (M, A) soft targets."""

    rows: Tensor
    scores: Tensor


Targets = WordTargets | CaptionTargets | SampleTargets | ObjectTargets | MatchTargets | AnswerTargets


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows, their layout, and what is to be predicted from them.

    Attributes:
        layout: which rows belong together.
        region_features: (Nv, F) float16, float32 or int8, as the store keeps them; the model casts them.
        region_geometry: (Nv, 7) float32 x1, y1, x2, y2, w, h, w*h as fractions of the image.
        region_image_index: (Nv,) which of the prefix's images the region is of, from 0.
        region_hidden: (Nv,) bool, True where the feature is to be replaced by the learned vector.
        token_ids: (Nl,)
        positions: (Nl,)
        segments: (Nl,) 0 context, 1 text.
        targets: by objective; an objective of the task is always there, with zero targets if need be.
        sources: what each example came from, for error messages.
        region_feature_scales: (Nv, 1) float32 scales of int8 features; None for others.
        region_times: (Nv,) float32 seconds of the region's image; None for a model that does not use them.

    """

    layout: Layout
    region_features: Tensor
    region_geometry: Tensor
    region_image_index: Tensor
    region_hidden: Tensor
    token_ids: Tensor
    positions: Tensor
    segments: Tensor
    targets: Mapping[str, Targets]
    sources: Sequence[str] = ()
    region_feature_scales: Tensor | None = None
    region_times: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """Move all tensors to `device`."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Copy all tensors to page-locked memory, from where a GPU fetches them while it computes."""
        return self._changed(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Let the memory of all tensors wait for this stream before it is used again."""

        def wait(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._changed(wait)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to every tensor."""
        changed: dict[str, Any] = {
            field.name: change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        targets = {name: type(target)(*map(change, target)) for name, target in self.targets.items()}
        return replace(self, targets=targets, **changed)

    def counts(self) -> dict[str, int]:
        """Number of targets by objective: what the losses of an optimiser step are divided by."""
        return {name: len(target.rows) for name, target in self.targets.items()}
