"""Floating point operations of a training step, product by product.

A product of (rows, inputs) with (inputs, outputs) takes 2 x rows x inputs x outputs operations forward, and as many for
each of its two gradients backward: that of its weight, and that of its input if anything before it is trained. So
backward is 2 x forward except for frozen weights and for geometry and times, whose input needs no gradient. Attention
is two products of query-key pairs forward and four backward, without flash attention's recomputation. Norms,
activations, softmax and the optimiser are not counted, as in `torch.utils.flop_counter` (`tests/model/test_flops.py`).

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
        """Operations of both passes."""
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)


def part_of(name: str, split: bool) -> str:
    """Return the part of a `DimvlModel` that a weight or module belongs to, by its name.

    It is `regions`, `tokens`, a head or, depending on whether the sublayer is split, `encoder shared`,
    `encoder vision` or `encoder language`.
    """
    top, *rest = name.split(".")
    if top != "encoder":
        return top
    return "encoder shared" if not split else f"encoder {'vision' if 'vision' in rest else 'language'}"


def split_sublayers(model: DimvlModel) -> tuple[str, ...]:
    """Return the names of the sublayers with one set of weights per modality, each ending in a dot."""
    modules = model.named_modules()
    return tuple(f"{name}." for name, m in modules if isinstance(m, PerModality) and m.vision is not None)


@dataclass(frozen=True, kw_only=True)
class Product:
    """One matrix product of the model, or the two of a block's attention.

    Attributes:
        name: name of its module, or `encoder.layers.0.attention`.
        part: as `part_of`, or `attention scores`.
        flops: operations of both passes.
        elements: inputs, weights and outputs of the forward pass, each counted once: a lower bound of what it moves.

    """

    name: str
    part: str
    flops: Flops
    elements: float


def products(model: DimvlModel, work: Work, recompute: bool = False) -> Iterator[Product]:
    """List the products of one forward and backward pass over a batch.

    Args:
        model: on any device, the meta device included; weights that require no gradient are frozen.
        work: of the batch.
        recompute: activation checkpointing, where every block runs forward twice.

    """
    split = split_sublayers(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name.startswith("encoder.prefix."):  # that has few rows
            continue
        part = part_of(name, name.startswith(split))
        rows, inputs, outputs = _rows(name, part, work), module.in_features, module.out_features
        forward = 2.0 * rows * inputs * outputs
        gradients = takes_gradient(model, name) + module.weight.requires_grad
        again = forward if recompute and part.startswith("encoder") else 0.0
        flops = Flops(forward, gradients * forward + again)
        yield Product(name=name, part=part, flops=flops, elements=rows * (inputs + outputs) + inputs * outputs)
    width = model.regions.feature.out_features
    for layer, flows in enumerate(gradient_reaches_layers(model)):
        forward = 4.0 * (work.attention.pairs + work.attention.queries * model.encoder.learned) * width
        flops = Flops(forward, 2 * forward * flows + forward * recompute)
        elements = 2 * width * (work.attention.queries + work.attention.keys)
        yield Product(name=f"encoder.layers.{layer}.attention", part="attention scores", flops=flops, elements=elements)
    if model.align_head is not None:
        space = model.align_head.space
        forward, elements = 2.0 * work.similarities * space, work.heads.get("align_head", 0.0) * space
        flops = Flops(forward, 2 * forward * any(parameter.requires_grad for parameter in model.parameters()))
        yield Product(name="align_head.similarities", part="align_head", flops=flops, elements=elements)


def flops_by_part(model: DimvlModel, work: Work, recompute: bool = False) -> dict[str, Flops]:
    """Return the operations of one forward and backward pass over a batch, by part; arguments as in `products`."""
    parts: dict[str, Flops] = {}
    for product in products(model, work, recompute):
        parts[product.part] = parts.get(product.part, Flops()) + product.flops
    return parts


def total_flops(model: DimvlModel, work: Work) -> float:
    """Return the operations of one forward and backward pass over a batch, without recomputation."""
    return sum(product.flops.total for product in products(model, work))


def _rows(name: str, part: str, work: Work) -> float:
    """Return the number of rows of a product."""
    by_part = {"regions": work.vision, "encoder vision": work.vision, "encoder language": work.language}
    if is_head(part):
        return work.heads.get(name, work.heads.get(part, 0.0))
    return by_part.get(part, work.rows)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def gradient_reaches_layers(model: DimvlModel) -> Iterator[bool]:
    """Yield whether each block's attention needs gradients: something in it or before it is trained."""
    reaches = _is_trained(model.regions) or _is_trained(model.tokens)
    reaches = reaches or (model.encoder.prefix is not None and _is_trained(model.encoder.prefix))
    for layer in model.encoder.layers:
        reaches = reaches or _is_trained(layer)
        yield reaches


def takes_gradient(model: DimvlModel, name: str) -> bool:
    """Return whether the input of a product needs a gradient, because something before it is trained."""
    if name in ("regions.geometry", "regions.time"):
        return False
    if name == "regions.feature":  # its input includes the vector of hidden regions
        return model.regions.hidden_feature.requires_grad
    if name == "regions.words":
        return model.tokens.word.weight.requires_grad
    if ".lora_B." in name or name.startswith("encoder.prefix."):  # it follows trained weights
        return True
    reaches = [_is_trained(model.regions) or _is_trained(model.tokens), *gradient_reaches_layers(model)]
    top, *rest = name.split(".")
    if top == "encoder":
        layer = int(rest[1])
        return reaches[layer] if rest[2] == "qkv" else reaches[layer + 1]
    linear = (inside for inside, module in getattr(model, top).named_modules() if isinstance(module, nn.Linear))
    return reaches[-1] or ".".join(rest) != next(linear)  # the head's first layer takes the encoder's rows
