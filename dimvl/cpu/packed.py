"""Linear layers packed for prediction on a CPU.

oneDNN multiplies by a weight in a layout of its own. In training the weights change, so it converts them in every call
(`linear.py`). Here each weight is converted once and the plain one freed, which takes a tenth off the time of many rows
and a third off that of the few rows of a decoding step. Packed layers have no gradients. Packed weights are parameters,
so that `parameters()` counts a packed model as it does the plain one.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from dimvl.cpu.linear import onednn_is_faster

MINIMUM_SIZE = 2**15
"""Weights with fewer elements are not packed: on few rows, calling oneDNN costs more than it saves."""


class PackedLinear(nn.Module):
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

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Refuse to save, since the weight would be missing."""
        raise RuntimeError(f"{prefix[:-1]} is packed for prediction and cannot be saved; load the model again")


def pack_linears(module: nn.Module) -> None:
    """Replace the larger float32 linear layers on the CPU within a module by packed ones, where that is faster."""
    uses = Counter(id(weight) for _, weight in module.named_parameters(remove_duplicate=False))
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and _is_worth_packing(child.weight) and onednn_is_faster():
                setattr(parent, name, PackedLinear(child, tied=uses[id(child.weight)] > 1))


def _is_worth_packing(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= MINIMUM_SIZE
