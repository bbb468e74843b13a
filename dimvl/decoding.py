"""Decoding with the same stack that was pretrained: greedy, sampling and beam search over a cached prefix.

The prefix does not depend on the text, so its keys and values are computed once per image and shared by all beams and
steps (folded into the query axis, never copied per beam). Text keys and values are cached per beam.

Letters: B images, K beams, P longest prefix, T text rows so far, Q new rows, H heads, E head width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dimvl.data.batch import Batch, ranges
from dimvl.data.processor import Processor
from dimvl.model.attention import attend
from dimvl.model.model import DimvlModel
from dimvl.model.plan import plan_attention


class NextWords(Protocol):
    """What a search asks: log-probabilities of the next token, for hypotheses that grow by one token a step."""

    def start(self) -> Tensor:
        """(B, 1, V) for the empty text."""
        ...

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Grow hypotheses: (B, K) parents among those before, (B, K) tokens -> (B, K, V)."""
        ...


@dataclass(frozen=True)
class DecodingOptions:
    """How to decode.

    Attributes:
        beams: K; 1 is greedy.
        max_tokens: longest text, final [SEP] included; at the last place only [SEP] may come.
        length_penalty: hypotheses are compared by log-probability / length ** penalty, [SEP] counted.
        block_ngrams: no n-gram of this many tokens comes twice; 0 for no blocking.

    """

    beams: int = 3
    max_tokens: int = 40
    length_penalty: float = 1.0
    block_ngrams: int = 0


@dataclass(frozen=True)
class Hypothesis:
    """A finished text: token ids without [SEP], log-probability with it, and the score it was chosen by."""

    token_ids: tuple[int, ...]
    log_probability: float
    score: float


Everywhere = Callable[[bool], bool]
"""Turns "all done here" into "all done on every rank", where ranks must take equally many steps."""


def beam_search(
    model: NextWords, end: int, options: DecodingOptions, everywhere: Everywhere = bool
) -> list[list[Hypothesis]]:
    """Search for the best texts.

    An image is done when no unfinished hypothesis can still beat the worst of its K finished ones; the batch stops
    early when all are.

    Args:
        model: gives log-probabilities.
        end: id of [SEP].
        options: how.
        everywhere: the batch stops when this says so of it.

    Returns:
        For each image at most K hypotheses, best first.

    """
    log_probabilities = model.start().float()
    images, _, vocabulary = log_probabilities.shape
    beams = options.beams
    texts: list[list[tuple[int, ...]]] = [[()] for _ in range(images)]
    scores = torch.zeros(images, 1, device=log_probabilities.device)
    finished: list[list[Hypothesis]] = [[] for _ in range(images)]
    done = [False] * images
    for length in range(1, options.max_tokens + 1):
        _forbid(log_probabilities, texts, end, length, options)
        total = scores[..., None] + log_probabilities
        _collect_finished(finished, total[..., end].tolist(), texts, length, options)
        total[..., end] = float("-inf")
        width = min(beams, total.shape[1] * vocabulary)
        scores, chosen = total.flatten(1).topk(width, dim=1)
        parents, tokens = chosen // vocabulary, chosen % vocabulary
        best = scores.max(dim=1).values.tolist()
        for image in range(images):
            done[image] = done[image] or _cannot_improve(finished[image], best[image], length, options)
        if everywhere(all(done)) or length == options.max_tokens:
            break
        texts = [
            [(*texts[image][parent], token) for parent, token in zip(*pair, strict=True)]
            for image, pair in enumerate(zip(parents.tolist(), tokens.tolist(), strict=True))
        ]
        log_probabilities = model.advance(parents, tokens).float()
    return finished


def _forbid(
    log_probabilities: Tensor,
    texts: Sequence[Sequence[tuple[int, ...]]],
    end: int,
    length: int,
    options: DecodingOptions,
) -> None:
    """Allow only [SEP] at the last place, and no blocked n-gram before it."""
    if length == options.max_tokens:
        last = log_probabilities[..., end].clone()
        log_probabilities.fill_(float("-inf"))
        log_probabilities[..., end] = last
    elif options.block_ngrams:
        for image, hypotheses in enumerate(texts):
            for beam, text in enumerate(hypotheses):
                log_probabilities[image, beam, list(_blocked(text, options.block_ngrams))] = float("-inf")


def _blocked(text: tuple[int, ...], size: int) -> set[int]:
    """Tokens that would complete an n-gram that the text already has."""
    start = text[len(text) - size + 1 :] if size > 1 else ()
    if len(text) < size - 1:
        return set()
    return {text[i + size - 1] for i in range(len(text) - size + 1) if text[i : i + size - 1] == start}


