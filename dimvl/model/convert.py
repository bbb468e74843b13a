"""Loading of weights: exactly into a trained model, and of BERT or dimvl checkpoints into models with other heads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from dimvl.errors import UserError
from dimvl.fields import mapping
from dimvl.files import RESTORE, Strict, check_values, read_json
from dimvl.files.reading import SMALL
from dimvl.files.weights import Unfilled, load_weights, weight_shapes
from dimvl.model.heads import is_head
from dimvl.model.model import Activation, DimvlModel, Size, copy_language_to_vision, read_arguments
from dimvl.showing import short

RENAMED = {"regions.feature_deviation": "regions.feature_std"}
"""Name of a weight before version 0.2 -> its present name."""
BERT_WEIGHTS = "model.safetensors"
"""The file of the weights in the folder of a BERT checkpoint."""


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what a file of a model has: weights and buffers by name, of one with an adapter only the adapter's.

    A tied weight occurs once.
    """
    weights, own = dict(model.named_parameters()), getattr(model, "trained", None)
    if own is not None:
        return {name: weight for name, weight in weights.items() if name in own}
    return {**weights, **dict(model.named_buffers())}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of this or an earlier version of dimvl.

    Raises:
        UserError: it is missing or damaged.

    """
    return {RENAMED.get(name, name): weight for name, weight in load_weights(path, RESTORE).items()}


def load_trained(config: Path, file: Path) -> DimvlModel:
    """Build the model of a `config.json` with the weights of a file, which must be exactly the model's.

    The header of the file is compared before anything large is built.

    Args:
        config: the model's arguments.
        file: its weights.

    Raises:
        UserError: one of the files is missing or damaged, or the weights are not those of this model.

    """
    arguments = read_arguments(config, RESTORE)
    shapes = {RENAMED.get(name, name): shape for name, shape in weight_shapes(file, RESTORE).items()}
    found = len({name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")})
    if arguments["layers"] != found:
        raise UserError(f"{config} has {arguments['layers']} layers but {file} has {found}; {RESTORE}")
    with Unfilled(), torch.device("meta"):
        try:
            expected = {name: tuple(value.shape) for name, value in saved_tensors(DimvlModel(**arguments)).items()}
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{config} does not describe a model ({error}); {RESTORE}") from None
    if misfit := first_misfit(shapes, expected):
        raise UserError(f"{file} does not fit {config}: {misfit}; {RESTORE}")
    with Unfilled():
        model = DimvlModel(**arguments)
    model.load_state_dict(read_weights(file), strict=False)  # a tied weight has two names there and one in the file
    return model


def first_misfit(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """Describe the first weight whose shape in a file is not that of the model; empty if there is none."""
    for name in (*wanted, *found):
        if found.get(name) != wanted.get(name):
            return f"{name} is {found.get(name, 'missing')} in the file and {wanted.get(name, 'missing')} in the model"
    return ""


def load_pretrained(model: DimvlModel, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Load a checkpoint into a model to fine-tune, which may have other heads and a wider split.

    Where the model has separate visual weights and the checkpoint has shared ones, these are copied: a shared
    checkpoint becomes a decoupled one that computes the same function (DiMBERT: the module plugs into other models).
    If the model takes more images than the checkpoint, or times, these embeddings stay newly initialised. Words of
    regions that only the model has begin with a weight of 0, so that it computes the same function.

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
    """Add the model's initial embeddings of images, times and words of regions that the checkpoint does not have."""
    added = ("regions.time.", "regions.words")
    grown = {name: weight for name, weight in own.items() if name.startswith(added)}
    if "regions.words_norm.weight" in grown:
        grown["regions.words_norm.weight"] = torch.zeros_like(grown["regions.words_norm.weight"])
    grown |= weights
    index = "regions.image_index.weight"
    if index in grown and grown[index].shape[1:] == own[index].shape[1:]:
        grown[index] = torch.cat([grown[index], own[index][len(grown[index]) :]])
    return grown


class BertConfig(Strict):
    """What is read of the `config.json` of a BERT checkpoint in the layout of `transformers`."""

    model_config = ConfigDict(extra="ignore")

    position_embedding_type: Literal["absolute"] = "absolute"
    hidden_act: Activation
    vocab_size: Size
    num_hidden_layers: Size
    hidden_size: Size
    num_attention_heads: Size
    intermediate_size: Size
    max_position_embeddings: Size
    layer_norm_eps: float = Field(gt=0, lt=1)


def bert_arguments(folder: Path) -> dict[str, Any]:
    """Return the model arguments of a BERT checkpoint in the layout of `transformers`.

    Raises:
        UserError: the configuration is missing or damaged, or the model is of another type.

    """
    file, remedy = folder / "config.json", "give a folder with a BERT checkpoint of transformers"
    values = mapping(read_json(file, SMALL), (), str(file), remedy)
    if values.get("model_type") != "bert":
        raise UserError(f"{folder} holds a model of type {short(values.get('model_type'))}; only 'bert' can be loaded")
    found = check_values(values, BertConfig, file, remedy)
    if found.hidden_size % found.num_attention_heads:
        raise UserError(
            f"{file}: hidden_size {found.hidden_size} is not a multiple of num_attention_heads "
            f"{found.num_attention_heads}; {remedy}"
        )
    return {
        "vocabulary": found.vocab_size,
        "layers": found.num_hidden_layers,
        "width": found.hidden_size,
        "heads": found.num_attention_heads,
        "inner_width": found.intermediate_size,
        "max_positions": found.max_position_embeddings,
        "activation": found.hidden_act,
        "norm_eps": found.layer_norm_eps,
    }


def check_bert(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Compare the result of `bert_arguments` with the header of the weights, before a model is built.

    Raises:
        UserError: the weights are missing, damaged or of another size.

    """
    file = folder / BERT_WEIGHTS
    shapes = {_present_name(name): shape for name, shape in weight_shapes(file, "give a complete checkpoint").items()}
    width, layers = arguments["width"], {name.split(".")[2] for name in shapes if name.startswith("encoder.layer.")}
    wanted = {
        "embeddings.word_embeddings.weight": (arguments["vocabulary"], width),
        "embeddings.position_embeddings.weight": (arguments["max_positions"], width),
        "encoder.layer.0.intermediate.dense.weight": (arguments["inner_width"], width),
    }
    if len(layers) != arguments["layers"]:
        raise UserError(
            f"{file} has {len(layers)} layers but config.json says {arguments['layers']}; copy both from the same "
            "checkpoint"
        )
    if misfit := first_misfit({name: shapes[name] for name in wanted if name in shapes}, wanted):
        raise UserError(f"{file} does not fit its config.json: {misfit}; copy both from the same checkpoint")


def check_sizes(folder: Path, arguments: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Compare the section `model` of a configuration with a BERT checkpoint; fewer layers are its lowest ones.

    Raises:
        UserError: a size or the activation differs, or the checkpoint has fewer layers.

    """
    other = [name for name in ("width", "heads", "inner_width", "activation") if model[name] != arguments[name]]
    other += ["layers"] if model["layers"] > arguments["layers"] else []
    if other:
        raise UserError(
            f"model.{other[0]} is {model[other[0]]} but {folder} (model.bert) has {arguments[other[0]]}; set "
            + " ".join(f"model.{name}={arguments[name]}" for name in other)
        )


def load_bert(model: DimvlModel, folder: Path) -> None:
    """Load BERT into the language weights and copy these to vision; context has token type 0, text type 1.

    A model with fewer layers than the checkpoint gets its lowest ones.

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
