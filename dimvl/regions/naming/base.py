"""The interface of what names regions by their features, beside or in place of a detector's classes.

Letters: R regions of an image, F feature width, K names of a region.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from dimvl.regions.records import Extractor

NAMES_KEPT = 5
"""K, names that a region gets, best first."""
SETTINGS = "called.json"


class Namer(ABC):
    """A model that names regions, ready for use.

    Attributes:
        names: all names that it can give; ids count them from 0.
        fingerprint: SHA-256 of its weights, names and whatever else changes what it says.
        feature_width: F of the features that it reads; None if it reads those of any width.

    """

    names: tuple[str, ...]
    fingerprint: str
    feature_width: int | None

    @abstractmethod
    def name(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Name the regions of one image.

        Args:
            features: (R, F); the whole image is last if it is a region.

        Returns:
            Ids (R, K) int64 and scores (R, K) float32 from 0 to 1, best first; K is `NAMES_KEPT`, or the number of
            names if that is smaller.

        """

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

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device; returns the namer."""
