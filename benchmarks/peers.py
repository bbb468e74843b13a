"""Other ways to train the same work, each at the best setting that we know: what dimvl is compared with.

Written here, with the weights of a `DimvlModel` so that their loss can be compared with its own:

- `PaddedStream`: one padded stream, either with shared projections (VLP, UNITER), all in one product, embeddings and
  word head on real rows only, or with the naive decoupled block, which projects every row with both sets and selects.
- `Uniter`: UNITER as published (Chen et al., ECCV 2020): padded embeddings gathered to sequences without gaps, three
  projections, an additive mask, its own GELU, word head at the masked positions.

From transformers as installed: VisualBert and Lxmert, which attend eagerly only, and Bert, eager or SDPA, over regions
projected by one layer. They compute logits at all positions that they give logits for.

Every model maps a `PaddedBatch` to the mean loss of the words to predict. There is no dropout anywhere.

Letters: B samples, L rows of the longest, N = B x L, D width, H heads, E head width.
"""

import math
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.samples import VOCABULARY, WIDTH, PaddedBatch
from dimvl.model.encoder import Block
from dimvl.model.model import DimvlModel
from dimvl.regions.detectors.torchvision_ops import import_torchvision

Core = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Run torch's kernel: (B, H, L, E), mask (B, 1, 1, L) added to the scores if there is one."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=None if mask is None else mask.to(query.dtype))


def eager(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Two products and a softmax."""
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
    """Embeddings on real rows, padded blocks, word head at the masked positions; products are those of dimvl."""

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
    """UNITER's masked language model; weights of a shared `DimvlModel`, products as torch has them."""

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


def import_transformers() -> ModuleType:
    """Import transformers, whose models import torchvision where it is installed."""
    import_torchvision()
    import transformers

    return transformers


def sizes(layers: int, width: int, heads: int) -> dict[str, object]:
    """Arguments of a configuration of transformers, without dropout."""
    return {
        "vocab_size": VOCABULARY,
        **{"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads},
        **{"intermediate_size": 4 * width, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }


class Published(nn.Module):
    """A model of transformers."""

    layers: nn.ModuleList

    def output(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """Mean loss, and logits of the tokens first."""
        raise NotImplementedError

    def forward(self, batch: PaddedBatch) -> Tensor:
        """Mean loss."""
        return self.output(batch)[0]


class VisualBert(Published):
    """transformers' VisualBertForPreTraining, which takes tokens and regions each padded to their longest."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        transformers = import_transformers()
        config = transformers.VisualBertConfig(visual_embedding_dim=WIDTH, **sizes(layers, width, heads))
        self.model = transformers.VisualBertForPreTraining(config)
        self.layers = self.model.visual_bert.encoder.layer

    def output(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """Mean loss and logits (B, T + R, V)."""
        labels = F.pad(batch.labels, (0, batch.features.shape[1]), value=-100)
        found = self.model(
            input_ids=batch.token_ids,
            attention_mask=batch.token_mask.long(),
            visual_embeds=batch.features,
            visual_attention_mask=batch.region_mask.long(),
            visual_token_type_ids=batch.region_mask.long(),
            labels=labels,
        )
        return found.loss, found.prediction_logits


class Lxmert(Published):
    """transformers' LxmertForPreTraining with the masked words alone; 9, 5 and 5 layers where others have 12."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        transformers, some = import_transformers(), max(1, round(layers * 5 / 12))
        config = transformers.LxmertConfig(
            visual_feat_dim=WIDTH,
            **sizes(layers, width, heads),
            **{"l_layers": max(1, round(layers * 9 / 12)), "r_layers": some, "x_layers": some},
            **{"task_matched": False, "task_obj_predict": False, "task_qa": False},
        )
        self.model = transformers.LxmertForPreTraining(config)
        encoder = self.model.lxmert.encoder
        self.layers = nn.ModuleList([*encoder.layer, *encoder.r_layers, *encoder.x_layers])

    def output(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """Mean loss and logits (B, T, V)."""
        found = self.model(
            input_ids=batch.token_ids,
            attention_mask=batch.token_mask.float(),
            token_type_ids=torch.zeros_like(batch.token_ids),
            visual_feats=batch.features,
            visual_pos=batch.geometry[..., :4],
            visual_attention_mask=batch.region_mask.float(),
            labels=batch.labels,
        )
        return found.loss, found.prediction_logits


class Bert(Published):
    """transformers' BertForMaskedLM over words and projected regions."""

    def __init__(self, layers: int, width: int, heads: int, attention: str) -> None:
        super().__init__()
        transformers = import_transformers()
        config = transformers.BertConfig(attn_implementation=attention, **sizes(layers, width, heads))
        self.model, self.project = transformers.BertForMaskedLM(config), nn.Linear(WIDTH, width)
        self.layers = self.model.bert.encoder.layer

    def output(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """Mean loss and logits (B, T + R, V)."""
        words, regions = self.model.bert.embeddings.word_embeddings(batch.token_ids), self.project(batch.features)
        labels = F.pad(batch.labels, (0, batch.features.shape[1]), value=-100)
        mask = torch.cat([batch.token_mask, batch.region_mask], dim=1)
        rows = torch.cat([words, regions.to(words.dtype)], dim=1)
        found = self.model(inputs_embeds=rows, attention_mask=mask.long(), labels=labels)
        return found.loss, found.logits
