"""Heads: selected rows to predictions. They run on the rows that have a target, and on zero rows if none has.

Letters: M rows with a target, D width, V vocabulary, K classes, F region feature, A answers.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dimvl.cpu.linear import Linear
from dimvl.model.encoder import ACTIVATIONS
from dimvl.model.norm import LayerNorm


class Transform(nn.Module):
    """BERT's prediction transform, linear, activation, norm: (M, D) -> (M, D)."""

    def __init__(self, width: int, activation: str, norm_eps: float) -> None:
        super().__init__()
        self.dense = Linear(width, width)
        self.norm = LayerNorm(width, norm_eps)
        self.activation = ACTIVATIONS[activation]

    def forward(self, rows: Tensor) -> Tensor:
        """(M, D) -> (M, D)."""
        return self.norm(self.activation(self.dense(rows)))


class WordHead(nn.Module):
    """Word logits with the word embedding's weights: (M, D) -> (M, V)."""

    def __init__(self, word: nn.Embedding, activation: str, norm_eps: float) -> None:
        super().__init__()
        self.transform = Transform(word.embedding_dim, activation, norm_eps)
        self.decoder = Linear(word.embedding_dim, word.num_embeddings)
        self.decoder.weight = word.weight

    def forward(self, rows: Tensor) -> Tensor:
        """(M, D) -> (M, V)."""
        return self.decoder(self.transform(rows))


class ObjectPrediction(NamedTuple):
    """class_logits (M, K + 1), the last one for background and other classes; features (M, F)."""

    class_logits: Tensor
    features: Tensor


class ObjectHead(nn.Module):
    """What a hidden region was: (M, D) -> class logits and features."""

    def __init__(self, width: int, classes: int, feature_width: int, activation: str, norm_eps: float) -> None:
        super().__init__()
        self.transform = Transform(width, activation, norm_eps)
        self.classes = Linear(width, classes + 1)
        self.features = Linear(width, feature_width)

    def forward(self, rows: Tensor) -> ObjectPrediction:
        """(M, D) -> (M, K + 1), (M, F)."""
        hidden = self.transform(rows)
        return ObjectPrediction(self.classes(hidden), self.features(hidden))


class MatchHead(nn.Module):
    """Whether the text belongs to the image, from [CLS]: (M, D) -> (M,) logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pooler = Linear(width, width)
        self.score = Linear(width, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """(M, D) -> (M,)."""
        return self.score(torch.tanh(self.pooler(rows))).squeeze(-1)


class AnswerHead(nn.Module):
    """Answer logits from the question's last token, which has seen picture and question: (M, D) -> (M, A).

    VLP multiplies it with [CLS]; here [CLS] need not have seen the question.
    """

    def __init__(self, width: int, answers: int, norm_eps: float) -> None:
        super().__init__()
        self.inner = Linear(width, 2 * width)
        self.norm = LayerNorm(2 * width, norm_eps)
        self.outer = Linear(2 * width, answers)

    def forward(self, rows: Tensor) -> Tensor:
        """(M, D) -> (M, A)."""
        return self.outer(self.norm(F.gelu(self.inner(rows))))
