"""What `benchmarks/decode.py` compares with dimvl's own decoder, behind the same beam search.

Letters: B images, K beams, M = B * K rows of a step, P prefix rows, T words so far, D width, V vocabulary.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sizes import ModelSize
from dimvl.data.batch import Batch
from dimvl.data.examples import BatchShape, Example, Prefix, Text, collate
from dimvl.model.attention import attend
from dimvl.model.model import DimvlModel
from dimvl.model.plan import plan_attention

TOKENIZER = SimpleNamespace(cls=101, sep=102, mask=103, unwritten_ids=[0, 100, 101, 103])


@dataclass(frozen=True, kw_only=True)
class Sizes(ModelSize):
    """What is measured; tokens as in BERT's vocabulary."""

    vocabulary: int = 30522
    context: int = 16
    steps: int = 16
    beams: int = 5
    batches: tuple[int, ...] = (1, 8, 64)
    checked: int = 8

    @property
    def processor(self) -> Any:
        """What a decoder asks of a processor."""
        return SimpleNamespace(tokenizer=TOKENIZER, variant="causal", text_start=self.context)


class HiddenStateCache:
    """VLP's cache: the rows that go into each layer, copied for each beam; prefixes are equally long here."""

    def __init__(self, model: DimvlModel, layers: "list[Projections]", sizes: Sizes, prefixes: Batch) -> None:
        self.model, self.layers, self.sizes = model, layers, sizes
        plan = plan_attention(prefixes.layout, prefixes.token_ids.device)
        self.images, self.length = len(prefixes.layout.num_regions), 0
        self.going = torch.arange(self.images, device=prefixes.token_ids.device)
        self.history: list[Tensor] = []  # of each layer (B * K, P + T, D)
        rows = model.embed(prefixes)
        for layer in model.encoder.layers:
            vision, context = rows[: plan.num_vision], rows[plan.num_vision :]
            self.history.append(torch.cat([part.unflatten(0, (self.images, -1)) for part in (vision, context)], dim=1))
            query, key, value = layer.project(rows, plan.num_vision)
            rows = layer.finish(rows, attend(plan, query, key, value).flatten(1), plan.num_vision)

    def start(self) -> Tensor:
        """(B, 1, V) for the empty text."""
        return self._feed(torch.full((self.images, 1), TOKENIZER.cls, device=self.history[0].device))

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Copy the whole history of each hypothesis' parent: (B, K), (B, K) -> (B, K, V)."""
        before = len(self.history[0]) // self.images
        every = torch.zeros(2, self.images, parents.shape[1], dtype=torch.long, device=parents.device)
        every[:, self.going] = torch.stack([parents, tokens])
        first = before * torch.arange(self.images, device=parents.device)[:, None]
        self.history = [rows.index_select(0, (every[0] + first).flatten()) for rows in self.history]
        return self._feed(every[1])[self.going]

    def keep(self, images: Tensor) -> None:
        """Tell of these images only; all take all steps nevertheless."""
        self.going = self.going[images]

    def _feed(self, tokens: Tensor) -> Tensor:
        """(B, K) new tokens -> (B, K, V)."""
        flat = tokens.flatten()
        positions = torch.full_like(flat, self.sizes.context + self.length)
        rows = self.model.tokens(flat, positions, torch.ones_like(flat))
        for index, (layer, projections) in enumerate(zip(self.model.encoder.layers, self.layers, strict=True)):
            self.history[index] = torch.cat([self.history[index], rows[:, None]], dim=1)
            attended = projections.attend(rows, self.history[index], self.sizes.regions)
            rows = layer.finish(rows, attended, 0)
        self.length += 1
        scores = self.model.word_head(rows).log_softmax(dim=-1)
        scores[:, TOKENIZER.unwritten_ids] = float("-inf")
        return scores.unflatten(0, tokens.shape)


class Projections(nn.Module):
    """The projections of a block by themselves, as VLP's policy calls them."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.heads, width, qkv = block.heads, block.heads * block.head_width, block.qkv
        self.query = _rows_of(qkv.language, slice(0, width))
        self.language = _rows_of(qkv.language, slice(width, None))
        self.vision = _rows_of(qkv.vision or qkv.language, slice(width, None))

    def attend(self, rows: Tensor, history: Tensor, regions: int) -> Tensor:
        """New rows (M, D) over keys and values made anew of (M, P + T, D)."""
        pairs = torch.cat([self.vision(history[:, :regions]), self.language(history[:, regions:])], dim=1)
        key, value = pairs.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.query(rows)[:, None].unflatten(2, (self.heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, value).flatten(1)


def _rows_of(linear: nn.Linear, chosen: slice) -> nn.Linear:
    part = nn.Linear(linear.in_features, len(linear.weight[chosen]))
    part.weight, part.bias = nn.Parameter(linear.weight[chosen].detach()), nn.Parameter(linear.bias[chosen].detach())
    return part


class WithoutCache:
    """The reference: all that was fed so far goes through the model again in every step."""

    def __init__(self, model: DimvlModel, sizes: Sizes, prefixes: list[Prefix]) -> None:
        self.model, self.sizes, self.prefixes = model, sizes, prefixes

    def start(self) -> Tensor:
        """(B, 1, V) for the empty text."""
        self.texts = [[[TOKENIZER.cls]] for _ in self.prefixes]
        return self._scores()

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Grow hypotheses: (B, K), (B, K) -> (B, K, V)."""
        self.texts = [
            [[*texts[parent], token] for parent, token in zip(*pair, strict=True)]
            for texts, *pair in zip(self.texts, parents.tolist(), tokens.tolist(), strict=True)
        ]
        return self._scores()

    def keep(self, images: Tensor) -> None:
        """Go on with these images only."""
        chosen = images.tolist()
        self.texts, self.prefixes = [self.texts[n] for n in chosen], [self.prefixes[n] for n in chosen]

    def _scores(self) -> Tensor:
        batch = lay_out(self.sizes, self.prefixes, self.texts).to(next(self.model.parameters()).device)
        last = batch.layout.text_starts + batch.layout.text_lengths - 1
        scores = self.model.word_head(self.model(batch)[last]).log_softmax(dim=-1)
        scores[:, TOKENIZER.unwritten_ids] = float("-inf")
        return scores.unflatten(0, (len(self.texts), -1))


def lay_out(sizes: Sizes, prefixes: list[Prefix], texts: list[list[list[int]]] | None = None) -> Batch:
    """Make a batch of prefixes, with the words fed so far of each one's texts."""
    nothing = np.zeros(0, dtype=np.int64)
    given = texts or [[] for _ in prefixes]
    examples = [
        Example(
            source="",
            objective="",
            prefix=prefix,
            texts=[Text(token_ids=np.array(ids), places=nothing, labels=nothing, has_start=True) for ids in own],
            seq2seq=True,
        )
        for prefix, own in zip(prefixes, given, strict=True)
    ]
    return collate(examples, BatchShape(objectives={}, text_start=sizes.context, feature_width=sizes.feature_width))


def make_blip(sizes: Sizes) -> Any:
    """Draw BLIP's text decoder; its attention has one implementation, its best one."""
    from dimvl.regions.detectors.torchvision_ops import import_torchvision

    import_torchvision()  # transformers imports it
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    config = BlipTextConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        encoder_hidden_size=sizes.width,
        intermediate_size=sizes.inner_width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=512,
        is_decoder=True,
        bos_token_id=TOKENIZER.cls,
        eos_token_id=TOKENIZER.sep,
        sep_token_id=TOKENIZER.sep,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return BlipTextLMHeadModel(config).eval()
