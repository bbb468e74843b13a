"""Decoding with the pretrained stack itself: greedy, sampling and beam search over a cached prefix.

The prefix does not depend on the text, so its keys and values are computed once per image and shared by all beams and
steps: beams are folded into the query axis, and nothing is copied per beam. Keys and values of the words are cached
behind them.

Letters: B images, K beams, P longest prefix, R cached rows of an image, Q new words, H heads, E head width,
V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dimvl.config import DecodingOptions
from dimvl.data.batch import Batch
from dimvl.data.layout import ranges
from dimvl.data.processor import Processor
from dimvl.errors import NotFinitePredictionError
from dimvl.model.model import DimvlModel


class NextWords(Protocol):
    """The model as a search sees it: log-probabilities of the next token for hypotheses that grow by one per step."""

    def start(self) -> Tensor:
        """Return (B, 1, V) for the empty text."""
        ...

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Extend hypotheses: (B, K) parents among the previous ones, (B, K) tokens -> (B, K, V)."""
        ...

    def keep(self, images: Tensor) -> None:
        """Keep only the images with these indices (B',), in this order."""
        ...


@dataclass(frozen=True)
class Hypothesis:
    """A finished text: token ids without [SEP], log-probability including [SEP], and the score used for ranking."""

    token_ids: tuple[int, ...]
    log_probability: float
    score: float


_NO_WORDS: list[tuple[int, ...]] = [()]
LEAVE_AT = 0.75
"""Finished images are dropped once at most this share is left: each drop copies the cache of the remaining ones."""
AllRanks = Callable[[bool], bool]
"""Logical AND over ranks, which must all take the same number of steps."""


def beam_search(
    model: NextWords, end: int, options: DecodingOptions, all_ranks: AllRanks = bool, wanted: int | None = None
) -> list[list[Hypothesis]]:
    """Search for the highest-scoring texts.

    An image is finished when no unfinished hypothesis can still enter its `wanted` highest-scoring finished ones.
    Finished images leave the batch, and the search ends when none is left.

    Args:
        model: returns log-probabilities.
        end: id of [SEP].
        options: see `DecodingOptions`.
        all_ranks: turns "every image here is finished" into "every image on every rank is finished".
        wanted: number of texts per image; by default all K, which takes more steps than only the best one.

    Returns:
        For each image at most `wanted` hypotheses, best first.

    Raises:
        NotFinitePredictionError: a log-probability is not a number.

    """
    wanted = options.beams if wanted is None else wanted
    log_probabilities = model.start().float()
    images, _, vocabulary = log_probabilities.shape
    scores = torch.zeros(images, 1, device=log_probabilities.device)
    finished: list[list[Hypothesis]] = [[] for _ in range(images)]
    live, texts = list(range(images)), [_NO_WORDS] * images  # images in the batch, and the hypotheses of each
    for length in range(1, options.max_tokens + 1):
        _block_ngrams(log_probabilities, texts, options.block_ngrams)
        totals = log_probabilities.add_(scores[..., None])
        for image, hypotheses, ended in zip(live, texts, totals[..., end].tolist(), strict=True):
            if any(map(math.isnan, ended)):
                raise NotFinitePredictionError
            _collect_finished(finished[image], hypotheses, ended, length, options)
        if length == options.max_tokens:
            break
        totals[..., end] = float("-inf")
        scores, chosen = totals.flatten(1).topk(min(options.beams, totals.shape[1] * vocabulary), dim=1)
        best = scores.amax(dim=1).tolist()
        unfinished = [
            n for n, i in enumerate(live) if not _cannot_improve(finished[i][:wanted], wanted, best[n], length, options)
        ]
        if all_ranks(not unfinished):
            break
        if len(unfinished) <= LEAVE_AT * len(live):
            kept = torch.tensor(unfinished, dtype=torch.long, device=scores.device)
            model.keep(kept)
            scores, chosen = scores[kept], chosen[kept]
            live, texts = [live[n] for n in unfinished], [texts[n] for n in unfinished]
        parents, tokens = chosen // vocabulary, chosen % vocabulary
        texts = [
            [(*hypotheses[parent], token) for parent, token in zip(*pair, strict=True)]
            for hypotheses, *pair in zip(texts, parents.tolist(), tokens.tolist(), strict=True)
        ]
        log_probabilities = model.advance(parents, tokens).float()
    return [hypotheses[:wanted] for hypotheses in finished]


