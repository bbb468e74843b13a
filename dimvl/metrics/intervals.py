"""95% intervals of scores: by the bootstrap over images, and by Student's t over seeds.

A score is a function of sums over items: a mean is a sum over a count, corpus BLEU needs the sums of its n-gram counts.
So a bootstrap sample needs no item again, only how often each image was drawn, times the sums of each image (Koehn,
EMNLP 2004, for BLEU). The intervals are percentiles of the samples (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13).

What is drawn is the independent unit, the image: questions about one image are right or wrong together, and drawing
them one by one would give intervals that are too short (Field and Welsh, J. R. Statist. Soc. B 69, 2007). A record of
several images is one unit. What a score takes from all items together, such as the rarity of n-grams in CIDEr, stays
that of the whole file.

Letters: N items, U units, S numbers of an item, B bootstrap samples.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
REPLICATES = 10_000
"""Bootstrap samples; the ends of an interval then vary by about 2% of its length with the seed of the samples."""
FEWEST_SEEDS = 3
"""Seeds that an interval over seeds needs; that of two would be nearly four times as long as that of three."""
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""Half a 95% interval in standard errors, by degrees of freedom from 1; of more, the last one."""
_AT_ONCE = 2**20  # counts in memory at once, 8 bytes each

Score = Callable[[np.ndarray], np.ndarray]
"""From sums (..., S) of the numbers of items to the score (...); NaN if it is undefined."""


class Interval(NamedTuple):
    """A 95% interval."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference with this interval can be claimed."""
        return self.low > 0 or self.high < 0


def mean(sums: np.ndarray) -> np.ndarray:
    """Return sums of values over their count, (..., 2) -> (...); NaN if nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def unit_sums(numbers: np.ndarray, units: Sequence[Hashable]) -> np.ndarray:
    """Sum the numbers (N, S) of the items of each unit, (U, S), in the order in which units first occur."""
    places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    owners = np.array([places[unit] for unit in units], dtype=np.int64)
    columns = [np.bincount(owners, column, len(places)) for column in np.asarray(numbers, np.float64).T]
    return np.stack(columns, axis=1)


def draws(units: int, replicates: int = REPLICATES, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield bootstrap samples in blocks (b, U): how often each unit was drawn. Blocks need a few tens of megabytes."""
    generator, rows = np.random.default_rng(seed), max(1, _AT_ONCE // max(1, units))
    for start in range(0, replicates, rows):
        drawn = generator.integers(units, size=(min(rows, replicates - start), units))
        drawn += np.arange(len(drawn))[:, None] * units
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)


def resampled(sums: np.ndarray, replicates: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """Return the sums (B, S) of bootstrap samples of units with sums (U, S)."""
    return np.concatenate([counts @ sums for counts in draws(len(sums), replicates, seed)])


def percentiles(samples: Sequence[float] | np.ndarray) -> Interval | None:
    """Return the central 95% of samples without NaN; None if there are none."""
    known = np.asarray(samples)[~np.isnan(samples)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def mean_interval(
    values: Sequence[float] | np.ndarray,
    units: Sequence[Hashable] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """Return the interval of the mean of values (N,).

    Args:
        values: of the items, at least one; for a difference between two models, their differences on the same items.
        units: the image of each item; by default each item is a unit.
        replicates: B.
        seed: of the samples.

    """
    numbers = np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)
    sums = numbers if units is None else unit_sums(numbers, units)
    found = percentiles(mean(resampled(sums, replicates, seed)))
    assert found is not None
    return found


def t_interval(values: Sequence[float]) -> Interval | None:
    """Return the interval of the mean of values by seed, by Student's t; None for fewer than `FEWEST_SEEDS`."""
    if len(values) < FEWEST_SEEDS:
        return None
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return _around(float(np.mean(values)), error, len(values) - 1)


def welch_interval(values: Sequence[float], others: Sequence[float]) -> Interval | None:
    """Return the interval of the difference of two means over seeds; None if one has fewer than `FEWEST_SEEDS`.

    Welch's: the deviations may differ, and seed 0 of one setting has nothing to do with seed 0 of another (Welch,
    Biometrika 34, 1947). Degrees of freedom are rounded down.
    """
    if min(len(values), len(others)) < FEWEST_SEEDS:
        return None
    parts = [float(np.var(of, ddof=1)) / len(of) for of in (values, others)]
    spread = sum(part**2 / (len(of) - 1) for part, of in zip(parts, (values, others), strict=True))
    freedom = sum(parts) ** 2 / spread if spread else 1.0
    return _around(float(np.mean(values) - np.mean(others)), sum(parts) ** 0.5, int(freedom + 1e-9))


def _around(middle: float, error: float, freedom: int) -> Interval:
    half = STUDENT[min(freedom, len(STUDENT)) - 1] * error
    return Interval(middle - half, middle + half)
