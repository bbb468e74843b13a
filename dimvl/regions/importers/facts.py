"""What an import says at its end: what the features are like, and what was passed over."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dimvl.showing import short

SHOWN = 8
"""Names that a message lists."""
FREQUENT = 3
"""Most frequent classes that are named: with the vocabulary of another detector they look wrong at once."""


@dataclass
class Facts:
    """What the images of a source are like; `str` makes the line that the import prints."""

    names: Sequence[str] = ()  # of the classes
    width: int = 0
    dtypes: set[str] = field(default_factory=set)
    low: float = math.inf
    high: float = -math.inf
    images: int = 0
    empty: int = 0
    regions: int = 0
    zero_rows: int = 0
    classes: Counter[int] = field(default_factory=Counter)  # ids of the best class of each region that has one
    fewest: int = 2**62
    most: int = 0

    def add(self, features: np.ndarray, class_ids: np.ndarray) -> None:
        """Count an image.

        Args:
            features: (R, F) as in the source.
            class_ids: (R, K) as in the store.

        """
        self.images += 1
        self.empty += not len(features)
        self.fewest, self.most = min(self.fewest, len(features)), max(self.most, len(features))
        if features.size:
            self.width = features.shape[1]
            self.dtypes.add(features.dtype.name)
            self.low, self.high = min(self.low, float(features.min())), max(self.high, float(features.max()))
            self.regions += len(features)
            self.zero_rows += int((~features.any(axis=1)).sum())
            if len(self.names):
                known = class_ids >= 0
                with_class = known.any(axis=1)
                self.classes.update(class_ids[with_class, known[with_class].argmax(axis=1)].tolist())

    @property
    def with_class(self) -> int:
        """Number of regions with a class."""
        return self.classes.total()

    def __str__(self) -> str:
        if not self.regions:
            return f"features: none; {self.images:,} images without regions"
        empty = f", {self.empty:,} images without regions" if self.empty else ""
        spread = f"{self.fewest:,} to {self.most:,}" if self.fewest < self.most else f"{self.most:,}"
        frequent = ", ".join(self.names[place] for place, _ in self.classes.most_common(FREQUENT))
        return (
            f"features: {self.width:,} wide, {' and '.join(sorted(self.dtypes))} in the source, values "
            f"{self.low:.4g} to {self.high:.4g}, {_percent(self.zero_rows, self.regions)} of rows all zero; "
            f"{spread} regions per image (mean {self.regions / self.images:.4g}){empty}; "
            f"{_percent(self.with_class, self.regions)} of regions with a class"
            f"{f', most often {frequent}' if frequent else ''}"
        )


def _percent(part: int, whole: int) -> str:
    """A share, rounded down; 0 % only if there is none."""
    share = int(1000 * part / whole) / 10
    return "below 0.1 %" if part and not share else f"{share:g} %"


def others_than(wanted: str, names: Sequence[str]) -> tuple[str, ...]:
    """Phrase for `Source.passed_over` about files that are not named as `wanted`."""
    return (f"{len(names):,} not named {wanted} ({', '.join(map(short, names[:SHOWN]))})",) if names else ()
