"""Weights from elsewhere: BERT checkpoints, shared checkpoints made decoupled, a pretrained model given other heads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dimvl.errors import UserError
from dimvl.model.encoder import ACTIVATIONS
from dimvl.model.heads import is_head
from dimvl.model.model import DimvlModel, copy_language_to_vision

RENAMED = {"regions.feature_deviation": "regions.feature_std"}
"""Names of weights in checkpoints written before version 0.2, and what they are called now."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, also one written before a weight got its present name.

    Raises:
        UserError: it is missing or damaged.

    """
    try:
        return {RENAMED.get(name, name): weight for name, weight in load_file(path).items()}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check that the folder is complete") from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy or export it again") from None


def load_pretrained(model: DimvlModel, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Load a checkpoint into a model that may have other heads and a wider split.

    Where the model has visual weights of its own and the checkpoint has shared ones, they are copied: a shared
    checkpoint becomes a decoupled one that computes the same function (DiMBERT: the module plugs into other models).
    A model for more images than the checkpoint, or with times, keeps its initial weights for these.

    Args:
        model: the model to fill.
        weights: the checkpoint, by name.
        source: its name, for messages.

    Returns:
        Names of the weights that start afresh; only those of heads can.

    Raises:
        UserError: the encoder or an embedding does not fit.

    """
    own = model.state_dict()
    weights = _grown(weights, own)
    taken, fresh = {}, []
    for name, value in own.items():
        given = weights.get(name, weights.get(name.replace(".vision.", ".language.")))
        if given is None and name == "word_head.decoder.weight":
            given = weights.get("tokens.word.weight")
        of_head = is_head(name)
        if given is None or (given.shape != value.shape and of_head):
            if not of_head:
                raise UserError(f"{source} has no weight {name}; it was made with another model configuration")
            fresh.append(name)
        elif given.shape != value.shape:
            raise UserError(
                f"{source}: {name} has shape {tuple(given.shape)} and the configuration asks for {tuple(value.shape)}; "
                "use the model and inputs sections that the checkpoint was trained with"
            )
        else:
            taken[name] = given
    if lost := [name for name in weights if name not in own and not is_head(name)]:
        if ".vision." in lost[0] and lost[0].replace(".vision.", ".language.") in own:
            raise UserError(
                f"{source} has visual weights of its own ({lost[0]}) where model.split shares them; "
                "set model.split as in it"
            )
        raise UserError(
            f"{source} has a weight {lost[0]} that the model lacks; "
            "use the model and inputs sections that the checkpoint was trained with"
        )
    model.load_state_dict(taken, strict=False)
    return fresh


def _grown(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the model's initial embeddings of images and times that the checkpoint does not have."""
    grown = {name: weight for name, weight in own.items() if name.startswith("regions.time.")} | dict(weights)
    index = "regions.image_index.weight"
    if index in grown and grown[index].shape[1:] == own[index].shape[1:]:
        grown[index] = torch.cat([grown[index], own[index][len(grown[index]) :]])
    return grown


def bert_arguments(folder: Path) -> dict[str, Any]:
    """Model arguments from the configuration of a BERT checkpoint in the layout of `transformers`.

    Raises:
        UserError: there is no configuration, or it is of another model type.

    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder} has no readable config.json; give a folder with a transformers checkpoint") from None
    if config.get("model_type") != "bert":
        raise UserError(f"{folder} holds a model of type {config.get('model_type')!r}; only 'bert' can be loaded")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{folder} uses {config['position_embedding_type']!r} positions; only 'absolute' can be loaded")
    if (activation := config.get("hidden_act")) not in ACTIVATIONS:
        raise UserError(f"{folder} uses activation {activation!r}; only {', '.join(ACTIVATIONS)} can be loaded")
    names = {
        "vocabulary": "vocab_size",
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "inner_width": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "activation": "hidden_act",
        "norm_eps": "layer_norm_eps",
    }
    if missing := [name for name in names.values() if name not in config]:
        raise UserError(f"{folder}: config.json lacks {missing[0]}; give a folder with a transformers checkpoint")
    return {own: config[name] for own, name in names.items()}


def load_bert(model: DimvlModel, folder: Path) -> None:
    """Load BERT into the language weights and copy them to vision; context takes token type 0 and text type 1.

    Raises:
        UserError: a weight is missing or has another shape.

    """
    given = {_modern(name): value for name, value in read_weights(folder / "model.safetensors").items()}
    own = model.state_dict()
    with torch.no_grad():
        for name, sources in _bert_names(model).items():
            if missing := [source for source in sources if source not in given]:
                if name.startswith("word_head."):  # an encoder without its language head: the head starts afresh
                    continue
                raise UserError(f"{folder} lacks the weight {missing[0]}; is it a whole BERT checkpoint?")
            value = torch.cat([given[source] for source in sources])
            if value.shape != own[name].shape:
                raise UserError(
                    f"{folder}: {sources[0]} gives shape {tuple(value.shape)} where the model has "
                    f"{tuple(own[name].shape)}; use the model section that belongs to the checkpoint"
                )
            own[name].copy_(value)
    copy_language_to_vision(model)


def _modern(name: str) -> str:
    """Name of a BERT weight today: the first checkpoints, still in use, call a norm's weights gamma and beta."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _bert_names(model: DimvlModel) -> dict[str, list[str]]:
    """Own weight name -> names of the BERT weights that are stacked into it."""
    names = {
        "tokens.word.weight": ["embeddings.word_embeddings.weight"],
        "tokens.position.weight": ["embeddings.position_embeddings.weight"],
        "tokens.segment.weight": ["embeddings.token_type_embeddings.weight"],
    }
    modules = {"tokens.norm": ["embeddings.LayerNorm"]}
    for index in range(len(model.encoder.layers)):
        own, other = f"encoder.layers.{index}", f"encoder.layer.{index}"
        modules |= {
            f"{own}.qkv.language": [f"{other}.attention.self.{part}" for part in ("query", "key", "value")],
            f"{own}.out.language": [f"{other}.attention.output.dense"],
            f"{own}.attention_norm.language": [f"{other}.attention.output.LayerNorm"],
            f"{own}.ffn.language.inner": [f"{other}.intermediate.dense"],
            f"{own}.ffn.language.outer": [f"{other}.output.dense"],
            f"{own}.ffn_norm.language": [f"{other}.output.LayerNorm"],
        }
    if model.word_head is not None:
        modules["word_head.transform.dense"] = ["cls.predictions.transform.dense"]
        modules["word_head.transform.norm"] = ["cls.predictions.transform.LayerNorm"]
        names["word_head.decoder.bias"] = ["cls.predictions.bias"]
    for own, others in modules.items():
        for part in ("weight", "bias"):
            names[f"{own}.{part}"] = [f"{other}.{part}" for other in others]
    return names
