"""The stacked Transformer with modality-decoupled sublayers.

Modality-decoupled attention follows DiMBERT (Liu et al., ACM TKDD 16(1), 2021): separate Q, K, V projections for visual
regions and for text, one joint softmax. The paper does not say which other sublayers are shared; here `split` does:

    []                              the shared single stream of VLP and UNITER
    [qkv]                           DiMBERT, the default
    [qkv, out, norm, ffn]           separate weights everywhere, as in multiway and mixture-of-transformers models

The block is post-norm, as in BERT. Attention has no dropout.

Letters: N rows, Nv visual rows (they come first), D width, H heads, E = D / H, I inner width, P learned keys.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dimvl.cpu.linear import Linear
from dimvl.model.attention import attend
from dimvl.model.norm import LayerNorm, as_autocast
from dimvl.model.plan import AttentionPlan

SPLITS = ("qkv", "out", "norm", "ffn")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""The attention function of a layer: layer, q, k, v, each (N, H, E), -> (N, H, E)."""


class PerModality(nn.Module):
    """A row-wise module: either one for all rows, or one for language rows and a copy of it for visual rows.

    The language module is initialised or loaded first and then copied, so every split starts as the same function.
    """

    def __init__(self, language: nn.Module, split: bool) -> None:
        super().__init__()
        self.language = language
        self.vision = copy.deepcopy(language) if split else None

    def forward(self, rows: Tensor, num_vision: int) -> Tensor:
        """(N, D) -> (N, any), the first `num_vision` rows through the visual weights."""
        if self.vision is None:
            return self.language(rows)
        counts = [num_vision, rows.shape[0] - num_vision]  # `len` would fix the number of rows of a program
        vision, language = rows.split(counts)  # one gradient; slices would have two
        return torch.cat([self.vision(vision), self.language(language)])


class FeedForward(nn.Module):
    """Two linear layers with an activation in between: (N, D) -> (N, D)."""

    def __init__(self, width: int, inner_width: int, activation: str) -> None:
        super().__init__()
        self.inner = Linear(width, inner_width)
        self.outer = Linear(inner_width, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, rows: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return self.outer(self.activation(self.inner(rows)))


class Block(nn.Module):
    """One layer: h = LN(h + Wo a), h = LN(h + FFN(h)); the sublayers named in `split` have weights per modality."""

    def __init__(
        self,
        width: int,
        heads: int,
        inner_width: int,
        split: Collection[str],
        dropout: float,
        activation: str,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.qkv = PerModality(Linear(width, 3 * width), "qkv" in split)
        self.out = PerModality(Linear(width, width), "out" in split)
        self.attention_norm = PerModality(LayerNorm(width, norm_eps), "norm" in split)
        self.ffn = PerModality(FeedForward(width, inner_width, activation), "ffn" in split)
        self.ffn_norm = PerModality(LayerNorm(width, norm_eps), "norm" in split)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor, num_vision: int, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """(N, D) -> (N, D); `attend` maps q, k, v (N, H, E) to (N, H, E)."""
        return self.finish(rows, attend(*self.project(rows, num_vision)).flatten(1), num_vision)

    def project(self, rows: Tensor, num_vision: int) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) -> q, k, v, each (N, H, E)."""
        query, key, value = self.qkv(rows, num_vision).unflatten(1, (3, self.heads, self.head_width)).unbind(dim=1)
        return query, key, value

    def finish(self, rows: Tensor, attended: Tensor, num_vision: int) -> Tensor:
        """(N, D), (N, D) -> (N, D): everything after attention, row by row."""
        rows = self.attention_norm(rows + self.dropout(self.out(attended, num_vision)), num_vision)
        return self.ffn_norm(rows + self.dropout(self.ffn(rows, num_vision)), num_vision)


class LearnedKeys(nn.Module):
    """Keys and values of each layer that every row attends to; `dimvl/adapters/prefix.py` has one.

    Its `forward` returns (layers, 2, P, H, E).
    """

    length: int
    """P"""


class Encoder(nn.Module):
    """A stack of blocks over any embedded rows, such as regions and words.

    Attributes:
        prefix: keys and values besides those of the rows; None for a model without such an adapter.

    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        inner_width: int,
        split: Collection[str],
        dropout: float,
        activation: str,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.heads, self.width, self.activation = heads, width, activation
        self.prefix: LearnedKeys | None = None
        self.checkpoint_activations = False  # whether to keep only the rows between blocks for the backward pass
        self.layers = nn.ModuleList(
            Block(width, heads, inner_width, split, dropout, activation, norm_eps) for _ in range(layers)
        )

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile everything after attention in each block; attention itself already calls a library kernel.

        Numbers of rows are dynamic, so one compilation serves all ragged batches without padding; weights keep their
        names. Zero rows or one row of a modality trigger one more compilation when they first occur. Run uncompiled,
        their gradients would arrive in another order than on other ranks.
        """
        for layer in self.layers:
            assert isinstance(layer, Block)
            layer.finish = torch.compile(layer.finish, dynamic=True, backend=backend)  # type: ignore[method-assign]

    @property
    def learned(self) -> int:
        """P, the learned keys of each layer; 0 without a prefix."""
        return 0 if self.prefix is None else self.prefix.length

    def forward(self, rows: Tensor, plan: AttentionPlan) -> Tensor:
        """(N, D), visual rows first -> (N, D)."""
        return self.attending(rows, plan.num_vision, partial(attend, plan))

    def attending(self, rows: Tensor, num_vision: int, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """As `forward`, with another attention function: q (N, H, E), twice (N + P, H, E) -> (N, H, E)."""
        learned = None if self.prefix is None else self.prefix()
        return self.run(rows, num_vision, lambda at, q, k, v: attend(q, *_joined(k, v, learned, at)))

    def keys_and_values(self, rows: Tensor, plan: AttentionPlan) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield keys and values (N + P, H, E) of each layer, for rows that are attended to but not predicted from."""
        last, rows = self.layers[-1] if len(self.layers) else None, as_autocast(rows)
        learned = None if self.prefix is None else self.prefix()
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Block)
            query, key, value = layer.project(rows, plan.num_vision)
            key, value = _joined(key, value, learned, index)
            yield key, value
            if layer is not last:  # the outputs of the last layer are not needed
                attended = attend(plan, query, key, value)
                rows = layer.finish(rows, attended.flatten(1), plan.num_vision)

    def run(self, rows: Tensor, num_vision: int, attend: Attend) -> Tensor:
        """Run the stack with the caller's attention function; decoding attends to its cache this way."""
        recompute, rows = self.checkpoint_activations and torch.is_grad_enabled(), as_autocast(rows)
        for index, layer in enumerate(self.layers):
            arguments = (rows, num_vision, lambda q, k, v, index=index: attend(index, q, k, v))
            rows = checkpoint(layer, *arguments, use_reentrant=False) if recompute else layer(*arguments)
        return rows


def _joined(key: Tensor, value: Tensor, learned: Tensor | None, layer: int) -> tuple[Tensor, Tensor]:
    """Append the learned keys and values of a layer (layers, 2, P, H, E): (N, H, E) -> (N + P, H, E)."""
    if learned is None:
        return key, value
    own_keys, own_values = learned[layer].to(key.dtype)
    return torch.cat([key, own_keys]), torch.cat([value, own_values])