def _block_ngrams(log_probabilities: Tensor, texts: Sequence[Sequence[tuple[int, ...]]], size: int) -> None:
    """Forbid, in place, the tokens that would repeat an n-gram of this size."""
    if size:
        for image, hypotheses in enumerate(texts):
            for beam, text in enumerate(hypotheses):
                log_probabilities[image, beam, list(_blocked(text, size))] = float("-inf")


def _blocked(text: tuple[int, ...], size: int) -> set[int]:
    """Return the tokens that would repeat an n-gram of the text."""
    start = text[len(text) - size + 1 :] if size > 1 else ()
    if len(text) < size - 1:
        return set()
    return {text[i + size - 1] for i in range(len(text) - size + 1) if text[i : i + size - 1] == start}


def _collect_finished(
    finished: list[Hypothesis],
    texts: Sequence[tuple[int, ...]],
    totals: Sequence[float],
    length: int,
    options: DecodingOptions,
) -> None:
    """Add every hypothesis of an image ended by [SEP], and keep the K highest-scoring."""
    for text, total in zip(texts, totals, strict=True):
        score = total / length**options.length_penalty
        if total > float("-inf") and (len(finished) < options.beams or score > finished[-1].score):
            finished.append(Hypothesis(text, total, score))
            finished.sort(key=lambda hypothesis: -hypothesis.score)
            del finished[options.beams :]


def _cannot_improve(
    finished: Sequence[Hypothesis], wanted: int, best: float, length: int, options: DecodingOptions
) -> bool:
    """Return whether no unfinished hypothesis can beat the worst finished one; log-probabilities only fall."""
    if best == float("-inf"):
        return True
    if len(finished) < wanted:
        return False
    lengths = (length + 1, options.max_tokens)
    return max(best / at**options.length_penalty for at in lengths) <= finished[-1].score


@dataclass(frozen=True)
class Sample:
    """A sampled text: token ids, including the final [SEP] unless it was cut off, and their log-probability."""

    token_ids: tuple[int, ...]
    log_probability: float


def sample(
    model: NextWords, end: int, draws: Tensor, all_ranks: AllRanks = bool, nucleus: float = 1.0
) -> list[list[Sample]]:
    """Sample texts word by word from the model's distribution over the tokens allowed in a text.

    A text ends with [SEP] or is cut off at L words. No token is forced, so the log-probability is that of what was
    sampled.

    Nucleus sampling (Holtzman et al., ICLR 2020) draws from the most probable tokens only, and log-probabilities are
    those of the distribution over these.

    Args:
        model: returns log-probabilities.
        end: id of [SEP].
        draws: (B, S, L) uniform numbers in [0, 1), one for each word of S texts of at most L words. Each number picks a
            word by inverting the cumulative distribution, so equal numbers give equal texts.
        all_ranks: as in `beam_search`.
        nucleus: each word is drawn from the fewest most probable tokens that have this probability together.

    Returns:
        The S texts of each image.

    """
    images, samples, longest = draws.shape
    parents = torch.zeros(images, samples, dtype=torch.long, device=draws.device)
    log_probabilities = model.start().float().expand(images, samples, -1)
    texts: list[list[list[int]]] = [[[] for _ in range(samples)] for _ in range(images)]
    totals = torch.zeros(images, samples, dtype=torch.float64, device=draws.device)
    ended = torch.zeros(images, samples, dtype=torch.bool, device=draws.device)
    for place in range(longest):
        log_probabilities = log_probabilities.log_softmax(dim=-1)
        if nucleus < 1:
            log_probabilities = _nucleus(log_probabilities, nucleus).log_softmax(dim=-1)
        cumulative = log_probabilities.double().exp().cumsum(dim=-1)
        wanted = draws[:, :, place, None].double() * cumulative[..., -1:]
        tokens = torch.searchsorted(cumulative, wanted, right=True).clamp(max=cumulative.shape[-1] - 1)
        gained = log_probabilities.gather(2, tokens)[..., 0]
        totals += gained.double().masked_fill(ended, 0.0)
        for image, row in enumerate(zip(tokens[..., 0].tolist(), ended.tolist(), strict=True)):
            for text, token, is_over in zip(texts[image], *row, strict=True):
                if not is_over:
                    text.append(token)
        ended |= tokens[..., 0] == end
        if all_ranks(bool(ended.all())) or place == longest - 1:
            break
        log_probabilities = model.advance(parents, tokens[..., 0]).float()
        parents = torch.arange(samples, device=draws.device).expand(images, -1)
    return [
        [Sample(tuple(text), total) for text, total in zip(*pair, strict=True)]
        for pair in zip(texts, totals.tolist(), strict=True)
    ]


