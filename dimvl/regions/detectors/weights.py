"""A detector's weights on disk, and their fingerprint."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dimvl.errors import UserError
from dimvl.files import open_regular
from dimvl.files.weights import LARGEST, load_weights
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
