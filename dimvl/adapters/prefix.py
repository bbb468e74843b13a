"""Prefix tuning: keys and values of each layer that every row attends to, before those of image and context.

Li and Liang, "Prefix-Tuning" (ACL 2021); for every layer, as in P-Tuning v2 (Liu et al., ACL 2022). They are computed
once per batch and do not depend on it, so an image is still computed once for all its texts, and decoding finds them in
its cache. Values begin at 0, so that the model begins near its base.

Letters: P learned keys, L layers, D width, H heads, E = D / H, M inner width.
"""

import torch
from torch import Tensor, nn

from dimvl.model.encoder import Encoder, LearnedKeys


class Prefix(LearnedKeys):
    """Keys and values of a prefix: a table of them or, while it is trained, a perceptron over a smaller table.

    The layout of a row is peft's: layer, key or value, head, element.

    Args:
        encoder: what they are for.
        length: P.
        hidden: M; None for no perceptron.

    """

    def __init__(self, encoder: Encoder, length: int, hidden: int | None) -> None:
        super().__init__()
        self.length, layers, width = length, len(encoder.layers), encoder.width
        self.shape = (length, layers, 2, encoder.heads, width // encoder.heads)
        whole = layers * 2 * width
        self.table = nn.Embedding(length, whole if hidden is None else width)
        self.perceptron: nn.Sequential | None = None
        values = self.table.weight.unflatten(1, (-1, width))[:, 1::2]  # (P, L, D), or nothing with a perceptron
        if hidden is not None:
            last = nn.Linear(hidden, whole)
            self.perceptron = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), last)
            values = last.weight.unflatten(0, (-1, width))[1::2]  # (L, D, M)
            nn.init.zeros_(last.bias)
        with torch.no_grad():
            values.zero_()

    def forward(self) -> Tensor:
        """Return (L, 2, P, H, E)."""
        return self.rows().view(self.shape).permute(1, 2, 0, 3, 4)

    def rows(self) -> Tensor:
        """Return keys and values as one row for each: (P, L 2 D)."""
        rows = self.table(torch.arange(self.length, device=self.table.weight.device))
        return rows if self.perceptron is None else self.perceptron(rows)
