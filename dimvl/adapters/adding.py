"""An adapter in a model: what is added, what is trained, and what can be merged into the base."""

from torch import nn

from dimvl.adapters import lora
from dimvl.adapters.prefix import Prefix
from dimvl.config import AdapterConfig
from dimvl.errors import UserError
from dimvl.model.heads import is_head
from dimvl.model.model import DimvlModel


def add_adapter(model: DimvlModel, adapter: AdapterConfig) -> None:
    """Add an adapter to a model with the base's weights, and freeze all other weights.

    The word embedding stays frozen with a head that shares it. Without training, LoRA computes what the base does.

    Raises:
        UserError: more layers are to be trained than the model has, or peft is not installed.

    """
    layers = model.encoder.layers
    if adapter.layers is not None and adapter.layers > len(layers):
        raise UserError(f"adapter.layers is {adapter.layers} but the model has {len(layers)}; lower it")
    model.requires_grad_(False)
    if adapter.lora is not None:
        lora.inject(model, adapter.lora)
    if adapter.prefix is not None:
        model.encoder.prefix = Prefix(model.encoder, adapter.prefix.length, adapter.prefix.hidden)
    if adapter.prompt is not None:
        model.tokens.prompt = nn.Embedding(adapter.prompt, model.encoder.width)
        nn.init.normal_(model.tokens.prompt.weight, std=model.encoder.width**-0.5)
    for layer in layers[len(layers) - (adapter.layers or 0) :]:
        layer.requires_grad_(True)
    for name, weight in model.named_parameters():
        if adapter.head and is_head(name):
            weight.requires_grad_(True)
    model.trained = frozenset(name for name, weight in model.named_parameters() if weight.requires_grad)


def merge_adapter(model: DimvlModel, adapter: AdapterConfig, place: str) -> None:
    """Turn a model with an adapter into one of the base's form that computes the same function.

    Args:
        model: changed in place; the base that it shares weights with stays as it is.
        adapter: the adapter's configuration.
        place: where it comes from, for the message.

    Raises:
        UserError: no model of the base's form computes the same.

    """
    if adapter.kind in ("prefix", "prompt"):
        raise UserError(
            f"{place} is a {adapter.kind}, whose rows the matrices of its base cannot replace; export it without "
            "--merge"
        )
    if adapter.lora is not None:
        lora.merge(model)
    model.trained = None
