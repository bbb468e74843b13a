"""Layer norms that leave rows in the precision in which they come."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm`, with the same weights and names; means and deviations are fp32 inside, whatever the rows.

    Under autocast torch makes fp32 of bf16 rows on CUDA, which doubles the bytes of all that stands between two
    products there.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """(N, D) -> (N, D) of the same type."""
        if rows.dtype == self.weight.dtype:
            return super().forward(rows)
        with torch.autocast(rows.device.type, enabled=False):
            weight, bias = self.weight.to(rows.dtype), self.bias.to(rows.dtype)
            return F.layer_norm(rows, self.normalized_shape, weight, bias, self.eps)


def as_autocast(rows: Tensor) -> Tensor:
    """Cast rows to the type that autocast gives products, if it is on."""
    kind = rows.device.type
    return rows.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else rows