def _collect_finished(
    finished: list[list[Hypothesis]],
    totals: list[list[float]],
    texts: Sequence[Sequence[tuple[int, ...]]],
    length: int,
    options: DecodingOptions,
) -> None:
    """Add every hypothesis ended by [SEP] now and keep the best K of each image."""
    for image, hypotheses in enumerate(texts):
        for text, total in zip(hypotheses, totals[image], strict=True):
            if total > float("-inf"):
                finished[image].append(Hypothesis(text, total, total / length**options.length_penalty))
        finished[image].sort(key=lambda hypothesis: -hypothesis.score)
        del finished[image][options.beams :]


def _cannot_improve(finished: Sequence[Hypothesis], best: float, length: int, options: DecodingOptions) -> bool:
    """Tell whether no unfinished hypothesis can reach the worst finished one: log-probabilities only fall."""
    if best == float("-inf"):
        return True
    if len(finished) < options.beams:
        return False
    lengths = (length + 1, options.max_tokens)
    return max(best / at**options.length_penalty for at in lengths) <= finished[-1].score


@dataclass(frozen=True)
class Sample:
    """A text as drawn: token ids, the final [SEP] too if it came in time, and their log-probability."""

    token_ids: tuple[int, ...]
    log_probability: float


def sample(model: NextWords, end: int, draws: Tensor, everywhere: Everywhere = bool) -> list[list[Sample]]:
    """Draw texts word by word from the model's own distribution.

    A text ends with [SEP] or is cut off where its numbers end; nothing is forced, so that its log-probability is that
    of what was drawn.

    Args:
        model: gives log-probabilities.
        end: id of [SEP].
        draws: (B, S, L) uniform numbers in [0, 1), one for each word of S texts of at most L words; a number chooses
            the word in whose part of the cumulated distribution it lies, so equal numbers give equal texts.
        everywhere: the batch stops when this says so of it.

    Returns:
        For each image its S texts.

    """
    images, samples, longest = draws.shape
    parents = torch.zeros(images, samples, dtype=torch.long, device=draws.device)
    log_probabilities = model.start().float().expand(images, samples, -1)
    texts: list[list[list[int]]] = [[[] for _ in range(samples)] for _ in range(images)]
    totals = torch.zeros(images, samples, dtype=torch.float64, device=draws.device)
    ended = torch.zeros(images, samples, dtype=torch.bool, device=draws.device)
    for place in range(longest):
        cumulated = log_probabilities.double().exp().cumsum(dim=-1)
        wanted = draws[:, :, place, None].double() * cumulated[..., -1:]
        tokens = torch.searchsorted(cumulated, wanted, right=True).clamp(max=cumulated.shape[-1] - 1)
        gained = log_probabilities.gather(2, tokens)[..., 0]
        totals += gained.double().masked_fill(ended, 0.0)
        for image, row in enumerate(zip(tokens[..., 0].tolist(), ended.tolist(), strict=True)):
            for text, token, is_over in zip(texts[image], *row, strict=True):
                if not is_over:
                    text.append(token)
        ended |= tokens[..., 0] == end
        if everywhere(bool(ended.all())) or place == longest - 1:
            break
        log_probabilities = model.advance(parents, tokens[..., 0]).float()
        parents = torch.arange(samples, device=draws.device).expand(images, -1)
    return [
        [Sample(tuple(text), total) for text, total in zip(*pair, strict=True)]
        for pair in zip(texts, totals.tolist(), strict=True)
    ]