def _nucleus(log_probabilities: Tensor, share: float) -> Tensor:
    """Leave the fewest most probable tokens that have this probability together; the others get -inf."""
    probabilities, order = log_probabilities.double().exp().sort(dim=-1, descending=True, stable=True)
    outside = probabilities.cumsum(dim=-1) - probabilities >= share  # those before it are enough
    return log_probabilities.masked_fill(outside.scatter(-1, order, outside), float("-inf"))


class CachedDecoder:
    """Next-word log-probabilities of a model, with keys and values of prefixes and words cached.

    Each layer caches keys and values per image: first those of the prefix, then those of the words of all hypotheses in
    the order in which they were fed. All hypotheses of an image attend to this cache in one call, each to the prefix
    and its own past words. So nothing is copied per beam, and nothing moves when beams change places.

    Special tokens other than [SEP] get -inf; words keep the model's log-probabilities.

    Args:
        model: a model with a word head.
        processor: tokenizer, text start and variant.
        prefixes: a batch of prefixes without texts; empty prefixes are allowed.

    """

    def __init__(self, model: DimvlModel, processor: Processor, prefixes: Batch) -> None:
        if model.word_head is None:
            raise ValueError("the model has no word head; it cannot caption")
        self.model, self.word_head, self.tokenizer = model, model.word_head, processor.tokenizer
        self.variant, self.text_start = processor.variant, processor.text_start
        self.device = prefixes.token_ids.device
        self._never = torch.tensor(self.tokenizer.unwritten_ids, device=self.device)
        self.length = 0  # cached words of each hypothesis
        index, mask = _padded_prefix(prefixes, self.device, model.encoder.learned)
        self._past = mask[:, None]  # (B, K, R) True where a hypothesis attends to a cached row
        plan, rows = model.plan(prefixes.layout, self.device), model.embed(prefixes)
        self._cache = [
            (_padded_rows(key, index), _padded_rows(value, index))
            for key, value in model.encoder.keys_and_values(rows, plan)
        ]  # per layer, keys and values, each (B, H, at least R, E)

    def start(self) -> Tensor:
        """Return (B, 1, V) for the empty text: feeds [CLS], or [MASK] in the masked variant."""
        first = self.tokenizer.cls if self.variant == "causal" else self.tokenizer.mask
        tokens = torch.full((len(self._past), 1, 1), first, device=self.device)
        return self._feed(tokens, self.text_start + (self.variant == "masked"), keep=int(self.variant == "causal"))

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Extend hypotheses: (B, K) parents, (B, K) tokens -> (B, K, V)."""
        self._past = self._past.gather(1, parents[..., None].expand(*parents.shape, self._past.shape[2]))
        fed = tokens[:, None]
        if self.variant == "masked":
            fed = torch.cat([fed, torch.full_like(fed, self.tokenizer.mask)], dim=1)
        return self._feed(fed, self.text_start + self.length + (self.variant == "masked"), keep=1)

    def keep(self, images: Tensor) -> None:
        """Keep only the images with these indices (B',)."""
        self._past = self._past[images]
        self._cache = [(key[images], value[images]) for key, value in self._cache]

    def _feed(self, tokens: Tensor, position: int, keep: int) -> Tensor:
        """Run (B, Q, K) new tokens from `position` on, cache the first `keep` of Q, and score what follows the last."""
        images, count, beams = tokens.shape
        positions = (position + torch.arange(count, device=self.device))[:, None].expand_as(tokens).flatten()
        flat = tokens.flatten()
        rows = self.model.tokens(flat, positions, torch.ones_like(flat))
        mask = _may_attend(self._past, count)[:, None]
        used, end = self._past.shape[2], mask.shape[3]
        if end > self._cache[0][0].shape[2]:
            room = end + end // 2  # enough for many steps, so that the cache is rarely copied
            self._cache = [(_with_room(key, room), _with_room(value, room)) for key, value in self._cache]
        unseen = torch.zeros(mask.shape, dtype=self._cache[0][0].dtype, device=self.device)
        unseen.masked_fill_(~mask, float("-inf"))  # once here instead of in each layer

        def step(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            heads = (images, count * beams, *query.shape[1:])  # (B, Q * K, H, E)
            for cached, new in zip(self._cache[layer], (key, value), strict=True):
                cached[:, :, used:end] = new.view(heads).transpose(1, 2)
            keys, values = (cached[:, :, :end] for cached in self._cache[layer])
            attended = F.scaled_dot_product_attention(query.view(heads).transpose(1, 2), keys, values, attn_mask=unseen)
            return attended.transpose(1, 2).reshape(query.shape)

        rows = self.model.encoder.run(rows, 0, step).unflatten(0, (images, count, beams))[:, -1]
        self.length += keep
        self._past = mask[:, 0, (count - 1) * beams :, : used + keep * beams]
        scores = self.word_head(rows.flatten(0, 1)).float().log_softmax(dim=-1)
        return scores.index_fill_(-1, self._never, float("-inf")).unflatten(0, (images, beams))


def _may_attend(past: Tensor, count: int) -> Tensor:
    """Extend the mask (B, K, R) of cached rows by Q new words of each hypothesis: (B, Q * K, R + Q * K).

    New word q of a hypothesis sees what the hypothesis saw before, and its own new words up to q.
    """
    images, beams, _ = past.shape
    new = torch.arange(count * beams, device=past.device)
    place, owner = new // beams, new % beams
    own = (owner[:, None] == owner) & (place[:, None] >= place)
    return torch.cat([past.repeat(1, count, 1), own.expand(images, -1, -1)], dim=2)


def _with_room(rows: Tensor, length: int) -> Tensor:
    """(B, H, R, E) -> (B, H, length, E); the new rows are uninitialised."""
    images, heads, before, width = rows.shape
    wider = rows.new_empty(images, heads, length, width)
    wider[:, :, :before] = rows
    return wider


def _padded_rows(rows: Tensor, index: Tensor) -> Tensor:
    """(N, H, E) rows, (B, P) index -> (B, H, P, E)."""
    if not len(rows):
        return rows.new_zeros(len(index), rows.shape[1], 0, rows.shape[2])
    return rows.index_select(0, index.flatten()).view(*index.shape, *rows.shape[1:]).transpose(1, 2).contiguous()


def _padded_prefix(prefixes: Batch, device: torch.device, learned: int) -> tuple[Tensor, Tensor]:
    """Return the row indices of each prefix, padded (B, P), and a mask (B, P) that is True at real rows.

    Learned keys and values, which follow those of all rows, come first in each prefix.
    """
    layout = prefixes.layout
    none = np.zeros_like(layout.num_regions)
    starts = np.stack([none + layout.num_rows, layout.region_starts, layout.context_starts], axis=1)
    lengths = np.stack([none + learned, layout.num_regions, layout.num_context], axis=1)
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
    all_ranks: AllRanks = bool,
    wanted: int | None = None,
) -> list[list[Hypothesis]]:
    """Caption a batch of prefixes: at most `wanted` (by default K) hypotheses per image, best first."""
    decoder = CachedDecoder(model, processor, prefixes)
    return beam_search(decoder, processor.tokenizer.sep, options, all_ranks, wanted)
