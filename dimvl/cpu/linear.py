"""Matrix products and linear layers for training, by the faster of the two libraries that torch has on a CPU.

torch gives fp32 products to MKL, which uses AVX-512 on Intel's CPUs alone, and bf16 products to oneDNN, which uses it
wherever the CPU has it. On other CPUs with AVX-512, fp32 products go to oneDNN here too: twice as fast on an AMD EPYC.
On an Intel Xeon MKL is faster, the more so the smaller the matrices, since oneDNN prepares each new shape
(docs/experiments.md). The arithmetic is the same, with sums in another order. For prediction see `packed.py`.
"""

import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def has_onednn() -> bool:
    """Return whether torch has oneDNN's linear layers, which are not public, and the CPU has AVX-512."""
    has_layers = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_layers and torch.backends.cpu.get_cpu_capability() == "AVX512"


def is_intel() -> bool:
    """Return whether the CPU is Intel's."""
    cpus = Path("/proc/cpuinfo")
    return "GenuineIntel" in (cpus.read_text(encoding="utf-8") if cpus.exists() else platform.processor())


ONEDNN_IS_FASTER = has_onednn() and not is_intel()


def _count_flops(rows: torch.Size, weight: torch.Size, *rest: Any, out_shape: torch.Size, **named: Any) -> int:
    return 2 * out_shape.numel() * rows[-1]


FLOP_FORMULAS = {torch.ops.mkldnn._linear_pointwise: _count_flops} if has_onednn() else {}
"""`custom_mapping` of torch's `FlopCounterMode`, which otherwise misses these products."""


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply two matrices, contiguous or not: (N, K), (K, M) -> (N, M). It has no gradient."""
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
    """Return whether these rows go to oneDNN; compiled code is left to the compiler, so that it guards no size here."""
    if torch.compiler.is_compiling() or not ONEDNN_IS_FASTER:
        return False
    return rows.dtype == torch.float32 and rows.device.type == "cpu" and rows.ndim == 2


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return result


class _OnednnLinear(torch.autograd.Function):
    """rows W^T + b.

    Zero rows take this path too: torch's own layer produces the gradient of the bias before that of the weight, and
    ZeRO 2 sums gradients over ranks in the order in which they arrive, so one order must hold on every rank.
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
