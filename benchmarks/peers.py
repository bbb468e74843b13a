"""Other ways to train the same work, each at its best: what dimvl is compared with.

Written here, over the weights of a `DimvlModel`, so that their loss can be compared with its own:

- `PaddedStream`: one padded stream, either with shared projections (VLP, UNITER), all in one product and with
  embeddings and word head on real rows only, or naively decoupled: every row is projected with both sets of weights.
- `Uniter`: UNITER as published (Chen et al., ECCV 2020): padded embeddings gathered to sequences without gaps, three
  projections, an additive mask, its own GELU, word head at the masked positions.

`VisualBert` is that of transformers as installed; it attends eagerly only and computes logits at every position. Every
model maps a `PaddedBatch` to the mean loss of the words to predict, without dropout.

Letters: B samples, L rows of the longest, N = B x L, D width, H heads, E head width.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data import VOCABULARY, ModelSize
from benchmarks.samples import PaddedBatch
from dimvl.model.encoder import Block
from dimvl.model.model import DimvlModel
from dimvl.regions.detectors.torchvision_ops import import_torchvision

Core = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with torch's kernel: (B, H, L, E), mask (B, 1, 1, L) added to the scores."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=None if mask is None else mask.to(query.dtype))


def eager(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with two products and a softmax."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + mask.to(query.dtype)
    return scores.softmax(dim=-1).to(value.dtype) @ value


CORES: dict[str, Core] = {"sdpa": sdpa, "eager": eager}


class PaddedLayer(nn.Module):
    """A block of dimvl on padded rows; a block with a split projects all rows with both sets of weights."""

    def __init__(self, block: Block, core: Core) -> None:
        super().__init__()
        self.block, self.core = block, core

    def forward(self, rows: Tensor, samples: int, mask: Tensor | None, vision: Tensor) -> Tensor:
        """(N, D), B, (B, 1, 1, L), (N, 1) -> (N, D)."""
        block = self.block
        projected = block.qkv.language(rows)
        if block.qkv.vision is not None:
            projected = torch.where(vision, block.qkv.vision(rows), projected)
        parts = projected.view(samples, -1, 3, block.heads, block.head_width).permute(2, 0, 3, 1, 4)
        attended = self.core(*parts.unbind(), mask).transpose(1, 2).reshape(rows.shape)
        rows = block.attention_norm.language(rows + block.out.language(attended))
        return block.ffn_norm.language(rows + block.ffn.language(rows))


class PaddedStream(nn.Module):
    """Embeddings on real rows, padded blocks, word head at the masked positions; dimvl's own products."""

    def __init__(self, model: DimvlModel, core: Core) -> None:
        super().__init__()
        self.model = model
        self.layers = nn.ModuleList(PaddedLayer(block, core) for block in model.encoder.layers)

    def forward(self, batch: PaddedBatch) -> Tensor:
        """Mean loss."""
        rows = self.model.embed(batch.ragged).index_select(0, batch.order.flatten())
        for layer in self.layers:
            rows = layer(rows, len(batch.order), batch.bias, batch.vision)
        return F.cross_entropy(self.model.word_head(rows[batch.places]).float(), batch.words)


class UniterLayer(nn.Module):
    """BERT's layer as of 2019: three projections, GELU written out."""

    def __init__(self, block: Block, core: Core) -> None:
        super().__init__()
        width = block.heads * block.head_width
        self.heads, self.core = block.heads, core
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        for name, weights in block.qkv.language.named_parameters():
            for part, values in zip((self.query, self.key, self.value), weights.chunk(3), strict=True):
                getattr(part, name).data.copy_(values)
        self.out, self.attention_norm = block.out.language, block.attention_norm.language
        self.inner, self.outer = block.ffn.language.inner, block.ffn.language.outer
        self.ffn_norm = block.ffn_norm.language

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D), (B, 1, 1, L) -> (B, L, D)."""
        parts = (
            part(rows).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        attended = self.core(*parts, mask).transpose(1, 2).flatten(2)
        rows = self.attention_norm(self.out(attended) + rows)
        inner = self.inner(rows)
        inner = inner * 0.5 * (1.0 + torch.erf(inner / math.sqrt(2.0)))
        return self.ffn_norm(self.outer(inner) + rows)


class Uniter(nn.Module):
    """UNITER's masked language model with the weights of a shared `DimvlModel` and torch's own products."""

    def __init__(self, model: DimvlModel, core: Core) -> None:
        super().__init__()
        self.model = model
        self.layers = nn.ModuleList(UniterLayer(block, core) for block in model.encoder.layers)

    def forward(self, batch: PaddedBatch) -> Tensor:
        """Mean loss."""
        image, text = self.model.regions, self.model.tokens
        regions = image.feature_norm(image.feature(batch.features))
        regions = image.norm(regions + image.geometry_norm(image.geometry(batch.geometry)) + image.segment)
        segments = torch.ones_like(batch.token_ids)
        tokens = text.norm(text.word(batch.token_ids) + text.position(batch.positions) + text.segment(segments))
        rows = torch.cat([regions, tokens], dim=1)
        rows = rows.gather(1, batch.gather[..., None].expand(-1, -1, rows.shape[2]))
        mask = rows.new_zeros(len(rows), 1, 1, rows.shape[1]) if batch.bias is None else batch.bias
        for layer in self.layers:
            rows = layer(rows, mask)
        logits = self.model.word_head(rows.flatten(0, 1)[batch.places])
        return F.cross_entropy(logits.float(), batch.words)


class VisualBert(nn.Module):
    """transformers' VisualBertForPreTraining, which takes tokens and regions, each padded to their longest."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        import_torchvision()  # the models of transformers import it where it is installed
        import transformers

        arguments = {"vocab_size": VOCABULARY, "visual_embedding_dim": size.feature_width, "hidden_size": size.width}
        arguments |= {"num_hidden_layers": size.layers, "num_attention_heads": size.heads}
        arguments |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
        config = transformers.VisualBertConfig(**arguments, intermediate_size=4 * size.width)
        self.model = transformers.VisualBertForPreTraining(config)

    def output(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """Mean loss and logits (B, T + R, V)."""
        found = self.model(
            input_ids=batch.token_ids,
            attention_mask=batch.token_mask.long(),
            visual_embeds=batch.features,
            visual_attention_mask=batch.region_mask.long(),
            visual_token_type_ids=batch.region_mask.long(),
            labels=F.pad(batch.labels, (0, batch.features.shape[1]), value=-100),
        )
        return found.loss, found.prediction_logits

    def forward(self, batch: PaddedBatch) -> Tensor:
        """Mean loss."""
        return self.output(batch)[0]
