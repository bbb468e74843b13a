"""Scores of classes that are not kept."""

from dataclasses import replace

import numpy as np
import pytest

from dimvl.objectives import class_distribution
from tests.factories import make_regions


@pytest.mark.parametrize(
    ("scores", "other"),
    [([0.5, 0.25], 0.25), ([1.0, 0.0], 0), ([0.75, 0.75], 0)],
    ids=["some is missing", "nothing is missing", "independent scores above 1"],
)
def test_the_other_score_completes_the_kept_scores_to_one_and_is_never_negative(scores, other):
    regions = make_regions(0, count=1)
    regions = replace(regions, class_ids=np.array([[2, 0]]), class_scores=np.array([scores], dtype=np.float16))
    assert regions.other_scores.tolist() == [other] and regions.other_scores.dtype == np.float32
    first, second = np.array(scores) / max(1, sum(scores))
    distribution = class_distribution(regions, np.array([0]), 3)
    np.testing.assert_allclose(distribution, [[second, 0, first, other]], atol=1e-7)


def test_the_score_of_a_missing_class_is_not_counted():
    regions = replace(make_regions(0, count=2), class_ids=np.array([[1, -1], [-1, -1]]))
    assert regions.other_scores.tolist() == [0.25, 1]
    assert make_regions(0, count=0).other_scores.shape == (0,)
