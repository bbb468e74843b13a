"""Floating point operations of a training step, product by product.

A product of (rows, inputs) with (inputs, outputs) takes 2 x rows x inputs x outputs operations forward, and as many for
each of its two gradients backward: that of its input, if anything before it learns, and that of its weight. So backward
is 2 x forward but for what is frozen and for the geometry, whose input takes no gradient. Attention is two products of
query-key pairs forward and four backward, counted without the recomputation that flash attention does. Norms,
activations, softmax and the optimiser are not counted; `torch.utils.flop_counter` counts the same, see
`tests/planning/test_flops.py`.

Letters: D width, F region feature, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from dimvl.model.encoder import PerModality
from dimvl.model.model import DimvlModel
from dimvl.planning.work import Work

HEADS = {"word_head": "words", "object_head": "regions", "match_head": "matches", "answer_head": "answers"}


@dataclass(frozen=True)
class Flops:
    """Operations of one forward and one backward pass."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        """Of both passes."""
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)


def part_of(name: str, split: bool) -> str:
    """Part that a weight of a `DimvlModel` belongs to: `regions`, `tokens`, `encoder shared`, ..., or its head.

    Args:
        name: of a weight or module.
        split: whether its sublayer has one set of weights per modality.

    """
    top, *rest = name.split(".")
    if top != "encoder":
        return top
    return "encoder shared" if not split else f"encoder {'vision' if 'vision' in rest else 'language'}"


def split_sublayers(model: DimvlModel) -> tuple[str, ...]:
    """Names of the sublayers that have one set of weights per modality, each with a dot at its end."""
    modules = model.named_modules()
    return tuple(f"{name}." for name, m in modules if isinstance(m, PerModality) and m.vision is not None)


def flops_by_part(model: DimvlModel, work: Work, recompute: bool = False) -> dict[str, Flops]:
    """Operations of one forward and backward pass over a batch, by part of the model.

    Args:
        model: on any device, the meta device too; what takes no gradient is frozen.
        work: of the batch.
        recompute: activation checkpointing: every block runs forward once more.

    """
    parts: dict[str, Flops] = {}
    split = split_sublayers(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        part = part_of(name, name.startswith(split))
        forward = 2.0 * _rows(name, part, work) * module.in_features * module.out_features
        gradients = _takes_gradient(model, name) + module.weight.requires_grad
        again = forward if recompute and part.startswith("encoder") else 0.0
        parts[part] = parts.get(part, Flops()) + Flops(forward, gradients * forward + again)
    for flows in _gradient_reaches_layers(model):
        forward = 4.0 * work.attention.pairs * model.regions.feature.out_features
        backward = 2 * forward * flows + forward * recompute
        parts["attention scores"] = parts.get("attention scores", Flops()) + Flops(forward, backward)
    return parts


def _rows(name: str, part: str, work: Work) -> float:
    """Rows that a product runs on."""
    by_part = {"regions": work.vision, "encoder vision": work.vision, "encoder language": work.language}
    by_part |= {head: getattr(work, target) for head, target in HEADS.items()}
    return by_part.get(part, work.rows)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _gradient_reaches_layers(model: DimvlModel) -> Iterator[bool]:
    """Whether each block's attention takes gradients: something in it or before it learns."""
    reaches = _learns(model.regions) or _learns(model.tokens)
    for layer in model.encoder.layers:
        reaches = reaches or _learns(layer)
        yield reaches


def _takes_gradient(model: DimvlModel, name: str) -> bool:
    """Whether the input of a product needs its gradient, because something before it learns."""
    if name == "regions.geometry":
        return False
    if name == "regions.feature":  # the vector of hidden regions stands among the features
        return model.regions.hidden_feature.requires_grad
    reaches = [_learns(model.regions) or _learns(model.tokens), *_gradient_reaches_layers(model)]
    top, *rest = name.split(".")
    if top == "encoder":
        layer = int(rest[1])
        return reaches[layer] if rest[2] == "qkv" else reaches[layer + 1]
    first = {"word_head": "transform.dense", "object_head": "transform.dense", "match_head": "pooler"}
    return reaches[-1] or ".".join(rest) != first.get(top, "inner")
