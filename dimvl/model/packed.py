"""Linear layers laid out for prediction on a CPU.

oneDNN multiplies by a weight in a layout of its own. In training, where weights change, it makes that in every call
(`linear.py`); here once for each weight: a tenth less time on many rows, a third on the few of a decoding step. There
are no gradients, and the plain weight is let go.
"""

from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 2**15
"""Weights of fewer numbers stay as they are: below, calling oneDNN takes longer than what it saves on few rows."""


class PackedLinear(nn.Module):
    """A linear layer whose weight is kept as oneDNN wants it: (..., inputs) -> (..., outputs), float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, rows: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        if not rows.numel():
            return rows.new_zeros(*rows.shape[:-1], self.out_features)
        return torch.ops.mkldnn._linear_pointwise(rows, self._weight, self.bias, "none", [], "")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Refuse what would leave the weight out without a word."""
        raise RuntimeError(f"{prefix[:-1]} is laid out for prediction and cannot be saved; load the model again")


def can_pack() -> bool:
    """Tell whether oneDNN's linear layers are here, which torch does not make public, and AVX-512, where they pay."""
    has_layers = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_layers and torch.backends.cpu.get_cpu_capability() == "AVX512"


def pack_linears(module: nn.Module) -> None:
    """Replace the larger float32 linear layers on the CPU within a module by packed ones, where torch can."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and _pays(child.weight) and can_pack():
            setattr(module, name, PackedLinear(child))
        else:
            pack_linears(child)


def _pays(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= SMALLEST
