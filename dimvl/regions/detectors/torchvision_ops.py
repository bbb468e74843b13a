"""The only import of torchvision, with operators in PyTorch where its compiled ones do not load.

torchvision's compiled operators belong to one build of torch. With another build (a CUDA torchvision and a CPU-only
torch, for example) they do not load, and `import torchvision` fails. Detection needs three of them to exist and two to
work, `nms` and `roi_align`; this module then defines them and imports again. Where the builds match it only imports.
The replacement lacks roi_pool, the position-sensitive and deformable operators and torchvision's own image decoders.

Letters: N boxes or RoIs, B images, C channels, P bins along an axis, G samples of a bin along an axis.
"""

import functools
import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dimvl.errors import UserError

logger = logging.getLogger(__name__)

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
NMS_BLOCK = 256  # rows of the overlap matrix computed at once: few calls, and memory linear in the number of boxes

_libraries: list[torch.library.Library] = []  # torch forgets a library's operators when the library is collected


@functools.cache
def import_torchvision() -> ModuleType:
    """Import torchvision, replacing its compiled operators where they do not load.

    torchvision loads them itself, under whatever name its release gives them; a second definition of an operator that
    loads later would abort the process. So operators are defined here only after that, where there are none.

    Raises:
        ImportError: torchvision is not installed.
        UserError: it does not fit torch in another way.

    """
    with _without_compiler():
        try:
            torchvision = importlib.import_module("torchvision")
        except RuntimeError as error:  # "operator torchvision::nms does not exist"
            if compiled_operators_load():
                raise UserError(f"torchvision does not fit torch ({error}); install the release that matches") from None
        else:
            if compiled_operators_load():
                return torchvision
        logger.info("torchvision's compiled operators do not fit this torch; using PyTorch ones for nms and roi_align")
        _define_operators()
        torchvision = importlib.import_module("torchvision")
    # torchvision calls these before each operator; left alone, they send roi_align through torch.compile, for minutes.
    # The second module is hidden behind the function of the same name in torchvision.ops.
    for name in ("torchvision.extension", "torchvision.ops.roi_align"):
        sys.modules[name]._has_ops = lambda: True  # type: ignore[attr-defined]
    return torchvision


