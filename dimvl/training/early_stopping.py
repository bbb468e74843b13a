"""What the loop knows of validation: a score to ask for, the best one so far, and when to give up.

The best so far is saved with every checkpoint, so a run that is resumed stops where an undisturbed one stops.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Validation(NamedTuple):
    """What the loop asks of a validation.

    Attributes:
        score: gives the score, the higher the better; every rank calls it.
        every: steps between two of them.
        patience: misses after which to stop, 0 for never.
        predictions: what the last score was found for, on a fixed sample; `score` fills it.

    """

    score: Callable[[], float]
    every: int
    patience: int
    predictions: Sequence[Mapping[str, Any]] = ()

    def is_due(self, step: int, steps: int) -> bool:
        """Tell whether a score is wanted after `step` of `steps` steps; the last one always has one."""
        return step % self.every == 0 or step == steps

    def gives_up(self, best: "Best | None") -> bool:
        """Tell whether the score has not risen for too long."""
        return best is not None and best.misses >= self.patience > 0


class Best(NamedTuple):
    """The best score so far, the step that it was found at, and the number of validations since then."""

    score: float
    step: int
    misses: int = 0

    @classmethod
    def after(cls, best: "Best | None", score: float, step: int) -> "Best":
        """Return the best after one more score; a tie is no better."""
        return cls(score, step) if best is None or score > best.score else best._replace(misses=best.misses + 1)
