"""Adapters on disk, and put onto a base in memory.

ADAPTER/adapter.json               its configuration, the base's name and the SHA-256 of the base's weights
    adapter_model.safetensors      the trained weights alone, by peft's names; in a run its checkpoints instead
    adapter_config.json            LoRA only: peft's own description
    config.json, processor.json, tokenizer.json, trained_on.npy, training.json, README.md, checksums.json

A model with an adapter shares all other weights with its base, packed or not, so several of them in memory cost as much
as one base and the adapters. Nothing is switched: each is a model of its own.
"""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dimvl.adapters import lora
from dimvl.adapters.adding import add_adapter
from dimvl.adapters.prefix import Prefix
from dimvl.checkpoints import ADAPTER, MODEL
from dimvl.config import AdapterConfig
from dimvl.cpu.packed import PackedLayer
from dimvl.errors import UserError
from dimvl.files import RESTORE, Sha256, Strict, read_sealed_as, write_sealed
from dimvl.files.weights import save_weights, weight_shapes
from dimvl.model.convert import first_misfit, read_weights, saved_tensors
from dimvl.model.heads import is_head
from dimvl.model.model import DimvlModel, read_arguments

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT = "base_model.model."
"""What peft puts before the name of each weight in a file."""
Count = Annotated[int, Field(ge=0)]


class AdapterFile(Strict):
    """The form of `adapter.json`; only runs know the folder of the base."""

    adapter: AdapterConfig
    base: str
    base_sha256: Sha256
    base_folder: str | None = None
    trained: Count
    parameters: Count

    def check_base(self, folder: Path, base: DimvlModel, weights: Path, digest: str) -> None:
        """Check that a model is the base.

        Args:
            folder: the adapter.
            base: the model.
            weights: the file of its weights.
            digest: the SHA-256 of this file.

        Raises:
            UserError: it has another size, other weights, or an adapter of its own.

        """
        arguments, found = read_arguments(folder / MODEL, RESTORE), base.tokens.word.embedding_dim
        if base.trained is not None:
            raise UserError(f"{weights.parent} has an adapter already; put {folder} onto its base {self.base}")
        if arguments["width"] != found or arguments["layers"] != len(base.encoder.layers):
            raise UserError(
                f"{folder} is for a model of {arguments['layers']} layers, {arguments['width']} wide, and "
                f"{weights.parent} has {len(base.encoder.layers)}, {found} wide; give its base {self.base}"
            )
        if digest != self.base_sha256:
            raise UserError(
                f"{folder} was trained on {self.base} with weights of SHA-256 {self.base_sha256[:12]}..., and those of "
                f"{weights.parent} have {digest[:12]}...; give the base as it was, or train the adapter again"
            )


def read_adapter(folder: Path) -> AdapterFile:
    """Read `adapter.json`.

    Raises:
        UserError: the folder has none, or it is damaged.

    """
    if not (folder / ADAPTER).exists():
        raise UserError(f"{folder} has no {ADAPTER}; give the run or the export of an adapter")
    return read_sealed_as(folder / ADAPTER, AdapterFile, RESTORE)


def write_adapter(folder: Path, described: AdapterFile) -> None:
    """Write `adapter.json`."""
    write_sealed(folder / ADAPTER, described.model_dump(mode="json", exclude_none=True))


def name_of_base(folder: Path) -> str:
    """Return the name of a model on the Hugging Face hub, if it was downloaded from there, or else of its folder."""
    cached = [part for part in folder.resolve().parts if part.startswith("models--")]
    return cached[-1].removeprefix("models--").replace("--", "/", 1) if cached else folder.resolve().name


def adapted(base: DimvlModel, folder: Path, weights: Path) -> DimvlModel:
    """Put an adapter onto a base; the result shares the base's weights and has the heads of the adapter's task.

    Args:
        base: its model, which stays as it is; it may be packed for prediction.
        folder: the adapter.
        weights: its weights: in an export `adapter_model.safetensors`, in a run a checkpoint's.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those of such an adapter.

    """
    with torch.device("meta"):
        model = DimvlModel(**read_arguments(folder / MODEL, RESTORE))
        add_adapter(model, read_adapter(folder).adapter)
    files = {_file_name(name) if weights.name == ADAPTER_WEIGHTS else name: name for name in model.trained or ()}
    expected = {file: tuple(model.get_parameter(name).shape) for file, name in files.items()}
    if misfit := first_misfit(weight_shapes(weights, RESTORE), expected):
        raise UserError(f"{weights} does not fit {folder / ADAPTER}: {misfit}; {RESTORE}")
    device = base.tokens.word.weight.device
    own = {files[file]: weight.to(device) for file, weight in read_weights(weights).items()}
    _share(model, base, "", own)
    model.load_state_dict(own, strict=False, assign=True)
    if model.word_head is not None and "word_head.decoder.bias" in own:
        decoder = None if base.word_head is None else base.word_head.decoder
        if isinstance(decoder, PackedLayer):
            model.word_head.decoder = decoder.with_bias(own["word_head.decoder.bias"])
        else:
            model.word_head.decoder.weight = model.tokens.word.weight
    return model


def _share(model: nn.Module, base: DimvlModel, place: str, own: dict[str, Tensor]) -> None:
    """Replace each part of a model that has no weights of its own by that of the base, the same object."""
    for name, child in list(model.named_children()):
        inside = f"{place}{name}"
        if any(weight.startswith(f"{inside}.") for weight in own):
            _share(child, base, f"{inside}.", own)
        elif next(child.parameters(), None) is not None:
            setattr(model, name, base.get_submodule(inside.removesuffix(lora.BASE)))


def write_weights(folder: Path, model: DimvlModel, described: AdapterFile) -> AdapterFile:
    """Write the weights of an adapter as an export, and peft's description of it; return what `adapter.json` says.

    Of a prefix only keys and values are written, not the perceptron that made them.

    Args:
        folder: an existing folder.
        model: its model.
        described: the `adapter.json` of its run.

    """
    adapter, own = described.adapter, saved_tensors(model)
    if adapter.prefix is not None and isinstance(model.encoder.prefix, Prefix):
        own = {name: weight for name, weight in own.items() if not name.startswith("encoder.prefix.")}
        own["encoder.prefix.table.weight"] = model.encoder.prefix.rows()
        plain = adapter.prefix.model_copy(update={"hidden": None})
        adapter = adapter.model_copy(update={"prefix": plain})
    save_weights(folder / ADAPTER_WEIGHTS, {_file_name(name): weight for name, weight in own.items()})
    if adapter.lora is not None:
        heads = sorted({name.partition(".")[0] for name in own if is_head(name)})
        lora.write_config(folder, adapter.lora, described.base, heads)
    number = sum(weight.numel() for weight in own.values())
    parameters = described.parameters - described.trained + number
    changes = {"adapter": adapter, "base_folder": None, "trained": number, "parameters": parameters}
    return described.model_copy(update=changes)


def _file_name(name: str) -> str:
    """Return the name that peft gives a weight in a file."""
    return PEFT + name.replace(f".{lora.NAME}.", ".")
