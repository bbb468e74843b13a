"""Loading of BERT checkpoints, and of dimvl checkpoints into models with another split or other heads."""

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

BERT_WEIGHTS = "model.safetensors"
"""The file of the weights in the folder of a BERT checkpoint."""
RENAMED = {"regions.feature_deviation": "regions.feature_std"}
"""Name of a weight before version 0.2 -> its present name."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of this or an earlier version of dimvl.

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

    Where the model has separate visual weights and the checkpoint has shared ones, these are copied: a shared
    checkpoint becomes a decoupled one that computes the same function (DiMBERT: the module plugs into other models).
    If the model takes more images than the checkpoint, or times, these embeddings stay newly initialised.

    Args:
        model: the model to fill.
        weights: the checkpoint, by name.
        source: its name, for messages.

    Returns:
        Names of the weights that stay newly initialised; all belong to heads.

    Raises:
        UserError: the encoder or an embedding does not fit.

    """
    own = model.state_dict()
    weights = _grown(weights, own)
    loaded, fresh = {}, []
    for name, value in own.items():
        weight = weights.get(name, weights.get(name.replace(".vision.", ".language.")))
        if weight is None and name == "word_head.decoder.weight":
            weight = weights.get("tokens.word.weight")
        if weight is None or (weight.shape != value.shape and is_head(name)):
            if not is_head(name):
                raise UserError(f"{source} has no weight {name}; it was made with another model configuration")
            fresh.append(name)
        elif weight.shape != value.shape:
            raise UserError(
                f"{source}: {name} has shape {tuple(weight.shape)} but the configuration needs {tuple(value.shape)}; "
                "use the model and inputs sections that the checkpoint was trained with"
            )
        else:
            loaded[name] = weight
    if lost := [name for name in weights if name not in own and not is_head(name)]:
        if ".vision." in lost[0] and lost[0].replace(".vision.", ".language.") in own:
            raise UserError(
                f"{source} has separate visual weights ({lost[0]}) where model.split shares them; "
                "set model.split as in the checkpoint"
            )
        raise UserError(
            f"{source} has the weight {lost[0]}, which the model lacks; "
            "use the model and inputs sections that the checkpoint was trained with"
        )
    model.load_state_dict(loaded, strict=False)
    return fresh


def _grown(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the model's initial embeddings of images and times that the checkpoint does not have."""
    grown = {name: weight for name, weight in own.items() if name.startswith("regions.time.")} | dict(weights)
    index = "regions.image_index.weight"
    if index in grown and grown[index].shape[1:] == own[index].shape[1:]:
        grown[index] = torch.cat([grown[index], own[index][len(grown[index]) :]])
    return grown


def bert_arguments(folder: Path) -> dict[str, Any]:
    """Return the model arguments of a BERT checkpoint in the layout of `transformers`.

    Raises:
        UserError: the configuration is missing, or the model is of another type.

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
    """Load BERT into the language weights and copy these to vision; context has token type 0, text type 1.

    Raises:
        UserError: a weight is missing or has another shape.

    """
    weights = {_present_name(name): value for name, value in read_weights(folder / BERT_WEIGHTS).items()}
    own = model.state_dict()
    with torch.no_grad():
        for name, sources in _bert_names(model).items():
            if missing := [source for source in sources if source not in weights]:
                if name.startswith("word_head."):  # the checkpoint has no language head
                    continue
                raise UserError(f"{folder} lacks the weight {missing[0]}; give a complete BERT checkpoint")
            value = torch.cat([weights[source] for source in sources])
            if value.shape != own[name].shape:
                raise UserError(
                    f"{folder}: {sources[0]} has shape {tuple(value.shape)} but the model needs "
                    f"{tuple(own[name].shape)}; use the model section of the checkpoint"
                )
            own[name].copy_(value)
    copy_language_to_vision(model)


def _present_name(name: str) -> str:
    """Return the present name of a BERT weight: in the first checkpoints, norms have gamma and beta."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _bert_names(model: DimvlModel) -> dict[str, list[str]]:
    """Return, for each weight of the model, the names of the BERT weights that are stacked into it."""
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
