"""What the loop knows of validation: a score to compute, the best one so far, and when to stop early.

The best so far is saved with every checkpoint, so a resumed run stops where an undisturbed one does.
"""

from collections.abc import Callable
from typing import NamedTuple

from dimvl.tasks.task import ValidationScore


class Validation(NamedTuple):
    """When and how to validate.

    Attributes:
        score: computes the score; every rank calls it.
        every: steps between validations.
        patience: validations without improvement after which to stop; 0 never stops.

    """

    score: Callable[[], ValidationScore]
    every: int
    patience: int

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether to validate after `step` of `steps` steps; the last one always is."""
        return step % self.every == 0 or step == steps

    def gives_up(self, best: "Best | None") -> bool:
        """Return whether the score has not improved for too long."""
        return best is not None and best.misses >= self.patience > 0


class Best(NamedTuple):
    """The best score so far, its step, and the number of validations since then."""

    score: float
    step: int
    misses: int = 0

    @classmethod
    def after(cls, best: "Best | None", score: float, step: int) -> "Best":
        """Return the best after one more score; a tie is not an improvement."""
        return cls(score, step) if best is None or score > best.score else best._replace(misses=best.misses + 1)
