"""The interface of what names regions by their features, beside or in place of a detector's classes.

Letters: R regions of an image, F feature width, K names of a region.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dimvl.regions.records import Extractor

NAMES_KEPT = 5
"""K, names that a region gets, best first."""
SETTINGS = "called.json"


class Namer(ABC):
    """A model that names regions, ready for use.

    Attributes:
        network: its weights.
        names: all names that it can give; ids count them from 0.
        fingerprint: SHA-256 of its weights, names and whatever else changes what it says.

    """

    network: Any
    names: tuple[str, ...]
    fingerprint: str

    @abstractmethod
    def name(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Name the regions of one image.

        Args:
            features: (R, F); the whole image is last if it is a region.

        Returns:
            Ids (R, K) int64 and scores (R, K) float32 from 0 to 1, best first; K is `NAMES_KEPT`, or the number of
            names if that is smaller.

        """

    def arrays(self, features: np.ndarray, kind: str) -> dict[str, Any]:
        """Name the regions of one image, as `name` does, in the arrays of `Detections`.

        Args:
            features: (R, F).
            kind: `class` or `attribute`.

        """
        ids, scores = self.name(torch.from_numpy(features.astype(np.float32)))
        return {
            f"{kind}_ids": ids.cpu().numpy().astype(np.int16),
            f"{kind}_scores": scores.cpu().numpy().astype(np.float16),
        }

    @abstractmethod
    def check_features(self, extractor: Extractor) -> None:
        """Raise a `UserError` if the names were not made for the features of this extractor."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write `called.json` (its kind, names and settings) and the weights (safetensors) into a folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> "Namer":
        """Load what `save` wrote.

        Raises:
            UserError: a file is missing or damaged, or weights and settings do not fit together.

        """

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device; returns the namer."""
        self.network.to(device)
        return self
