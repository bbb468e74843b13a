"""Products of row matrices, by the faster of the two libraries that torch has for them on a processor.

torch gives fp32 products to MKL, which takes AVX2 on processors that are not Intel's, and bf16 products to oneDNN,
which takes AVX-512 wherever it is. Where there is AVX-512 fp32 goes to oneDNN here too: on an AMD EPYC at twice the
rate (docs/experiments.md). It is the same arithmetic with sums in another order. For prediction see `packed.py`.
"""

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from dimvl.model.packed import can_pack

# oneDNN makes a kernel for each shape and keeps the last 1,024, and torch as many of its own around them: with ragged
# batches, which hardly ever repeat a shape, a gigabyte. A batch needs far fewer. Both are read at the first product.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")

_HAS_ONEDNN = can_pack()

if _HAS_ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _operations(rows: torch.Size, weight: torch.Size, *rest: Any, out_shape: torch.Size, **named: Any) -> int:
        """Let torch's counter of operations see these products too."""
        return 2 * out_shape.numel() * rows[-1]


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply two matrices, neither of which needs to be contiguous: (N, K), (K, M) -> (N, M). It has no gradient."""
    return _onednn(left, right.t(), None) if _takes_onednn(left) and left.numel() else left @ right


class Linear(nn.Linear):
    """`nn.Linear`, with the same weights, names and gradients."""

    def forward(self, rows: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs)."""
        if _takes_onednn(rows) and self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
            result: Tensor = _OnednnLinear.apply(rows, self.weight, self.bias)
            return result
        return F.linear(rows, self.weight, self.bias)


def _takes_onednn(rows: Tensor) -> bool:
    """Whether oneDNN takes these rows; what is compiled is left to the compiler, and guards no size here."""
    if torch.compiler.is_compiling() or not _HAS_ONEDNN:
        return False
    return rows.dtype == torch.float32 and rows.device.type == "cpu" and rows.ndim == 2


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return result


class _OnednnLinear(torch.autograd.Function):
    """rows W^T + b.

    Zero rows come here too: torch's own layer hands out the gradient of the bias before that of the weight, and ranks
    that have them in another order mix them up (ZeRO 2 sums them in the order in which they come).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _onednn(rows, weight, bias) if rows.numel() else F.linear(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        (gradient,) = gradients
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            product(gradient, weight) if wants_rows else None,
            product(gradient.t(), rows) if wants_weight else None,
            gradient.sum(dim=0) if wants_bias else None,
        )
