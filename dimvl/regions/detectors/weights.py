"""A detector's weights on disk, and their fingerprint."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dimvl.errors import UserError
from dimvl.files import open_regular
from dimvl.files.weights import LARGEST, load_weights
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.showing import reason


def fingerprint(weights: Mapping[str, Tensor], *more: str) -> str:
    """SHA-256 of named weights, in the order of their names, and of further settings that determine the features."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for text in more:
        digest.update(text.encode())
    return digest.hexdigest()


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read named weights: safetensors, or `.pth` without pickle.

    Raises:
        UserError: the file is missing or damaged, or holds something else.

    """
    if file.suffix == ".safetensors":
        return load_weights(file, "replace the file, or copy the detector's whole folder")
    open_regular(file, LARGEST).close()
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a forbidden pickle, a torn archive, a wrong header: many types
        raise UserError(
            f"{file} cannot be read as plain weights ({reason(error)}); replace the file, or save a state_dict alone"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("model"), dict):  # as torchvision's own training script saves
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} does not hold weights by name; save the model's state_dict")
    return state


def torchvision_weights(name: str, weights: str | None) -> tuple[dict[str, Tensor], Any]:
    """Read weights for a network of torchvision, or download them once.

    Args:
        name: the network.
        weights: a file, or a name of torchvision; by default torchvision's best.

    Returns:
        The weights, and what torchvision says of them: None for a file.

    Raises:
        UserError: they do not exist, or cannot be read or downloaded.

    """
    if weights is not None and Path(weights).suffix in (".pth", ".pt", ".safetensors"):
        return read_weights(Path(weights)), None
    members = import_torchvision().models.get_model_weights(name)
    if weights is not None and weights not in members.__members__:
        raise UserError(
            f"{name} has no weights {weights}; use {', '.join(members.__members__)}, or a file ending in .pth or "
            ".safetensors"
        )
    chosen = members[weights or "DEFAULT"]
    try:
        state = torch.hub.load_state_dict_from_url(
            chosen.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights {chosen.name} of {name} cannot be downloaded ({error}); give a file of weights"
        ) from None
    return dict(state), chosen
