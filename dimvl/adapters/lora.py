"""LoRA through the package peft: injected into the encoder, merged into its weights, and peft's description of it.

Hu et al., "LoRA" (ICLR 2022): W x becomes W x + alpha / rank B A x, with B = 0 at first. peft wraps each matrix in
place, so the model keeps its class and all other names; the matrix itself gets `.base_layer` into its name. Q, K and V
are one matrix here, whose change shares its A. The word head's decoder is never wrapped, because merging would also
change the word embedding, which it shares.
"""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dimvl.config import LoraConfig
from dimvl.errors import UserError
from dimvl.model.model import DimvlModel
from dimvl.regions.detectors.torchvision_ops import import_torchvision

NAME = "default"
"""peft's own name for an adapter, which is in the names of its weights."""
BASE = ".base_layer"


def targets(lora: LoraConfig) -> str:
    """Return the pattern of the names of the matrices that are changed, as peft takes it."""
    rows = "(?:vision|language)" if lora.modality == "both" else lora.modality
    inside = {"ffn": r"\.(?:inner|outer)"}
    names = [rf"{name}\.{rows}{inside.get(name, '')}" for name in lora.sublayers]
    return rf"encoder\.layers\.\d+\.(?:{'|'.join(names)})"


def inject(model: DimvlModel, lora: LoraConfig) -> None:
    """Add the changes to a model, which compute 0; all other weights are frozen.

    Raises:
        UserError: peft is not installed.

    """
    peft = _peft()
    on_meta = next(model.parameters()).is_meta
    peft.inject_adapter_in_model(_config(peft, lora), model, adapter_name=NAME, low_cpu_mem_usage=on_meta)
    del model.peft_config  # of use only to `PeftModel`


def merge(model: DimvlModel) -> None:
    """Put the changes into copies of the encoder's matrices, which get their own names again."""
    for name, layer in list(_changed(model)):
        plain = deepcopy(layer.get_base_layer())
        with torch.no_grad():
            plain.weight += layer.get_delta_weight(NAME)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain)


def write_config(folder: Path, lora: LoraConfig, base: str, heads: list[str]) -> None:
    """Write peft's `adapter_config.json`.

    Args:
        folder: where to.
        lora: the configuration.
        base: name of the base, best that on the Hugging Face hub.
        heads: names of the heads that were trained too.

    """
    config = _config(_peft(), lora, inference_mode=True, base_model_name_or_path=base, modules_to_save=heads or None)
    config.save_pretrained(str(folder))


def _config(peft: Any, lora: LoraConfig, **more: Any) -> Any:
    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets(lora), bias="none", **more
    )


def _changed(model: nn.Module) -> Iterator[tuple[str, Any]]:
    layers = _peft().tuners.lora.LoraLayer
    return ((name, module) for name, module in model.named_modules() if isinstance(module, layers))


def _peft() -> Any:
    try:
        import_torchvision()  # which transformers imports, and peft imports transformers
        import peft
    except ImportError:
        raise UserError("adapter.lora needs the package peft; install it with pip install 'dimvl[adapters]'") from None
    return peft
