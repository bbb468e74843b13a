"""Regions and tokens to rows.

A region is its feature, standardised and projected, plus its projected geometry (7 numbers), each normalised, plus a
segment vector and the embedding of its image's index (row 0 is zero). A token is word + position + segment, as in BERT.

Letters: Nv visual rows, Nl language rows, F region feature, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn

from dimvl.cpu.linear import Linear
from dimvl.model.norm import LayerNorm

GEOMETRY = 7


class RegionEmbeddings(nn.Module):
    """(Nv, F) features and (Nv, 7) geometry -> (Nv, D)."""

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, feature_width: int, width: int, max_images: int, dropout: float, norm_eps: float) -> None:
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
        self.norm = LayerNorm(width, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def standardise(self, features: Tensor, scales: Tensor | None) -> Tensor:
        """(Nv, F) as a store keeps them -> (Nv, F) fp32 with mean 0 and deviation 1 over the regions of the store.

        Features behind a rectifier have a large common mean and dimensions of very different size; projected as they
        are, what tells regions apart is a small part of each row and is learned late.

        Args:
            features: (Nv, F) of any floating type, or int8.
            scales: (Nv, 1) fp32 that rows of int8 are multiplied by; None for others.

        """
        numbers = features.float() if scales is None else features.float() * scales
        return (numbers - self.feature_mean) / self.feature_std

    def forward(
        self, features: Tensor, scales: Tensor | None, geometry: Tensor, hidden: Tensor, image_index: Tensor
    ) -> Tensor:
        """Embed regions.

        Args:
            features: (Nv, F) of any floating type, or int8; cast here, on the device, so that less has to get there.
            scales: (Nv, 1) of int8 features, or None.
            geometry: (Nv, 7) fractions of the image.
            hidden: (Nv,) bool, True where the learned vector takes the feature's place.
            image_index: (Nv,)

        """
        kind = self.hidden_feature.dtype
        features = torch.where(hidden[:, None], self.hidden_feature, self.standardise(features, scales).to(kind))
        rows = self.feature_norm(self.feature(features)) + self.geometry_norm(self.geometry(geometry.to(kind)))
        return self.dropout(self.norm(rows + self.segment + self.image_index(image_index)))


class TokenEmbeddings(nn.Module):
    """(Nl,) token ids, positions and segments -> (Nl, D)."""

    def __init__(self, vocabulary: int, width: int, max_positions: int, dropout: float, norm_eps: float) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(max_positions, width)
        self.segment = nn.Embedding(2, width)
        self.norm = LayerNorm(width, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, token_ids: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """(Nl,), (Nl,), (Nl,) -> (Nl, D)."""
        rows = self.word(token_ids) + self.position(positions) + self.segment(segments)
        return self.dropout(self.norm(rows))
