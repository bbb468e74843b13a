"""The forms of `detector.json`, one for each kind of detector, and networks that are built as it says."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from dimvl.errors import UserError
from dimvl.fields import mapping
from dimvl.files import Strict, check_values, read_json
from dimvl.files.weights import Unfilled
from dimvl.regions.detectors.base import KIND, SETTINGS
from dimvl.regions.detectors.network import DetectorSettings

REMEDY = "copy the detector's folder again"
LARGEST = 2**24
"""Bytes of `detector.json`; one of 10,000 class names has 2**18."""
Library = TypeVar("Library", bound="LibrarySettings")
Network = TypeVar("Network", bound=nn.Module)


class _Scenes(Strict):
    settings: DetectorSettings


class LibrarySettings(Strict):
    """`detector.json` of a detector of a library: its name, and the `parameters` that it was saved with."""

    kind: Literal["torchvision", "transformers", "open_vocabulary"] = "transformers"
    name: str | None = None
    shortest_side: int | None = None
    longest_side: int | None = None
    height: int | None = None
    width: int | None = None
    score_threshold: float | None = None
    nms_threshold: float | None = None
    min_regions: int | None = None
    max_regions: int | None = None
    whole_image: bool | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The parameters, for `RegionDetector.configure`."""
        return self.model_dump(exclude={"kind", "name", "classes", "vocabulary"}, exclude_none=True)


class TorchvisionSettings(LibrarySettings):
    """`detector.json` of a detector of torchvision."""

    name: str
    classes: tuple[str, ...]


class OpenVocabularySettings(LibrarySettings):
    """`detector.json` of an open-vocabulary detector."""

    name: str
    vocabulary: tuple[str, ...]


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the `detector.json` of a folder; a `UserError` if it is missing or is not a JSON object."""
    return mapping(read_json(folder / SETTINGS, LARGEST), (), str(folder / SETTINGS), REMEDY)


def scene_settings(folder: Path) -> DetectorSettings:
    """Read the settings of dimvl's own detector; a `UserError` if a value is missing, unknown or out of range."""
    values = {name: value for name, value in read_settings(folder).items() if name != KIND}
    return check_values({"settings": values}, _Scenes, folder / SETTINGS, REMEDY).settings


def library_settings(folder: Path, form: type[Library]) -> Library:
    """Read the settings of a detector of a library; raises as `scene_settings`."""
    return check_values(read_settings(folder), form, folder / SETTINGS, REMEDY)


def loaded(build: Callable[[], Network], weights: Mapping[str, Tensor], mismatch: str) -> Network:
    """Build a network and load its weights.

    Names and shapes are compared first with those of a network without memory (on torch's meta device), so that
    settings that belong to other weights cost nothing.

    Raises:
        UserError: with the message `mismatch`, if they differ.

    """
    with Unfilled(), torch.device("meta"):
        empty = build()
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    lacking = [name for name, _ in empty.named_parameters() if name not in weights]
    if lacking or any(shapes[name] != tensor.shape for name, tensor in weights.items() if name in shapes):
        raise UserError(mismatch)
    with Unfilled():
        network = build()
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError:
        raise UserError(mismatch) from None
    return network
