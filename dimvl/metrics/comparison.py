"""Settings compared on the same items, with intervals over images and over seeds.

Over images: all evaluations are scored on the same bootstrap samples (`dimvl.metrics.intervals`); a setting's score in
a sample is the mean over its seeds, and the interval is of the differences (the paired bootstrap of Koehn, EMNLP 2004).
It says what other images would do to these models. Over seeds: Student's t on the scores of each seed. It says what
other seeds would do on these images. A difference is claimed only if each interval that there is excludes zero.

Letters: K seeds of a setting, B bootstrap samples.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dimvl.metrics.evaluations import Group, common_measures
from dimvl.metrics.intervals import Interval, percentiles, resampled, t_interval, unit_sums, welch_interval
from dimvl.metrics.measures import Place, scores_of, units_of

NO_CLAIM = "no difference can be claimed"


class Estimate(NamedTuple):
    """A score of a setting.

    Attributes:
        by_seed: (K,) score of each seed.
        samples: (B,) mean over seeds in each bootstrap sample of images; the same samples for all settings.

    """

    by_seed: Sequence[float]
    samples: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.by_seed))

    @property
    def over_images(self) -> Interval | None:
        """Interval over images."""
        return percentiles(self.samples)

    @property
    def over_seeds(self) -> Interval | None:
        """Interval over seeds; None for few."""
        return t_interval(self.by_seed)


class Difference(NamedTuple):
    """A score of a setting minus that of the baseline.

    Attributes:
        value: difference of the means over seeds.
        over_images: interval over images; None where the score is undefined in all samples.
        over_seeds: interval over seeds; None if one of the two has too few.

    """

    value: float
    over_images: Interval | None
    over_seeds: Interval | None

    @property
    def claimed(self) -> bool:
        """Whether there is a difference, by each interval that there is."""
        known = [interval for interval in (self.over_images, self.over_seeds) if interval is not None]
        return self.over_images is not None and all(interval.excludes_zero for interval in known)

    @property
    def verdict(self) -> str:
        """What can be said."""
        return NO_CLAIM if not self.claimed else "higher" if self.value > 0 else "lower"


def estimate(groups: Sequence[Group], seed: int = 0) -> dict[str, dict[Place, Estimate]]:
    """Score settings on the same bootstrap samples: name -> place of a score -> estimate.

    Args:
        groups: settings whose evaluations have the same items in the same order.
        seed: of the samples.

    """
    places, _ = common_measures(groups)
    every = [{place: evaluated.measures[place] for place in places} for group in groups for evaluated in group.seeds]
    units = units_of(list(groups[0].seeds[0].items.values()))
    numbers = [np.hstack([measure.numbers for measure in found.values()]) for found in every]
    sums = unit_sums(np.hstack(numbers), units)
    ends = np.cumsum([part.shape[1] for part in numbers])[:-1]
    drawn, whole = (np.split(part, ends, axis=-1) for part in (resampled(sums, seed=seed), sums.sum(axis=0)))
    scored = [
        (scores_of(found, samples), scores_of(found, total))
        for found, samples, total in zip(every, drawn, whole, strict=True)
    ]
    result = {}
    for group in groups:
        own, scored = scored[: len(group.seeds)], scored[len(group.seeds) :]
        result[group.name] = {
            place: Estimate(
                [float(values[place]) for _, values in own], np.mean([samples[place] for samples, _ in own], axis=0)
            )
            for place in places
        }
    return result


def differences(baseline: Mapping[Place, Estimate], other: Mapping[Place, Estimate]) -> dict[Place, Difference]:
    """Subtract the scores of the baseline from those of another setting of the same `estimate`."""
    return {
        place: Difference(
            own.mean - baseline[place].mean,
            percentiles(own.samples - baseline[place].samples),
            welch_interval(own.by_seed, baseline[place].by_seed),
        )
        for place, own in other.items()
    }
