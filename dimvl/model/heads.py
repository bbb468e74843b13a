"""Prediction heads and their table, `HEADS`.

A head runs on the rows that have a target of its kind (`Targets.head` in `dimvl/data/targets.py`), possibly none. The
model, checkpoint conversion, the optimiser, FLOP counting, memory planning and the profile all read the table.

Letters: M rows with a target, D width, V vocabulary, K classes, F region feature, A answers, E shared space, I images,
R regions, T texts, L words, S pairs of text and region.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

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


class Head(nn.Module):
    """Layers from selected rows to a prediction.

    Attributes:
        outputs: numbers predicted per row.
        hidden: elements per row that the backward pass needs, besides the predictions.
        label_bytes: bytes of one target's labels in a batch, besides its row.

    """

    outputs: int
    hidden: int
    label_bytes: int


class WordHead(Head):
    """Word logits with the word embedding's weights: (M, D) -> (M, V)."""

    label_bytes = 8

    def __init__(self, word: nn.Embedding, activation: str, norm_eps: float) -> None:
        super().__init__()
        self.outputs, self.hidden = word.num_embeddings, 4 * word.embedding_dim + 2
        self.transform = Transform(word.embedding_dim, activation, norm_eps)
        self.decoder = Linear(word.embedding_dim, word.num_embeddings)
        self.decoder.weight = word.weight

    def forward(self, rows: Tensor) -> Tensor:
        """(M, D) -> (M, V)."""
        return self.decoder(self.transform(rows))


class ObjectPrediction(NamedTuple):
    """class_logits (M, K + 1), the last for background and other classes, and features (M, F)."""

    class_logits: Tensor
    features: Tensor


class ObjectHead(Head):
    """Classes and features of hidden regions: (M, D) -> (M, K + 1), (M, F)."""

    def __init__(self, width: int, classes: int, feature_width: int, activation: str, norm_eps: float) -> None:
        super().__init__()
        self.outputs, self.hidden, self.label_bytes = classes + 1 + feature_width, 4 * width + 2, 4 * (classes + 1)
        self.transform = Transform(width, activation, norm_eps)
        self.classes = Linear(width, classes + 1)
        self.features = Linear(width, feature_width)

    def forward(self, rows: Tensor) -> ObjectPrediction:
        """(M, D) -> (M, K + 1), (M, F)."""
        hidden = self.transform(rows)
        return ObjectPrediction(self.classes(hidden), self.features(hidden))


