"""Scores of classes that are not kept."""

from dataclasses import replace

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.objectives import class_distribution
from tests.factories import FEATURE_WIDTH, make_extractor, make_regions


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


def test_regions_of_other_float_and_integer_types_become_those_that_models_take():
    regions = make_regions(0, count=2)
    wide = {name: array.astype("f8" if array.dtype.kind == "f" else "i8") for name, array in regions.arrays.items()}
    checked = replace(regions, **wide).checked(make_extractor())
    dtypes = {name: array.dtype for name, array in checked.arrays.items()}
    assert (dtypes["features"], dtypes["boxes"], dtypes["class_ids"]) == (np.float32, np.float32, np.int16)
    for name, array in regions.arrays.items():
        np.testing.assert_array_equal(checked.arrays[name], array)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"boxes": np.array([[10, 20, 60, 80], [0, 0, 5, 5]])}, "give fractions of its width and height, not pixels"),
        ({"boxes": np.array([[0.5, 0, 0.2, 1]] * 2)}, "whose corners are swapped"),
        ({"boxes": np.full((2, 4), np.nan)}, "boxes that are not finite"),
        ({"features": np.zeros((2, FEATURE_WIDTH), np.int64)}, "features of int64; give float16 or float32"),
        ({"features": np.zeros((3, FEATURE_WIDTH))}, r"features of shape \(3, 6\) and float64; give \(2, columns\)"),
        ({"features": np.array([["a"] * FEATURE_WIDTH] * 2)}, "features of shape .*; give"),
        ({"class_ids": np.full((2, 2), 70_000)}, "class_ids that are not 16-bit integers"),
        ({"class_ids": np.full((2, 2), 3)}, "class id 3 but the extractor has 3 names"),
        ({"attribute_scores": np.full((2, 2), 7.5)}, "attribute score 7.5; give probabilities"),
        ({"width": 0.5}, "width 0.5; give its size in pixels"),
    ],
)
def test_regions_that_are_not_what_their_attributes_say_are_refused(changes, problem):
    with pytest.raises(UserError, match=problem):
        replace(make_regions(0, count=2), **changes).checked(make_extractor())
