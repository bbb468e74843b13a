"""Linear layers and convolutions packed for prediction on a CPU.

oneDNN multiplies by a weight in a layout of its own. In training the weights change, so it converts them in every call
(`linear.py`). Here each weight is converted once and the plain one freed, which takes a tenth off the time of many rows
and a third off that of the few rows of a decoding step. Packed layers have no gradients. Packed weights are parameters,
so that `parameters()` counts a packed model as it does the plain one.

The few rows of a decoding step take as long as reading the weights does. `HalfLinear` rounds these to half precision
(float16, relative error at most 2^-11), which halves that; rows and sums stay float32. Many rows take as long as with
float32 weights.

torch computes small convolutions of few images without oneDNN where it has one thread. Packed ones always take oneDNN,
which also limits their output in the same pass.
"""

import copy
from collections import Counter
from typing import Any, Self

import torch
from torch import Tensor, nn

from dimvl.cpu.linear import has_onednn

MINIMUM_SIZE = 2**15
"""Weights with fewer elements are not packed: on few rows, calling oneDNN costs more than it saves."""


class _Packed(nn.Module):
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Refuse to save, since the weight would be missing."""
        raise RuntimeError(f"{prefix[:-1]} is packed for prediction and cannot be saved; load the model again")


class PackedLayer(_Packed):
    """A packed linear layer."""

    bias: Tensor | None

    def with_bias(self, bias: Tensor) -> Self:
        """Return a layer of the same weight, which both share, and another bias."""
        layer = copy.copy(self)
        layer._parameters = {**self._parameters, "bias": nn.Parameter(bias, requires_grad=False)}
        return layer


class PackedLinear(PackedLayer):
    """A linear layer with its weight in oneDNN's layout: (..., inputs) -> (..., outputs), float32.

    Args:
        linear: the plain layer.
        tied: whether another module keeps the plain weight; then the packed copy is not a parameter.

    """

    def __init__(self, linear: nn.Linear, tied: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.weight = packed if tied else nn.Parameter(packed, requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        if not rows.numel():
            return rows.new_zeros(*rows.shape[:-1], self.out_features)
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")


class HalfLinear(PackedLayer):
    """A linear layer with its weight rounded to float16: (..., inputs) -> (..., outputs), float32.

    `weight` has no values: it only says how many there are.
    """

    def __init__(self, linear: nn.Linear, tied: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach(), None)
        shape = torch.empty_like(linear.weight, device="meta")
        self.weight = shape if tied else nn.Parameter(shape, requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        if not rows.numel():
            return rows.new_zeros(*rows.shape[:-1], self.out_features)
        product = torch.ops.quantized.linear_dynamic_fp16(rows, self.packed)
        return product if self.bias is None else product.add_(self.bias)


class PackedConvolution(_Packed):
    """A convolution with its weight in oneDNN's layout: (B, C, h, w) -> (B, outputs, h', w'), float32.

    Args:
        convolution: the plain one, which pads with zeros.
        limit: the output is limited to 0 .. `limit`, as by ReLU6; None for no limits.

    """

    def __init__(self, convolution: nn.Conv2d, limit: float | None = None) -> None:
        super().__init__()
        plain = convolution
        assert isinstance(plain.padding, tuple) and plain.padding_mode == "zeros"
        self.shape = (list(plain.padding), list(plain.stride), list(plain.dilation), plain.groups)
        self.limits = ("none", []) if limit is None else ("hardtanh", [0.0, limit])
        self.bias = plain.bias
        packed = torch.ops.mkldnn._reorder_convolution_weight(plain.weight.detach(), *self.shape)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, outputs, h', w')."""
        return torch.ops.mkldnn._convolution_pointwise(images, self.weight, self.bias, *self.shape, *self.limits, "")


def pack_linears(module: nn.Module, half: bool = False) -> None:
    """Replace the larger float32 linear layers on the CPU within a module by packed ones, where that is faster.

    Args:
        module: contains the layers.
        half: whether to round their weights to half precision, for a model that decodes.

    """
    kind = HalfLinear if half and has_half_linears() else PackedLinear
    uses = Counter(id(weight) for _, weight in module.named_parameters(remove_duplicate=False))
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and _is_worth_packing(child.weight) and has_onednn():
                setattr(parent, name, kind(child, tied=uses[id(child.weight)] > 1))


def has_half_linears() -> bool:
    """Return whether torch has linear layers of float16 weights and float32 rows for this CPU."""
    return torch.backends.quantized.engine in ("fbgemm", "x86")


def pack_convolutions(module: nn.Module) -> None:
    """Replace the float32 convolutions on the CPU within a module by packed ones, where that is faster."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and can_pack(child):  # a subclass may compute something else
                setattr(parent, name, PackedConvolution(child))


def can_pack(convolution: nn.Conv2d) -> bool:
    """Return whether a convolution can be packed, and that is faster."""
    weight, pads = convolution.weight, isinstance(convolution.padding, tuple) and convolution.padding_mode == "zeros"
    return pads and weight.device.type == "cpu" and weight.dtype == torch.float32 and has_onednn()


def _is_worth_packing(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= MINIMUM_SIZE
