"""The interface of every backbone: an image in, a map of features that covers it out.

Images are scaled to one square whatever their aspect, so that all share a forward pass and the map of an image does not
depend on the images beside it. Boxes are fractions of width and height, which scaling does not change.

Letters: B images, S pixels of a scaled side, F feature width, h and w cells of the map.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dimvl.cpu.packed import pack_convolutions, pack_linears
from dimvl.errors import UserError
from dimvl.files import Strict, check_values, read_json, write_json
from dimvl.files.weights import save_weights
from dimvl.regions.detectors.weights import fingerprint
from dimvl.showing import reason

LARGEST_SIDE = 4096  # pixels
SETTINGS = "looks.json"
WEIGHTS = "looks.safetensors"
REMEDY = "copy the folder again"
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels of ImageNet's images, from 0 to 1."""


@dataclass(frozen=True)
class Pixels:
    """What a backbone was trained to see.

    Attributes:
        mean: of each channel of an image from 0 to 1, which is subtracted.
        std: of each channel, which the rest is divided by.
        resample: the filter that scales images, as Pillow numbers them.

    """

    mean: Sequence[float] = MEAN
    std: Sequence[float] = SPREAD
    resample: int = Image.Resampling.BICUBIC


class LooksSettings(Strict):
    """`looks.json`."""

    kind: Literal["efficientnet_lite", "torchvision", "transformers"]
    name: str
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int


class Backbone(ABC):
    """A frozen network, ready for use.

    Args:
        name: readable name.
        network: its weights.
        side: S, the pixels that both sides of an image are scaled to.
        pixels: what it was trained to see.

    Attributes:
        width: F.

    Raises:
        UserError: the network has no map for images of this side.

    """

    kind: ClassVar[str]

    def __init__(self, name: str, network: Any, side: int, pixels: Pixels) -> None:
        if not 1 <= side <= LARGEST_SIDE:
            raise UserError(
                f"the side of backbone {name} is {side}; give a number of pixels from 1 to {LARGEST_SIDE:,}"
            )
        self.name = name
        self.network = network.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)
        self.side = side
        self.pixels = pixels
        self.width = self._width()

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, side: int | None = None) -> "Backbone":
        """Load what `save` wrote.

        Raises:
            UserError: a file is missing or damaged, or weights and settings do not fit together.

        """

    def _save_weights(self, folder: Path) -> None:
        """Write the weights beside `looks.json`."""
        save_weights(folder / WEIGHTS, self.network.state_dict())

    def _map(self, images: Tensor) -> Any:
        """Return the map (B, F, h, w) of normalised images (B, 3, S, S)."""
        return self.network(images)

    def save(self, folder: Path) -> None:
        """Write `looks.json` (settings) and the weights (safetensors) into a folder."""
        self._save_weights(folder)
        write_json(folder / SETTINGS, {"kind": self.kind, "name": self.name, "side": self.side, **vars(self.pixels)})

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights and of all else that determines the map at a given side."""
        seen = [*map(float, self.pixels.mean), *map(float, self.pixels.std), int(self.pixels.resample)]
        return fingerprint(self.network.state_dict(), self.kind, self._architecture, str(seen))

    @property
    def _architecture(self) -> str:
        """Name of the architecture, wherever the weights are from."""
        return self.name

    def _width(self) -> int:
        """Return F, by the map of a black image."""
        size = f"{self.side} x {self.side} pixels"
        try:
            states = self.feature_map(np.zeros((1, self.side, self.side, 3), np.uint8))
        except UserError:
            raise
        except Exception as error:  # a side that the network does not take, too little memory: many types
            raise UserError(
                f"backbone {self.name} computes no feature map for an image of {size} ({reason(error)}); use another "
                "backbone, or the image size that this one was trained with"
            ) from None
        if states.dim() != 4 or states.shape[2] != states.shape[3]:
            raise UserError(
                f"backbone {self.name} computes no feature map for an image of {size}: its output is "
                f"{' x '.join(map(str, states.shape))}; use another backbone"
            )
        return states.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device; returns the backbone."""
        self.network.to(device)
        return self

    def for_prediction(self) -> Self:
        """Pack the layers if they are on a CPU, for the same map in less time; it can no longer be saved."""
        _ = self.fingerprint  # which needs the plain weights
        self._pack()
        return self

    def _pack(self) -> None:
        pack_linears(self.network)
        pack_convolutions(self.network)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Scale an upright RGB image to (S, S, 3) uint8. Safe in any thread."""
        size, resample = (self.side, self.side), Image.Resampling(self.pixels.resample)
        return np.asarray(image.resize(size, resample, reducing_gap=3.0))  # a quarter of the time for 12 megapixels

    @torch.inference_mode()
    def feature_map(self, pixels: np.ndarray) -> Tensor:
        """Return the map (B, F, h, w) float32 of scaled images (B, S, S, 3) uint8.

        The map covers the whole image, and all its cells are of one size. A GPU computes it in bf16, with 8 bits of
        precision; the fingerprint is the same, as for other batches, since both only round.
        """
        images = torch.tensor(pixels).to(self.device).permute(0, 3, 1, 2).float()
        mean, std = (images.new_tensor(values)[:, None, None] * 255 for values in (self.pixels.mean, self.pixels.std))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            features: Tensor = self._map(images.sub_(mean).div_(std)).float()
        return features


def read_looks(folder: Path, side: int | None = None) -> tuple[str, int, Pixels]:
    """Read name, side and pixels of a `looks.json`; a side that is given replaces its own.

    Raises:
        UserError: the file is missing or has another form.

    """
    file = folder / SETTINGS
    settings = check_values(read_json(file), LooksSettings, file, REMEDY)
    pixels = Pixels(settings.mean, settings.std, settings.resample)
    return settings.name, settings.side if side is None else side, pixels
