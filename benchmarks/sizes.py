"""The size of the models that predict, and weights that tell regions from words."""

from dataclasses import dataclass

import torch

from dimvl.model.model import DimvlModel


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Base size, unless told otherwise, on the regions of bottom-up attention."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    inner_width: int = 3072
    regions: int = 100
    feature_width: int = 2048

    @property
    def arguments(self) -> dict[str, int]:
        """Tell what a model asks of it."""
        return {
            "feature_width": self.feature_width,
            "layers": self.layers,
            "width": self.width,
            "heads": self.heads,
            "inner_width": self.inner_width,
        }


def part_modalities(model: DimvlModel) -> None:
    """Change the visual weights, which begin as copies of those of language: mixing them up must change results."""
    for name, parameter in model.named_parameters():
        if ".vision." in name:
            parameter.data += 0.5 * parameter.std(correction=0) * torch.randn_like(parameter)
