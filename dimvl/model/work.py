"""The work in a batch: its rows of each kind, its query-key pairs and the rows that heads run on.

All numbers may be fractions, so that averages of batches are work too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from dimvl.data.batch import Batch
from dimvl.data.layout import Layout
from dimvl.model.plan import AttentionCall, plan_attention


@dataclass(frozen=True, kw_only=True)
class AttentionWork:
    """The size of one attention call, or of several, in each layer.

    Attributes:
        queries: rows that attend.
        keys: rows gathered to be attended to; those of a shared prefix count once per text.
        pairs: query-key products, the sum over sequences of query length x key length. As in torch, a causal call
            counts as the whole rectangle, although some kernels skip masked pairs.
        masked: pairs in calls with a dense mask (padded cores only).

    """

    queries: float = 0.0
    keys: float = 0.0
    pairs: float = 0.0
    masked: float = 0.0

    def __add__(self, other: "AttentionWork") -> "AttentionWork":
        return AttentionWork(**{name: value + getattr(other, name) for name, value in self.__dict__.items()})

    def __mul__(self, factor: float) -> "AttentionWork":
        return AttentionWork(**{name: value * factor for name, value in self.__dict__.items()})


@dataclass(frozen=True, kw_only=True)
class Work:
    """Rows and targets of a batch.

    Attributes:
        vision: rows of regions.
        language: rows of context and text.
        attention: all attention calls.
        heads: name of a head, or of a part of one (`head.part`) -> rows that it runs on.
        similarities: products of vectors in the shared space.

    """

    vision: float = 0.0
    language: float = 0.0
    attention: AttentionWork = AttentionWork()
    heads: Mapping[str, float] = field(default_factory=dict)
    similarities: float = 0.0

    @property
    def rows(self) -> float:
        """N, the rows of both modalities."""
        return self.vision + self.language

    def __add__(self, other: "Work") -> "Work":
        names = dict.fromkeys([*self.heads, *other.heads])
        heads = {name: self.heads.get(name, 0.0) + other.heads.get(name, 0.0) for name in names}
        return Work(
            vision=self.vision + other.vision,
            language=self.language + other.language,
            attention=self.attention + other.attention,
            heads=heads,
            similarities=self.similarities + other.similarities,
        )

    def __mul__(self, factor: float) -> "Work":
        heads = {name: rows * factor for name, rows in self.heads.items()}
        return Work(
            vision=self.vision * factor,
            language=self.language * factor,
            attention=self.attention * factor,
            heads=heads,
            similarities=self.similarities * factor,
        )

    @classmethod
    def of(cls, batch: Batch, padded: bool) -> Self:
        """Count the work of a batch; with `padded`, attention includes the padding of padded cores (CPU, fp32)."""
        layout, heads = batch.layout, dict[str, float]()
        if padded:
            attention = sum(map(_padded_call, plan_attention(layout).calls), AttentionWork())
        else:
            attention = ragged_attention(layout)
        for targets in batch.targets.values():
            for name, rows in targets.head_rows.items():
                heads[name] = heads.get(name, 0.0) + rows
        return cls(
            similarities=sum(targets.similarities for targets in batch.targets.values()),
            vision=layout.num_vision,
            language=layout.num_rows - layout.num_vision,
            attention=attention,
            heads=heads,
        )


def ragged_attention(layout: Layout) -> AttentionWork:
    """Count both attention calls without padding, from the lengths alone: cheap enough for every step of a run."""
    prefix, lengths, owner = layout.num_regions + layout.num_context, layout.text_lengths, layout.text_prefix
    causal = layout.seq2seq[owner] & (lengths > 0)
    joined = layout.together[owner]
    whole = prefix.copy()
    whole[owner[joined]] += lengths[joined]
    whole = np.append(whole, lengths[~joined & ~layout.seq2seq[owner]])
    texts, keys = lengths[causal], lengths[causal] + prefix[owner[causal]]
    return AttentionWork(
        queries=float(whole.sum() + texts.sum()),
        keys=float(whole.sum() + keys.sum()),
        pairs=float(np.dot(whole, whole) + np.dot(texts, keys)),
    )


def _padded_call(call: AttentionCall) -> AttentionWork:
    shapes = np.array([core.shape for core in call.cores])
    masked = sum(core.mask.numel() for core in call.cores if core.mask is not None)
    return AttentionWork(
        queries=float(shapes[:, :2].prod(axis=1).sum()),
        keys=float(shapes[:, ::2].prod(axis=1).sum()),
        pairs=float(shapes.prod(axis=1).sum()),
        masked=float(masked),
    )


def example_work(
    *,
    regions: float,
    context: float,
    texts: float,
    text_rows: float,
    shared_prefix: bool = False,
    apart: bool = False,
    **heads: float,
) -> Work:
    """Return the work of an example of average lengths.

    Args:
        regions: visual rows of its prefix.
        context: rows of `[CLS] tags [SEP]`.
        texts: number of texts; one if the prefix sees its text.
        text_rows: rows of each text.
        shared_prefix: sequence-to-sequence: the prefix sees only itself and is computed once for all texts.
        apart: the prefix and each text see only themselves.
        heads: name of a head -> rows that it runs on.

    """
    prefix, text = regions + context, texts * text_rows
    if shared_prefix:
        keys = texts * (prefix + text_rows)
        attention = AttentionWork(queries=prefix, keys=prefix, pairs=prefix * prefix)
        pairs = text * (prefix + text_rows)
        attention += AttentionWork(queries=text, keys=keys, pairs=pairs, masked=pairs)
    elif apart:
        pairs = prefix * prefix + text * text_rows
        attention = AttentionWork(queries=prefix + text, keys=prefix + text, pairs=pairs)
    else:
        rows = prefix + text
        attention = AttentionWork(queries=rows, keys=rows, pairs=rows * rows)
    return Work(vision=regions, language=context + text, attention=attention, heads=heads)