def compiled_operators_load() -> bool:
    """Whether an import of torchvision has loaded its compiled operators."""
    return hasattr(torch.ops.torchvision, "nms") and not _libraries


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Keep torchvision's import from loading torch's compiler, four fifths of its import time, for one name.

    The name decides whether deterministic CUDA pooling is compiled; its stand-in loads the compiler if it is called.
    """
    if "torch._dynamo" in sys.modules:
        yield
        return

    def is_compile_supported(device_type: str) -> bool:
        return importlib.import_module("torch._dynamo.utils").is_compile_supported(device_type)

    stand_ins = {"torch._dynamo": ModuleType("torch._dynamo"), "torch._dynamo.utils": ModuleType("torch._dynamo.utils")}
    stand_ins["torch._dynamo.utils"].is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _define_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    library.impl("nms", nms, "CPU")
    library.impl("roi_align", roi_align, "CompositeImplicitAutograd")  # consists of torch operators, so autograd works
    _libraries.append(library)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression, equal to torchvision's compiled operator.

    Args:
        boxes: (N, 4) corners x1, y1, x2, y2, on the CPU.
        scores: (N,).
        iou_threshold: a box is dropped when its overlap with a better kept box is greater than this.

    Returns:
        int64 indices of the kept boxes, best first; equal scores keep their order.

    """
    order = scores.argsort(descending=True, stable=True)
    sorted_boxes = boxes[order].detach()
    if sorted_boxes.dtype not in (torch.float32, torch.float64):
        sorted_boxes = sorted_boxes.float()
    corners = sorted_boxes.numpy()
    alive = np.ones(len(corners), dtype=bool)
    for start in range(0, len(corners), NMS_BLOCK):
        rows = start + np.flatnonzero(alive[start : start + NMS_BLOCK])
        # The compiled operator divides in the boxes' own type and compares in double.
        overlapping = _iou(corners[rows], corners[start:]) > np.float64(iou_threshold)
        for row, overlaps in zip(rows, overlapping, strict=True):
            if alive[row]:
                alive[row + 1 :] &= ~overlaps[row + 1 - start :]
    return order[torch.from_numpy(np.flatnonzero(alive))]


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Overlaps (N, M) of two sets of boxes; empty boxes give NaN, which is above no threshold."""
    left, top, right, bottom = (first[:, corner, None] for corner in range(4))
    others = np.ascontiguousarray(second.T)
    width = np.maximum(np.minimum(right, others[2]) - np.maximum(left, others[0]), 0)
    shared = width * np.maximum(np.minimum(bottom, others[3]) - np.maximum(top, others[1]), 0)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (first, second)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return shared / (areas[0][:, None] + areas[1][None, :] - shared)


def roi_align(
    maps: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign (He et al., Mask R-CNN, 2017), equal to torchvision's compiled operator.

    Every bin is a weighted sum of pixels, so all bins of all RoIs are one `embedding_bag` over the pixels with channels
    last. Only `maps` gets gradients.

    Args:
        maps: (B, C, height, width) feature maps.
        rois: (N, 5): map index, then x1, y1, x2, y2 in units of the original image.
        spatial_scale: feature pixels per unit of the boxes.
        pooled_height: bins along y.
        pooled_width: bins along x.
        sampling_ratio: samples along each side of a bin; 0 or less takes one per feature pixel, rounded up.
        aligned: shift by half a pixel; otherwise a RoI is at least one feature pixel wide and high.

    Returns:
        (N, C, pooled_height, pooled_width).

    """
    channels, height, width = maps.shape[1:]
    if len(rois) == 0:
        return maps.sum() * maps.new_zeros(0, channels, pooled_height, pooled_width)  # keeps the graph
    pixels = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    with torch.no_grad():
        corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
        starts, sides = corners[:, :2], corners[:, 2:] - corners[:, :2]  # (N, 2) as x, y
        if not aligned:
            sides = sides.clamp(min=1.0)
        bins = sides / sides.new_tensor([pooled_width, pooled_height])
        if sampling_ratio > 0:
            grids = torch.full_like(bins, sampling_ratio).long()
            distinct_grids = [[sampling_ratio, sampling_ratio]]
        else:
            grids = bins.ceil().clamp(min=0).long()
            distinct_grids = grids.unique(dim=0).tolist()
        first_pixels = rois[:, 0].long() * (height * width)
        places, weights, counts, members = [], [], [], []
        for across, down in distinct_grids:
            member = (grids == grids.new_tensor([across, down])).all(dim=1).nonzero()[:, 0]
            x_index, x_weight = _axis_samples(starts[member, 0], bins[member, 0], across, pooled_width, width)
            y_index, y_weight = _axis_samples(starts[member, 1], bins[member, 1], down, pooled_height, height)
            rows = first_pixels[member, None, None] + y_index * width  # (N, P, 2G)
            places.append((rows[:, :, None, :, None] + x_index[:, None, :, None, :]).flatten())
            samples = max(across * down, 1)
            weights.append((y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :] / samples).flatten())
            counts.append(torch.full((len(member) * pooled_height * pooled_width,), 4 * across * down))
            members.append(member)
        lengths = torch.cat(counts).to(maps.device)
        offsets = lengths.cumsum(0) - lengths
        order = torch.cat(members).argsort()
    pooled = F.embedding_bag(
        torch.cat(places), pixels, offsets, mode="sum", per_sample_weights=torch.cat(weights).to(pixels.dtype)
    )
    return pooled.view(-1, pooled_height, pooled_width, channels)[order].permute(0, 3, 1, 2)


def _axis_samples(starts: Tensor, bins: Tensor, grid: int, pooled: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the pixels along one axis on both sides of each bin's samples, and their linear weights.

    For RoIs with `starts` (N,) and lengths of `bins` (N,) in pixels, `grid` G samples in each of `pooled` P bins, and
    `size` pixels along the axis. Returns (N, P, 2G) int64 indices and weights, 0 where a sample is outside the map.
    """
    bin_numbers = torch.arange(pooled, device=starts.device, dtype=starts.dtype)
    fractions = (torch.arange(grid, device=starts.device, dtype=starts.dtype) + 0.5) / max(grid, 1)
    steps = bin_numbers[:, None] + fractions  # (P, G)
    position = starts[:, None, None] + steps * bins[:, None, None]  # (N, P, G)
    inside = ((position >= -1) & (position <= size)).to(position.dtype)  # a margin of one pixel repeats the border
    position = position.clamp(0, size - 1)
    low = position.floor()
    high_weight = (position - low) * inside
    low_weight = inside - high_weight
    low_index = low.long()
    high_index = (low_index + 1).clamp(max=size - 1)
    return torch.cat([low_index, high_index], -1), torch.cat([low_weight, high_weight], -1)
