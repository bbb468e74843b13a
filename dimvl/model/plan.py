"""Which rows attend to which: the attention plan of one batch, built once and used by every layer.

No mode needs an attention mask. One full call covers the bidirectional examples and the sequence-to-sequence prefixes.
One causal call, aligned at the end, lets the sequence-to-sequence texts attend to their prefix and their own past.

A learned prefix (`Encoder.prefix`) adds keys and values that are no rows: they count as rows N .. N + P - 1 among the
keys, and come first in each sequence.

Letters: S sequences of a call or core, N rows, P learned keys, Lq and Lk longest query and key length.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dimvl.data.layout import Layout, ranges, starts_of

GROWTH = 1.25  # ratio of the longest key lengths of consecutive padded cores


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One variable-length attention call over S sequences."""

    query_rows: Tensor  # (sum of query lengths,) row indices, sequence by sequence
    key_rows: Tensor  # (sum of key lengths,) row indices, sequence by sequence
    query_lengths: np.ndarray  # (S,), all above 0
    key_lengths: np.ndarray  # (S,)
    causal: bool  # whether query i of a sequence sees only the keys up to `key length - query length + i`

    @cached_property
    def offsets(self) -> tuple[Tensor, Tensor]:
        """(S + 1,) int32 start of each sequence among the queries and among the keys, on the device of the rows."""
        starts = (np.concatenate([[0], np.cumsum(lengths)]) for lengths in (self.query_lengths, self.key_lengths))
        queries, keys = (torch.from_numpy(part.astype(np.int32)).to(self.query_rows.device) for part in starts)
        return queries, keys

    @cached_property
    def cores(self) -> tuple["PaddedCore", ...]:
        """The call split into cores of similar key lengths, so that little of the computation is padding."""
        size = np.ceil(np.log(self.key_lengths) / np.log(GROWTH))
        return tuple(self._core(np.flatnonzero(size == one)) for one in np.unique(size))

    def _core(self, sequences: np.ndarray) -> "PaddedCore":
        queries, keys = self.query_lengths[sequences], self.key_lengths[sequences]
        num_queries, num_keys = int(queries.max()), int(keys.max())
        places = ranges(np.arange(len(sequences)) * num_queries, queries)
        mask = np.arange(num_keys) < keys[:, None, None]
        if self.causal:
            last = (keys - queries)[:, None] + np.arange(num_queries)
            mask = mask & (np.arange(num_keys) <= last[..., None])
        device = self.query_rows.device
        return PaddedCore(
            query_rows=self.query_rows[_padded(self.query_lengths, sequences).to(device)],
            key_rows=self.key_rows[_padded(self.key_lengths, sequences).to(device)],
            query_places=torch.from_numpy(places).to(device),
            shape=(len(sequences), num_queries, num_keys),
            mask=None if mask.all() else torch.from_numpy(mask)[:, None].to(device),
        )

    def dense_mask(self, num_rows: int, num_keys: int) -> Tensor:
        """(N, N + P) bool, True where the row's query may attend to the column's key."""
        mask = torch.zeros(num_rows, num_keys, dtype=torch.bool)
        query_end = np.cumsum(self.query_lengths)
        key_end = np.cumsum(self.key_lengths)
        for index, (queries, keys) in enumerate(zip(self.query_lengths, self.key_lengths, strict=True)):
            query_rows = self.query_rows[query_end[index] - queries : query_end[index]].cpu()
            key_rows = self.key_rows[key_end[index] - keys : key_end[index]].cpu()
            for place, row in enumerate(query_rows):
                mask[row, key_rows[: keys - queries + place + 1] if self.causal else key_rows] = True
        return mask.to(self.query_rows.device)


@dataclass(frozen=True, eq=False, kw_only=True)
class PaddedCore:
    """Sequences of one call, padded to equal lengths with repetitions of their first row; padded keys are masked."""

    query_rows: Tensor  # (S * Lq,) row of each padded query
    key_rows: Tensor  # (S * Lk,) row of each padded key
    query_places: Tensor  # places of the real queries among the S * Lq
    shape: tuple[int, int, int]  # S, Lq, Lk
    mask: Tensor | None  # (S, 1, Lq or 1, Lk) bool, True = may attend; None if nothing is masked


