"""Regions without a detector: the cells of a grid, and the whole image.

Grids of a backbone's map take the place of detected regions in ViLT (Kim et al., ICML 2021) and in grid features (Jiang
et al., CVPR 2020).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dimvl.errors import UserError
from dimvl.regions.records import check_boxes

DEFAULT_CELLS = 7
MOST_CELLS = 64


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the regions are without a detector.

    Attributes:
        cells: G, for G x G equal cells of each image; 0 for none.
        whole_image: whether the whole image is the last region; it is in any case if there is no other.

    Raises:
        UserError: the number of cells is out of range.

    """

    cells: int = DEFAULT_CELLS
    whole_image: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.cells, bool) or not isinstance(self.cells, int) or not 0 <= self.cells <= MOST_CELLS:
            raise UserError(f"grid is {self.cells!r}; give a whole number from 1 to {MOST_CELLS}")

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings that change the regions."""
        return {"grid": self.cells, "whole_image": self.whole_image}

    def configured(self, options: Mapping[str, Any]) -> "Grid":
        """Return a grid with other `parameters`."""
        changed = {**self.parameters, **options}
        return Grid(cells=changed["grid"], whole_image=changed["whole_image"])

    def boxes(self, given: np.ndarray | None = None) -> np.ndarray:
        """Return (R, 4) float32 fractions: given boxes, cells row by row, the whole image."""
        edges = np.linspace(0, 1, self.cells + 1, dtype=np.float32)
        top, left = (side.reshape(-1) for side in np.meshgrid(edges[:-1], edges[:-1], indexing="ij"))
        bottom, right = (side.reshape(-1) for side in np.meshgrid(edges[1:], edges[1:], indexing="ij"))
        parts = [np.stack([left, top, right, bottom], axis=1)]
        if given is not None:
            check_boxes(given := np.asarray(given, np.float32).reshape(-1, 4), "an image")
            parts.insert(0, given)
        if self.whole_image or not sum(map(len, parts)):
            parts.append(np.array([[0, 0, 1, 1]], np.float32))
        return np.concatenate(parts)