class MatchHead(Head):
    """Whether the text belongs to the image, from [CLS]: (M, D) -> (M,) logits."""

    outputs = 1
    label_bytes = 4

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = 2 * width
        self.pooler = Linear(width, width)
        self.score = Linear(width, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """(M, D) -> (M,)."""
        return self.score(torch.tanh(self.pooler(rows))).squeeze(-1)


class AnswerHead(Head):
    """Answer or label logits from a text's last token, which has seen image and text: (M, D) -> (M, A).

    VLP multiplies that row by [CLS]; here [CLS] need not have seen the question.
    """

    def __init__(self, width: int, answers: int, norm_eps: float) -> None:
        super().__init__()
        # The backward pass needs the input, and three times the inner layer's output of width 2 D.
        self.outputs, self.hidden, self.label_bytes = answers, 7 * width, 4 * answers
        self.inner = Linear(width, 2 * width)
        self.norm = LayerNorm(2 * width, norm_eps)
        self.outer = Linear(2 * width, answers)

    def forward(self, rows: Tensor) -> Tensor:
        """(M, D) -> (M, A)."""
        return self.outer(self.norm(F.gelu(self.inner(rows))))


class Aligned(NamedTuple):
    """Images, regions, texts and words in the shared space: unit vectors (I, E), (R, E), (T, E), (L, E) in fp32.

    `scales` (2,) are the factors on cosines of the global and of the token-wise score, 1 / temperature.
    """

    images: Tensor
    regions: Tensor
    texts: Tensor
    words: Tensor
    scales: Tensor


class AlignHead(Head):
    """Projections of images, regions, texts and words to a shared space, as unit vectors, and two temperatures.

    CLIP (Radford et al., ICML 2021): temperatures are learned as the logarithm of their inverse, start at .07 and stay
    above .01. FILIP (Yao et al., ICLR 2022): regions and words have the same space. Here an image is its [CLS] row, a
    text its last row.
    """

    label_bytes = 8

    def __init__(self, width: int, space: int) -> None:
        super().__init__()
        self.space = space
        self.outputs, self.hidden = 2 * space, width + 1  # projections and unit vectors, both in fp32; their lengths
        self.image, self.region = Linear(width, space), Linear(width, space)
        self.text, self.word = Linear(width, space), Linear(width, space)
        self.log_scales = nn.Parameter(torch.full((2,), -math.log(0.07)))

    def forward(self, images: Tensor, regions: Tensor, texts: Tensor, words: Tensor) -> Aligned:
        """(I, D), (R, D), (T, D), (L, D) -> the same in the shared space."""
        return Aligned(
            images=F.normalize(self.image(images).float(), dim=1),
            regions=F.normalize(self.region(regions).float(), dim=1),
            texts=F.normalize(self.text(texts).float(), dim=1),
            words=F.normalize(self.word(words).float(), dim=1),
            scales=self.scales(),
        )

    def scales(self) -> Tensor:
        """Return the factors (2,) on the global and the token-wise score, 1 / temperature."""
        return self.log_scales.float().clamp(max=math.log(100)).exp()


class RegionScores(NamedTuple):
    """Logits in fp32 of pairs of phrase and region (S,), and that no region fits (T,) or None."""

    pairs: Tensor
    nowhere: Tensor | None


class RegionHead(Head):
    """Which region a phrase refers to: a pointer from the phrase's last row to the rows of its regions.

    The logit of a pair is the product of both rows, projected, over the root of the width, plus a linear term of the
    region's row. UNITER (Chen et al., ECCV 2020) scores the region's row alone, which needs regions that see the
    phrase; with the product, regions that have not seen it, and are computed once for all phrases, have a score too.
    No multilayer perceptron: the encoder's last block is one.
    """

    label_bytes = 16
    """A region's row, and the pair with a phrase that has the prefix alone."""

    def __init__(self, width: int, kinds: int) -> None:
        super().__init__()
        self.outputs, self.hidden = width + 1, 4 * width  # a pair needs both projections and their product
        self.text, self.region = Linear(width, width), Linear(width, width)
        self.alone = Linear(width, 1)
        self.nowhere = Linear(width, 1) if kinds > 1 else None

    def forward(self, texts: Tensor, regions: Tensor, pair_texts: Tensor, pair_regions: Tensor) -> RegionScores:
        """(T, D), (R, D) and the places of S pairs in them, (S,) twice -> (S,), (T,)."""
        queries = self.text(texts) * texts.shape[1] ** -0.5
        keys, alone = self.region(regions), self.alone(regions).squeeze(-1)
        pairs = (queries[pair_texts] * keys[pair_regions]).float().sum(dim=1) + alone[pair_regions].float()
        return RegionScores(pairs, None if self.nowhere is None else self.nowhere(texts).squeeze(-1).float())


class Sizes(NamedTuple):
    """What heads are built from: the word embedding, D, F, the activation and the epsilon of layer norms."""

    word: nn.Embedding
    width: int
    feature_width: int
    activation: str
    norm_eps: float


class HeadEntry(NamedTuple):
    """One head of the table.

    Attributes:
        argument: argument of `DimvlModel` that requests it: true, or the number of classes, answers or dimensions, or 1
            for regions only and 2 if no region may fit.
        build: builds it from the argument's value and the model's sizes.
        rows: which rows it runs on.
        label: its name in profiles.

    """

    argument: str
    build: Callable[[Any, Sizes], Head]
    rows: str
    label: str


HEADS: dict[str, HeadEntry] = {
    "word_head": HeadEntry(
        "word_head", lambda _, s: WordHead(s.word, s.activation, s.norm_eps), "words to predict", "head: words"
    ),
    "object_head": HeadEntry(
        "classes",
        lambda classes, s: ObjectHead(s.width, classes, s.feature_width, s.activation, s.norm_eps),
        "hidden regions to predict",
        "head: objects",
    ),
    "match_head": HeadEntry(
        "match_head", lambda _, s: MatchHead(s.width), "image-text pairs to judge", "head: matching"
    ),
    "answer_head": HeadEntry(
        "answers", lambda size, s: AnswerHead(s.width, size, s.norm_eps), "last tokens of questions", "head: answers"
    ),
    "align_head": HeadEntry(
        "aligned", lambda space, s: AlignHead(s.width, space), "images, regions, texts and words", "head: alignment"
    ),
    "region_head": HeadEntry(
        "grounded", lambda kinds, s: RegionHead(s.width, kinds), "phrases and their regions", "head: grounding"
    ),
    "label_head": HeadEntry(
        "labels", lambda size, s: AnswerHead(s.width, size, s.norm_eps), "last tokens of texts", "head: labels"
    ),
}
"""Attribute of the model -> head. Weights are initialised in this order, so add new heads at the end."""


def is_head(name: str) -> bool:
    """Return whether a weight or module of the model, by its name, belongs to a head."""
    return name.partition(".")[0] in HEADS


def heads_of(model: nn.Module) -> dict[str, Head]:
    """Return the heads of a model, by name."""
    return {name: head for name in HEADS if (head := getattr(model, name)) is not None}
