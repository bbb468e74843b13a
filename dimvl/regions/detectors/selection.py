"""Which of a detector's candidates become regions: threshold, non-maximum suppression, minimum, maximum, whole image.

Every detector selects with it, so that the settings mean the same for all. The result is always the beginning of one
list: all candidates, best first, without those that overlap a better kept one of their class too much.

Letters: N candidates, R regions, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from dimvl.errors import UserError
from dimvl.regions.detectors.torchvision_ops import nms

FIRST_LOOK = 256  # candidates of the first round; few images need a second


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The settings that decide which candidates become regions.

    Attributes:
        score_threshold: minimum score of a region, exclusive.
        nms_threshold: overlap (IoU) above which the worse of two candidates of one class is dropped; 1 keeps all.
        min_regions: minimum number of regions per image; the best candidates below the threshold are added to reach it.
        max_regions: maximum number of regions per image, not counting the whole image.
        whole_image: whether the whole image is appended as a region without a class.

    Raises:
        UserError: a value is out of range.

    """

    score_threshold: float = 0.2
    nms_threshold: float = 0.5
    min_regions: int = 10
    max_regions: int = 100
    whole_image: bool = False

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a number from 0 to 1")
        if self.min_regions < 0:
            raise UserError(f"min_regions is {self.min_regions}; give 0 or more")
        if self.max_regions < max(self.min_regions, 1):
            raise UserError(
                f"max_regions is {self.max_regions} but min_regions is {self.min_regions}; "
                "give at least 1 and no fewer than the minimum"
            )

    def changed(self, options: Mapping[str, Any]) -> "Selection":
        """Apply options to this selection; a limit that is not among them yields to the one that is."""
        given = {field.name: options[field.name] for field in fields(self) if field.name in options}
        if "min_regions" not in given and "max_regions" in given:
            given["min_regions"] = max(min(self.min_regions, given["max_regions"]), 0)
        if "max_regions" not in given and "min_regions" in given:
            given["max_regions"] = max(self.max_regions, given["min_regions"])
        return replace(self, **given)


def select(boxes: Tensor, scores: Tensor, labels: Tensor, selection: Selection) -> Tensor:
    """Choose among the candidates of one image.

    A candidate never suppresses a better one, so only as many are examined as it takes; the result is that of all.

    Args:
        boxes: (N, 4) corners in any unit.
        scores: (N,).
        labels: (N,) int64; candidates suppress those of their own label only.
        selection: what to keep.

    Returns:
        int64 indices (R,) of the kept candidates, best first; equal scores keep their order.

    """
    scores = scores.detach().cpu()
    order = scores.argsort(descending=True, stable=True)
    above = int((scores > selection.score_threshold).sum())
    boxes, labels = boxes.detach().cpu()[order], labels.cpu()[order]
    examined = max(FIRST_LOOK, 2 * selection.max_regions)
    while True:
        kept = _unsuppressed(boxes[:examined], scores[order[:examined]], labels[:examined], selection.nms_threshold)
        enough = examined >= above and len(kept) >= selection.min_regions
        if enough or examined >= len(order) or len(kept) >= selection.max_regions:
            break
        examined *= 2
    good = int((kept < above).sum())
    return order[kept[: min(max(good, selection.min_regions), selection.max_regions)]]


def _unsuppressed(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Rising indices of the candidates, given best first, that no better kept one of their label suppresses."""
    if threshold >= 1:
        return torch.arange(len(boxes))
    # Each label is shifted to an area of its own; in float64 the shift does not change the overlaps.
    apart = boxes.double() + (labels * (boxes.abs().max() + 1) * 2)[:, None] if len(boxes) else boxes
    return nms(apart, scores, threshold)


def label_first(probabilities: Tensor, labels: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Return the best classes of each region, its own label first.

    A detector that judges each class independently may find a region by a class that is not its most probable one.

    Args:
        probabilities: (R, K).
        labels: (R,) int64 that the regions were found by.
        columns: number of classes to keep, the label included.

    Returns:
        (R, columns) int64 classes and their probabilities.

    """
    ranked = probabilities.scatter(1, labels[:, None], torch.inf)
    ids = ranked.topk(min(columns, probabilities.shape[1]), dim=1).indices
    return ids, probabilities.gather(1, ids)