def _padded(lengths: np.ndarray, sequences: np.ndarray) -> Tensor:
    """Return the places of the given sequences, padded: (S * longest,); padding repeats the first place."""
    starts, chosen = starts_of(lengths)[sequences, None], lengths[sequences, None]
    column = np.arange(chosen.max())
    return torch.from_numpy((starts + np.where(column < chosen, column, 0)).reshape(-1))


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """The calls of one batch. Every row is a query in exactly one of them."""

    num_vision: int
    num_rows: int
    calls: tuple[AttentionCall, ...]
    learned: int = 0  # P

    @property
    def num_keys(self) -> int:
        """N + P."""
        return self.num_rows + self.learned

    @cached_property
    def dense_mask(self) -> Tensor:
        """(N, N + P) bool, True = may attend; for the reference attention and for tests."""
        mask = self.calls[0].dense_mask(self.num_rows, self.num_keys)
        for call in self.calls[1:]:
            mask |= call.dense_mask(self.num_rows, self.num_keys)
        return mask

    @cached_property
    def query_rows(self) -> Tensor:
        """(N,) rows in the order of the calls' queries."""
        first, *others = (call.query_rows for call in self.calls)
        return torch.cat([first, *others]) if others else first

    @cached_property
    def query_order(self) -> Tensor:
        """(N,) place of each row in `query_rows`."""
        order = torch.empty_like(self.query_rows)
        order[self.query_rows] = torch.arange(len(order), device=order.device)
        return order

    @cached_property
    def key_places(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """For each call the places of the rows among its keys.

        (sum of key lengths,) places sorted by row, and (N + P,) where the places of each row start. A prefix row occurs
        once per text of the prefix, a row of another call not at all.
        """
        all_rows, result = torch.arange(self.num_keys, device=self.query_rows.device), []
        for call in self.calls:
            rows, places = call.key_rows.sort(stable=True)
            result.append((places, torch.searchsorted(rows, all_rows)))
        return tuple(result)

    @cached_property
    def cores(self) -> tuple[PaddedCore, ...]:
        """The padded cores of all calls."""
        return tuple(core for call in self.calls for core in call.cores)

    @cached_property
    def padded_rows(self) -> tuple[Tensor, Tensor]:
        """Row of each padded query and of each padded key, core by core."""
        return torch.cat([core.query_rows for core in self.cores]), torch.cat([core.key_rows for core in self.cores])

    @cached_property
    def padded_places(self) -> Tensor:
        """(N,) place of each row's output among the outputs of all padded queries."""
        places = torch.empty_like(self.padded_rows[0][: self.num_rows])
        start = 0
        for core in self.cores:
            places[core.query_rows[core.query_places]] = start + core.query_places
            start += len(core.query_rows)
        return places


def plan_attention(layout: Layout, device: torch.device | str = "cpu", learned: int = 0) -> AttentionPlan:
    """Build the plan of a batch.

    Args:
        layout: which rows belong together.
        device: device of the index tensors.
        learned: P, keys that every row attends to, besides those of rows.

    """
    own_text = np.full(len(layout.num_regions), -1)
    own_text[layout.text_prefix] = np.arange(len(layout.text_prefix))
    own_text[~layout.together] = -1
    has_text = own_text >= 0
    text_starts, text_lengths = np.zeros_like(own_text), np.zeros_like(own_text)
    text_starts[has_text] = layout.text_starts[own_text[has_text]]
    text_lengths[has_text] = layout.text_lengths[own_text[has_text]]

    calls = []
    starts = np.stack([layout.region_starts, layout.context_starts, text_starts], axis=1)
    lengths = np.stack([layout.num_regions, layout.num_context, text_lengths], axis=1)
    total, starts, lengths = lengths.sum(axis=1), starts.reshape(-1), lengths.reshape(-1)
    if layout.apart is not None:
        alone = np.flatnonzero(layout.apart[layout.text_prefix])
        starts = np.append(starts, layout.text_starts[alone])
        lengths = np.append(lengths, layout.text_lengths[alone])
        total = np.append(total, layout.text_lengths[alone])
    if total.any():
        own, total = ranges(starts, lengths), total[total > 0]
        rows = keys = torch.from_numpy(own).to(device)
        if learned:
            keys = torch.from_numpy(_after_learned(own, total, layout.num_rows, learned)).to(device)
        calls.append(AttentionCall(rows, keys, total, total + learned, causal=False))

    texts = np.flatnonzero(layout.seq2seq[layout.text_prefix] & (layout.text_lengths > 0))
    if len(texts):
        prefix = layout.text_prefix[texts]
        queries = layout.text_lengths[texts]
        starts = np.stack(
            [layout.region_starts[prefix], layout.context_starts[prefix], layout.text_starts[texts]], axis=1
        )
        lengths = np.stack([layout.num_regions[prefix], layout.num_context[prefix], queries], axis=1)
        query_rows = torch.from_numpy(ranges(layout.text_starts[texts], queries)).to(device)
        total, own = lengths.sum(axis=1), ranges(starts.reshape(-1), lengths.reshape(-1))
        key_rows = torch.from_numpy(_after_learned(own, total, layout.num_rows, learned)).to(device)
        calls.append(AttentionCall(query_rows, key_rows, queries, total + learned, causal=True))
    return AttentionPlan(layout.num_vision, layout.num_rows, tuple(calls), learned)


def _after_learned(rows: np.ndarray, lengths: np.ndarray, first: int, learned: int) -> np.ndarray:
    """Put the keys first .. first + P - 1 before those of each sequence: (keys,), (S,) -> (keys + S P,)."""
    return np.insert(rows, np.repeat(starts_of(lengths), learned), np.tile(first + np.arange(learned), len(lengths)))
