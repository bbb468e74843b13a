"""Which of a detector's candidates become regions: threshold, non-maximum suppression, fewest and most, whole image.

Stands behind every detector, so that the same numbers mean the same everywhere. What is kept is always the beginning of
one list: all candidates, best first, without those that a better kept one of their class covers.

Letters: N candidates, R regions, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from dimvl.errors import UserError
from dimvl.regions.detectors.torchvision_ops import nms

FIRST_LOOK = 256  # candidates looked at before more are: most pictures need no more


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What decides which candidates become regions.

    Attributes:
        score_threshold: a region's score is greater than this; those that fill up `min_regions` are excepted.
        nms_threshold: overlap (IoU) above which the worse of two candidates of one class goes; 1 keeps all.
        min_regions: fewest regions of a picture, filled up with the best below the threshold as far as there are any.
        max_regions: most regions of a picture, the whole image not counted.
        whole_image: whether the whole image follows as a region without a class.

    Raises:
        UserError: a value lies outside its range.

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
        """Lay options over this selection; a limit that was not given makes way for one that was."""
        given = {field.name: options[field.name] for field in fields(self) if field.name in options}
        if "min_regions" not in given and "max_regions" in given:
            given["min_regions"] = max(min(self.min_regions, given["max_regions"]), 0)
        if "max_regions" not in given and "min_regions" in given:
            given["max_regions"] = max(self.max_regions, given["min_regions"])
        return replace(self, **given)


def select(boxes: Tensor, scores: Tensor, labels: Tensor, selection: Selection) -> Tensor:
    """Choose among the candidates of one picture.

    A candidate cannot cover a better one, so the result is the same whether few candidates are looked at or all; as
    few are as it takes.

    Args:
        boxes: (N, 4) corners in any unit.
        scores: (N,).
        labels: (N,) int64; candidates cover those of their own label only.
        selection: what to keep.

    Returns:
        int64 indices (R,) of the kept, best first; equal scores keep their order.

    """
    scores = scores.detach().cpu()
    order = scores.argsort(descending=True, stable=True)
    above = int((scores > selection.score_threshold).sum())
    boxes, labels = boxes.detach().cpu()[order], labels.cpu()[order]
    looked_at = max(FIRST_LOOK, 2 * selection.max_regions)
    while True:
        kept = _uncovered(boxes[:looked_at], scores[order[:looked_at]], labels[:looked_at], selection.nms_threshold)
        enough = looked_at >= above and len(kept) >= selection.min_regions
        if enough or looked_at >= len(order) or len(kept) >= selection.max_regions:
            break
        looked_at *= 2
    good = int((kept < above).sum())
    return order[kept[: min(max(good, selection.min_regions), selection.max_regions)]]


def _uncovered(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Return the rising indices of candidates, given best first, that no better kept one of their label covers."""
    if threshold >= 1:
        return torch.arange(len(boxes))
    # Each label gets a place of its own on the plane; in float64 the shift leaves the overlaps as they are.
    apart = boxes.double() + (labels * (boxes.abs().max() + 1) * 2)[:, None] if len(boxes) else boxes
    return nms(apart, scores, threshold)


def label_first(probabilities: Tensor, labels: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Return the best few classes of each region, its own label in front.

    Detectors that judge each class by itself may find a region by a class that is not its most probable one.

    Args:
        probabilities: (R, K).
        labels: (R,) int64 by which the regions were found.
        columns: classes to keep, the label included.

    Returns:
        (R, columns) int64 classes and their probabilities.

    """
    ranked = probabilities.scatter(1, labels[:, None], torch.inf)
    ids = ranked.topk(min(columns, probabilities.shape[1]), dim=1).indices
    return ids, probabilities.gather(1, ids)
