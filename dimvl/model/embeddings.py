"""Embeddings of regions and tokens.

A region is its feature, standardised and projected, plus its projected geometry (7 numbers) and, in models with
`region_words`, the projected mean embedding of the words that name it; each of these is normalised. Added to them are a
segment vector, the embedding of its image's index (row 0 is zero) and, in models with `times`, the projected time of
its image. A token is word + position + segment, as in BERT; a soft row of an adapter has a vector in place of its word,
at position 0.

Letters: Nv visual rows, Nl language rows, F region feature, D width, V vocabulary, Z word pieces.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dimvl.cpu.linear import Linear
from dimvl.model.norm import LayerNorm

GEOMETRY = 7
TIME = 64
"""Sines and cosines of a time."""


def sinusoids(places: Tensor, width: int) -> Tensor:
    """(P,) positions or seconds -> (P, D) sines and cosines of length 1 (Vaswani et al., NeurIPS 2017, section 3.5)."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2, device=places.device) / width)
    angles = places[:, None] * rates
    waves = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]
    return F.normalize(waves, dim=1)


class RegionEmbeddings(nn.Module):
    """(Nv, F) features, (Nv, 7) geometry and (Nv, D) words -> (Nv, D)."""

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self,
        feature_width: int,
        width: int,
        max_images: int,
        times: bool,
        region_words: bool,
        dropout: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(feature_width))
        self.register_buffer("feature_std", torch.ones(feature_width))
        self.hidden_feature = nn.Parameter(torch.zeros(feature_width))
        self.feature = Linear(feature_width, width)
        self.feature_norm = LayerNorm(width, norm_eps)
        self.geometry = Linear(GEOMETRY, width)
        self.geometry_norm = LayerNorm(width, norm_eps)
        self.segment = nn.Parameter(torch.zeros(width))
        self.image_index = nn.Embedding(max_images, width, padding_idx=0)
        self.time = Linear(TIME, width, bias=False) if times else None
        self.words = Linear(width, width, bias=False) if region_words else None
        self.words_norm = LayerNorm(width, norm_eps) if region_words else None
        self.norm = LayerNorm(width, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def standardise(self, features: Tensor, scales: Tensor | None) -> Tensor:
        """(Nv, F) as in a store -> (Nv, F) fp32 with mean 0 and standard deviation 1 over the regions of the store.

        Features after a rectifier have a large common mean and dimensions of very different scale; projected as they
        are, the differences between regions would be a small part of each row and would be learned late.

        Args:
            features: (Nv, F) of any floating type, or int8.
            scales: (Nv, 1) fp32 scale of each row of int8 features; None for other types.

        """
        numbers = features.float() if scales is None else features.float() * scales
        return (numbers - self.feature_mean) / self.feature_std

    def forward(
        self,
        features: Tensor,
        scales: Tensor | None,
        geometry: Tensor,
        hidden: Tensor,
        image_index: Tensor,
        times: Tensor | None = None,
        words: Tensor | None = None,
        named: Tensor | None = None,
    ) -> Tensor:
        """Embed regions.

        Args:
            features: (Nv, F) of any floating type, or int8; cast here, on the device, to transfer fewer bytes.
            scales: (Nv, 1) of int8 features, or None.
            geometry: (Nv, 7) fractions of the image.
            hidden: (Nv,) bool, True where the learned vector replaces the feature.
            image_index: (Nv,) number of the region's image in its prefix, from 0.
            times: (Nv,) seconds, ignored by a model without `times`; None means 0.
            words: (Nv, D) mean embedding of the words of each region, for a model with `region_words`.
            named: (Nv,) bool, False for regions without words: these get nothing, not even a bias.

        """
        kind = self.hidden_feature.dtype
        features = torch.where(hidden[:, None], self.hidden_feature, self.standardise(features, scales).to(kind))
        rows = self.feature_norm(self.feature(features)) + self.geometry_norm(self.geometry(geometry.to(kind)))
        rows = rows + self.segment + self.image_index(image_index)
        if self.time is not None:
            seconds = geometry.new_zeros(len(geometry)) if times is None else times
            rows = rows + self.time(sinusoids(seconds, TIME).to(kind))
        if self.words is not None and self.words_norm is not None:
            assert words is not None and named is not None
            rows = rows + self.words_norm(self.words(words)) * named[:, None]
        return self.dropout(self.norm(rows))


class WordEmbedding(nn.Embedding):
    """`nn.Embedding`, with the same weight and name, that also returns weighted sums.

    Sums are computed in `forward`, since ZeRO 3 has the weight only while a module is called.
    """

    def forward(self, ids: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Embed words, or sum the weighted embeddings of each of Nv groups.

        Args:
            ids: (Nl,), or (Z,) of all groups.
            offsets: (Nv + 1,) where each group starts and ends.
            weights: (Z,)

        Returns:
            (Nl, D), or (Nv, D).

        """
        if offsets is None or weights is None:
            return super().forward(ids)
        return F.embedding_bag(
            ids,
            self.weight,
            offsets,
            mode="sum",
            per_sample_weights=weights.to(self.weight.dtype),
            include_last_offset=True,
        )


class TokenEmbeddings(nn.Module):
    """(Nl,) token ids, positions and segments -> (Nl, D).

    Attributes:
        prompt: vectors of the soft rows, whose token ids are -1, -2 and so on; None for a model without.

    """

    def __init__(self, vocabulary: int, width: int, max_positions: int, dropout: float, norm_eps: float) -> None:
        super().__init__()
        self.word = WordEmbedding(vocabulary, width)
        self.prompt: nn.Embedding | None = None
        self.position = nn.Embedding(max_positions, width)
        self.segment = nn.Embedding(2, width)
        self.norm = LayerNorm(width, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, token_ids: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """(Nl,), (Nl,), (Nl,) -> (Nl, D)."""
        words = self.word(token_ids if self.prompt is None else token_ids.clamp(min=0))
        if self.prompt is not None:
            soft = token_ids < 0
            words = torch.where(soft[:, None], self.prompt((-1 - token_ids).clamp(min=0)), words)
            positions = positions.masked_fill(soft, 0)
        rows = words + self.position(positions) + self.segment(segments)
        return self.dropout(self.norm(rows))
