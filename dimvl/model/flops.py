"""Floating point operations of a training step, product by product.

A product of (rows, inputs) with (inputs, outputs) takes 2 x rows x inputs x outputs operations forward, and as many for
each of its two gradients backward: that of its input, if anything before it learns, and that of its weight. So backward
is 2 x forward but for what is frozen and for geometry and times, whose input takes no gradient. Attention is two
products of query-key pairs forward and four backward, counted without the recomputation that flash attention does.
Norms, activations, softmax and the optimiser are not counted; `torch.utils.flop_counter` counts the same, see
`tests/model/test_flops.py`.

Letters: D width, F region feature, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from dimvl.model.encoder import PerModality
from dimvl.model.heads import is_head
from dimvl.model.model import DimvlModel
from dimvl.model.work import Work


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


@dataclass(frozen=True, kw_only=True)
class Product:
    """One matrix product of the model, or the two of a block's attention together.

    Attributes:
        name: of its module, or `encoder.layers.0.attention`.
        part: that it belongs to, see `part_of`, or `attention scores`.
        flops: of both passes.
        elements: of inputs, weights and outputs of the forward pass, each counted once: the least that it moves.

    """

    name: str
    part: str
    flops: Flops
    elements: float


def products(model: DimvlModel, work: Work, recompute: bool = False) -> Iterator[Product]:
    """List the products of one forward and backward pass over a batch.

    Args:
        model: on any device, the meta device too; what takes no gradient is frozen.
        work: of the batch.
        recompute: activation checkpointing: every block runs forward once more.

    """
    split = split_sublayers(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        part = part_of(name, name.startswith(split))
        rows, inputs, outputs = _rows(name, part, work), module.in_features, module.out_features
        forward = 2.0 * rows * inputs * outputs
        gradients = _takes_gradient(model, name) + module.weight.requires_grad
        again = forward if recompute and part.startswith("encoder") else 0.0
        flops = Flops(forward, gradients * forward + again)
        yield Product(name=name, part=part, flops=flops, elements=rows * (inputs + outputs) + inputs * outputs)
    width = model.regions.feature.out_features
    for layer, flows in enumerate(_gradient_reaches_layers(model)):
        forward = 4.0 * work.attention.pairs * width
        flops = Flops(forward, 2 * forward * flows + forward * recompute)
        elements = 2 * width * (work.attention.queries + work.attention.keys)
        yield Product(name=f"encoder.layers.{layer}.attention", part="attention scores", flops=flops, elements=elements)


def flops_by_part(model: DimvlModel, work: Work, recompute: bool = False) -> dict[str, Flops]:
    """Operations of one forward and backward pass over a batch, by part of the model; arguments as `products`."""
    parts: dict[str, Flops] = {}
    for product in products(model, work, recompute):
        parts[product.part] = parts.get(product.part, Flops()) + product.flops
    return parts


def total_flops(model: DimvlModel, work: Work) -> float:
    """Operations of one forward and backward pass over a batch, without any recomputation."""
    return sum(product.flops.total for product in products(model, work))


def _rows(name: str, part: str, work: Work) -> float:
    """Rows that a product runs on."""
    by_part = {"regions": work.vision, "encoder vision": work.vision, "encoder language": work.language}
    return work.heads.get(part, 0.0) if is_head(part) else by_part.get(part, work.rows)


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
    if name in ("regions.geometry", "regions.time"):
        return False
    if name == "regions.feature":  # the vector of hidden regions stands among the features
        return model.regions.hidden_feature.requires_grad
    reaches = [_learns(model.regions) or _learns(model.tokens), *_gradient_reaches_layers(model)]
    top, *rest = name.split(".")
    if top == "encoder":
        layer = int(rest[1])
        return reaches[layer] if rest[2] == "qkv" else reaches[layer + 1]
    linear = (inside for inside, module in getattr(model, top).named_modules() if isinstance(module, nn.Linear))
    return reaches[-1] or ".".join(rest) != next(linear)  # the first one takes the encoder's rows
