"""From which score a text is kept: the filter's own decision, or what has a wanted precision on a sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dimvl.bootstrap.config import KeepConfig
from dimvl.errors import UserError


@dataclass(frozen=True)
class Threshold:
    """Texts with at least this score are kept.

    Attributes:
        score: the least that is kept; 0.5 is the matching head's own two-way decision.
        texts: number of texts in the sample that it was chosen on; 0 without one.
        precision: share of the kept texts of the sample that fit; None without one.
        recall: share of the fitting texts of the sample that are kept; None without one.

    """

    score: float = 0.5
    texts: int = 0
    precision: float | None = None
    recall: float | None = None


def choose_threshold(scores: Sequence[float], labels: Sequence[bool], wanted: KeepConfig) -> Threshold:
    """Choose the lowest threshold with the wanted precision, which keeps most.

    Args:
        scores: of the texts of the sample.
        labels: whether each fits its image.
        wanted: the precision, and the sample for messages.

    Raises:
        UserError: no threshold has it.

    """
    values, fits = np.array(scores), np.array(labels, dtype=bool)
    order = np.argsort(-values, kind="stable")
    last = np.append(np.diff(values[order]) != 0, True)  # equal scores are kept together
    precisions = np.cumsum(fits[order]) / np.arange(1, len(values) + 1)
    enough = np.flatnonzero(last & (precisions >= wanted.precision))
    if not len(enough):
        best = float(precisions[last].max())
        raise UserError(
            f"keep.precision is {wanted.precision:g}, and no threshold reaches it on {wanted.sample} (at most "
            f"{best:.3f}); lower keep.precision, or train a better filter"
        )
    place = int(enough[-1])
    recall = float(fits[order][: place + 1].sum() / fits.sum())
    return Threshold(float(values[order][place]), len(values), float(precisions[place]), recall)
