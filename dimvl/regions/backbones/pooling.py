"""Features of boxes, cells and whole images from the maps of a backbone.

Letters: B images, F feature width, h and w cells of a map, R boxes of an image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dimvl.regions.detectors.torchvision_ops import import_torchvision

SMALLEST = 1e-3  # cells; RoIAlign takes no sample of a box without an area, and one of this


def pool(maps: Tensor, boxes: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean of a map over boxes, by RoIAlign with one bin (He et al., Mask R-CNN, 2017).

    The map is read at the centres of as many equal parts of the box as cells fit beside each other, rounded up. So a
    box within a cell has the interpolated value at its centre, as has a box without an area, and the whole image has
    the mean of the map.

    Args:
        maps: (B, F, h, w) that cover their images.
        boxes: B times (R, 4) corners x1, y1, x2, y2 as fractions of width and height.

    Returns:
        B times (R, F). They depend on their own map and box alone.

    """
    size = maps.new_tensor([maps.shape[3], maps.shape[2]])
    rows = []
    for number, own in enumerate(boxes):
        corners = own.to(maps) * torch.cat([size, size])
        centres, sides = (corners[:, :2] + corners[:, 2:]) / 2, (corners[:, 2:] - corners[:, :2]).clamp(min=SMALLEST)
        rows.append(
            torch.cat([own.new_full((len(own), 1), number).to(maps), centres - sides / 2, centres + sides / 2], dim=1)
        )
    pooled = import_torchvision().ops.roi_align(maps, torch.cat(rows), output_size=1, sampling_ratio=-1, aligned=True)
    return list(pooled[:, :, 0, 0].split([len(own) for own in boxes]))


def pool_cells(maps: Tensor, cells: int) -> Tensor:
    """Return the means (B, G x G, F) of maps over G x G cells of the image, row by row from the top left."""
    return F.adaptive_avg_pool2d(maps, cells).flatten(2).transpose(1, 2)
