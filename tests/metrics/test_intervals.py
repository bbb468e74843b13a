"""Intervals by the bootstrap and by Student's t, against closed forms."""

import numpy as np
import pytest

from dimvl.metrics import intervals
from dimvl.metrics.intervals import (
    Interval,
    draws,
    mean,
    mean_interval,
    percentiles,
    resampled,
    t_interval,
    unit_sums,
    welch_interval,
)

RANDOM = np.random.default_rng(0)


def test_the_interval_of_a_mean_is_that_of_the_closed_form() -> None:
    values = RANDOM.normal(2, 3, 400)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / 20
    # 10,000 samples give each end to about 2% of the length; the mean of 400 values is nearly normal.
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)
    assert (low, high) == mean_interval(values) and (low, high) != mean_interval(values, seed=1)


def test_questions_about_one_image_are_drawn_together() -> None:
    images = RANDOM.normal(0, 1, 300)
    same, units = np.repeat(images, 4), np.repeat(np.arange(300), 4).tolist()
    alone, together = mean_interval(same), mean_interval(same, units)
    assert together == pytest.approx(mean_interval(images)), "questions with one answer say nothing more"
    length, shorter = together.high - together.low, alone.high - alone.low
    assert length == pytest.approx(2 * shorter, rel=0.05), "1 / sqrt(4) if each of four questions counts"
    order = RANDOM.permutation(1200)
    moved = mean_interval(same[order], [units[place] for place in order])
    assert moved == pytest.approx(together, abs=0.1 * length), "units are found wherever their items are"


def test_blocks_of_samples_change_nothing_and_every_sample_has_as_many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate([*draws(7, 50)])
    assert whole.shape == (50, 7) and set(whole.sum(axis=1)) == {7}
    monkeypatch.setattr(intervals, "_AT_ONCE", 30)
    blocks = [*draws(7, 50)]
    assert len(blocks) == 13 and np.array_equal(np.concatenate(blocks), whole)
    sums = unit_sums(RANDOM.random((9, 2)), list("abcabcdef"))
    assert np.allclose(resampled(sums, 5), np.concatenate([*draws(6, 5)]) @ sums)


def test_a_mean_over_nothing_is_undefined_and_left_out() -> None:
    assert np.isnan(mean(np.zeros(2))) and percentiles([np.nan, np.nan]) is None
    assert percentiles([np.nan, 3.0, 3.0]) == Interval(3.0, 3.0)


def test_an_interval_over_seeds_is_student_s_and_needs_three() -> None:
    half = 4.303 * 0.1 / 3**0.5  # 2 degrees of freedom
    assert t_interval([0.5, 0.6, 0.7]) == pytest.approx((0.6 - half, 0.6 + half))
    assert t_interval([0.5, 0.6]) is None and welch_interval([0.5, 0.6], [0.1, 0.2, 0.3]) is None
    assert t_interval([0.0, 1.0] * 50) == pytest.approx((0.5 - 0.1048, 0.5 + 0.1048), abs=1e-3), "2.086 from 20 on"


def test_the_difference_of_two_means_over_seeds_is_welch_s() -> None:
    one, other = [1.0, 2.0, 3.0], [0.0, 0.1, 0.2]
    # Variances 1 and .01, each over 3: standard error .5802, 2.04 degrees of freedom.
    assert welch_interval(one, other) == pytest.approx((1.9 - 4.303 * 0.5802, 1.9 + 4.303 * 0.5802), abs=1e-3)
    four = 2.776 * (2 / 3) ** 0.5  # equal variances: 4 degrees of freedom
    assert welch_interval(one, [0.0, 1.0, 2.0]) == pytest.approx((1 - four, 1 + four))
    assert welch_interval([1.0] * 3, [0.5] * 3) == (0.5, 0.5)
    assert Interval(0.1, 0.2).excludes_zero and not Interval(-0.1, 0.2).excludes_zero