class CachedDecoder:
    """Next-word log-probabilities of a model, with the prefix computed once and text keys and values cached.

    Special tokens other than [SEP] get -inf; the words keep what the model gives them.

    Args:
        model: with a word head.
        processor: tokenizer, text start and variant.
        prefixes: a batch of prefixes without texts; empty ones are legal.

    """

    def __init__(self, model: DimvlModel, processor: Processor, prefixes: Batch) -> None:
        if model.word_head is None:
            raise ValueError("the model has no word head; it cannot caption")
        self.model, self.tokenizer = model, processor.tokenizer
        self.variant, self.text_start = processor.variant, processor.text_start
        self.images = len(prefixes.layout.num_regions)
        self.device = prefixes.token_ids.device
        never = sorted(self.tokenizer.special_ids - {self.tokenizer.sep})  # no text has them
        self._never = torch.tensor(never, device=self.device)
        self.length = 0  # text rows in the cache
        self._index, self._mask = _padded_prefix(prefixes, self.device)
        self._prefix: list[tuple[Tensor, Tensor]] = []  # per layer, each (B, P, H, E)
        self._text: list[tuple[Tensor, Tensor]] = []  # per layer, each (B, K, T, H, E)
        self._compute_prefix(prefixes)

    def _compute_prefix(self, prefixes: Batch) -> None:
        plan = plan_attention(prefixes.layout, self.device)

        def record(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self._prefix.append((self._pad(key), self._pad(value)))
            return attend(plan, query, key, value, self.model.encoder.backend)

        rows = self.model.embed(prefixes)
        self.model.encoder.run(rows, plan.num_vision, record)

    def _pad(self, rows: Tensor) -> Tensor:
        if not len(rows):
            return rows.new_zeros(*self._index.shape, *rows.shape[1:])
        return rows.index_select(0, self._index.flatten()).view(*self._index.shape, *rows.shape[1:])

    def start(self) -> Tensor:
        """(B, 1, V) for the empty text: feeds [CLS], or [MASK] in the masked variant."""
        first = self.tokenizer.cls if self.variant == "causal" else self.tokenizer.mask
        tokens = torch.full((self.images, 1, 1), first, device=self.device)
        return self._feed(tokens, self.text_start + (self.variant == "masked"), keep=int(self.variant == "causal"))

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Grow hypotheses: (B, K), (B, K) -> (B, K, V)."""
        if self._text:
            index = torch.arange(self.images, device=self.device)[:, None]
            self._text = [(key[index, parents], value[index, parents]) for key, value in self._text]
        position = self.text_start + self.length + (self.variant == "masked")
        fed = tokens[..., None]
        if self.variant == "masked":
            fed = torch.cat([fed, torch.full_like(fed, self.tokenizer.mask)], dim=-1)
        return self._feed(fed, position, keep=1)

    def _feed(self, tokens: Tensor, position: int, keep: int) -> Tensor:
        """Run (B, K, Q) new tokens from `position` on; the first `keep` stay in the cache; scores the last one."""
        images, beams, count = tokens.shape
        positions = (position + torch.arange(count, device=self.device)).expand_as(tokens).reshape(-1)
        flat = tokens.reshape(-1)
        rows = self.model.tokens(flat, positions, torch.ones_like(flat))
        cache: list[tuple[Tensor, Tensor]] = []

        def step(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (part.view(images, beams, count, *part.shape[1:]) for part in (query, key, value))
            if self._text:
                past_key, past_value = self._text[layer]
                key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
            cache.append((key[:, :, : self.length + keep], value[:, :, : self.length + keep]))
            return _attend_cached(query, self._prefix[layer], self._mask, key, value)

        rows = self.model.encoder.run(rows, 0, step)
        rows = rows.view(images, beams, count, rows.shape[1])[:, :, -1]
        self.length += keep
        self._text = cache if self.length else []
        assert self.model.word_head is not None
        logits = self.model.word_head(rows.flatten(0, 1))
        scores = logits.float().log_softmax(dim=-1).index_fill(-1, self._never, float("-inf"))
        return scores.view(images, beams, scores.shape[1])


def _attend_cached(query: Tensor, prefix: tuple[Tensor, Tensor], mask: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One softmax over the shared prefix and a beam's own text.

    Args:
        query: (B, K, Q, H, E)
        prefix: keys and values, (B, P, H, E)
        mask: (B, P) bool, True where the prefix has a row.
        key: (B, K, T + Q, H, E)
        value: (B, K, T + Q, H, E)

    Returns:
        (B * K * Q, H, E)

    """
    new, past = query.shape[2], key.shape[2] - query.shape[2]
    query = query / query.shape[-1] ** 0.5
    to_prefix = torch.einsum("bkqhe,bphe->bkqhp", query, prefix[0])
    to_prefix = to_prefix.masked_fill(~mask[:, None, None, None], float("-inf"))
    to_text = torch.einsum("bkqhe,bkthe->bkqht", query, key)
    future = torch.ones(new, past + new, dtype=torch.bool, device=query.device).triu(past + 1)
    to_text = to_text.masked_fill(future[:, None], float("-inf"))
    weights = torch.cat([to_prefix, to_text], dim=-1).softmax(dim=-1)
    on_prefix, on_text = weights.split([to_prefix.shape[-1], to_text.shape[-1]], dim=-1)
    attended = torch.einsum("bkqhp,bphe->bkqhe", on_prefix, prefix[1]) + torch.einsum(
        "bkqht,bkthe->bkqhe", on_text, value
    )
    return attended.flatten(0, 2)


def _padded_prefix(prefixes: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of each prefix side by side: index (B, P), True where there is a row (B, P)."""
    layout = prefixes.layout
    starts = np.stack([layout.region_starts, layout.context_starts], axis=1)
    lengths = np.stack([layout.num_regions, layout.num_context], axis=1)
    total = lengths.sum(axis=1)
    mask = np.arange(total.max(initial=0))[None] < total[:, None]
    index = np.zeros(mask.shape, dtype=np.int64)
    index[mask] = ranges(starts.reshape(-1), lengths.reshape(-1))
    return torch.from_numpy(index).to(device), torch.from_numpy(mask).to(device)


@torch.inference_mode()
def caption_prefixes(
    model: DimvlModel,
    processor: Processor,
    prefixes: Batch,
    options: DecodingOptions,
    everywhere: Everywhere = bool,
) -> list[list[Hypothesis]]:
    """Caption a batch of prefixes: for each image at most K hypotheses, best first."""
    decoder = CachedDecoder(model, processor, prefixes)
    return beam_search(decoder, processor.tokenizer.sep, options, everywhere)
