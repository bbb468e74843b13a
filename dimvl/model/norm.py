"""Layer norm that keeps the precision of its rows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` with the same weights and names; mean and standard deviation are computed in fp32.

    Under autocast on CUDA torch's own layer turns bf16 rows into fp32, which doubles the memory traffic between two
    matrix products.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """(N, D) -> (N, D) of the same dtype."""
        if rows.dtype == self.weight.dtype:
            return super().forward(rows)
        with torch.autocast(rows.device.type, enabled=False):
            weight, bias = self.weight.to(rows.dtype), self.bias.to(rows.dtype)
            return F.layer_norm(rows, self.normalized_shape, weight, bias, self.eps)


def as_autocast(rows: Tensor) -> Tensor:
    """Cast rows to autocast's dtype if autocast is on."""
    kind = rows.device.type
    return rows.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else rows
