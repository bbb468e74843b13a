"""Vision models of the library transformers whose last hidden state is a grid.

Convolutional ones (ConvNeXt, ResNet, ...) return a map. Vision transformers (ViT, CLIP, SigLIP, DINOv2, ...) return a
row of tokens: a few of the whole image first (class, distillation, registers), which are dropped, then one for each
patch, row by row. A model with an image tower and a text tower gives its image tower.

transformers is imported when a model is opened; see detectors/transformers_models.py. Letters: B images, F feature
width, P patches along a side.
"""

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor

from dimvl.errors import UserError
from dimvl.files.weights import full_disk
from dimvl.regions.backbones.base import Backbone, Pixels, read_looks
from dimvl.regions.detectors.transformers_models import fetched, opening, whole_model

FIRST = 2  # tokens of the whole image, beside registers: class and distillation


class TransformersBackbone(Backbone):
    """A vision model of transformers, as `AutoModel` loads it."""

    kind = "transformers"

    @classmethod
    def create(cls, place: str | Path, side: int | None = None) -> "TransformersBackbone":
        """Open a folder of `save_pretrained`, or a name on the hub, `owner/name[@revision]`.

        Raises:
            UserError: transformers is not installed, or the model does not exist, has no safetensors weights or image
                processor, or has no grid for images of this side.

        """
        name = place.name if isinstance(place, Path) else place
        with opening(place, "backbone") as transformers:
            folder = fetched(place, "*.json", "*.safetensors")
            processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
            network = _image_tower(transformers, folder)
        pixels = Pixels(
            tuple(processor.image_mean) if processor.do_normalize else (0.0,) * 3,
            tuple(processor.image_std) if processor.do_normalize else (1.0,) * 3,
            int(processor.resample),
        )
        return cls(name, network, _side(processor) if side is None else side, pixels)

    @classmethod
    def load(cls, folder: Path, side: int | None = None) -> "TransformersBackbone":
        """See `Backbone.load`."""
        name, side, pixels = read_looks(folder, side)
        with opening(folder, "backbone") as transformers:
            network = _image_tower(transformers, folder)
        return cls(name, network, side, pixels)

    def _save_weights(self, folder: Path) -> None:
        with full_disk():
            self.network.save_pretrained(folder)

    @property
    def _architecture(self) -> str:
        return str(self.network.config.model_type)

    def _map(self, images: Tensor) -> Tensor:
        config, options = self.network.config, {}
        if "interpolate_pos_encoding" in inspect.signature(self.network.forward).parameters:
            options["interpolate_pos_encoding"] = self.side != getattr(config, "image_size", None)
        states = self.network(pixel_values=images, **options).last_hidden_state
        if states.dim() == 4:
            return states
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int) or self.side % patch:
            raise UserError(self._no_grid(patch))
        across = self.side // patch
        first = states.shape[1] - across**2
        if not 0 <= first <= FIRST + (getattr(config, "num_register_tokens", None) or 0):
            raise UserError(self._no_grid(None))
        return states[:, first:].transpose(1, 2).unflatten(2, (across, across))

    def _no_grid(self, patch: object) -> str:
        if isinstance(patch, int):
            sides = [patch * max(1, self.side // patch + more) for more in (0, 1)]
            return (
                f"backbone {self.name} divides images into patches of {patch} pixels, and {self.side} is not a "
                f"multiple; give {sides[0]} or {sides[1]} as --features-side"
            )
        return (
            f"the states of backbone {self.name} ({self._architecture}) cannot be mapped to positions in the image; "
            "use a plain vision transformer (ViT, CLIP, SigLIP, DINOv2) or a convolutional network"
        )


def _side(processor: Any) -> int:
    """Return the side that an image processor makes images of."""
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    sides = (size[name] for name in ("height", "shortest_edge", "longest_edge"))
    return int(next(side for side in sides if side is not None))


def _image_tower(transformers: Any, folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    vision = getattr(config, "vision_config", config)
    return whole_model(transformers.AutoModel, folder, spare="pooler", config=vision)  # which classifiers lack
