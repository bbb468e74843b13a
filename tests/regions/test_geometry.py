"""Box arithmetic against values computed by hand."""

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from dimvl.regions.geometry import (
    area,
    clip,
    coverage,
    fractions_to_pixels,
    geometry_features,
    iou,
    pixels_to_fractions,
    xywh_to_corners,
)

HALF = np.array([[0.0, 0.0, 0.5, 1.0]])  # the left half of the image
QUARTER = np.array([[0.25, 0.0, 0.75, 0.5]])
WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])
NOTHING = np.array([[0.3, 0.3, 0.3, 0.8]])
FAR = np.array([[0.9, 0.9, 1.0, 1.0]])


def test_area_is_width_times_height_and_never_negative():
    swapped = np.array([[0.5, 0.5, 0.25, 0.25]])
    assert_array_equal(area(np.concatenate([HALF, QUARTER, NOTHING, swapped])), [0.5, 0.25, 0, 0])


def test_iou_is_the_intersection_over_the_union():
    # HALF and QUARTER share 0.25 x 0.5 = 0.125 of 0.5 + 0.25 - 0.125 = 0.625.
    assert_allclose(iou(HALF, np.concatenate([HALF, QUARTER, FAR, WHOLE])), [[1, 0.2, 0, 0.5]])


def test_iou_of_two_empty_boxes_is_zero():
    assert_array_equal(iou(NOTHING, NOTHING), [[0]])


def test_coverage_is_the_share_of_the_target():
    boxes = np.concatenate([WHOLE, HALF, QUARTER])
    targets = np.concatenate([HALF, QUARTER, FAR, NOTHING])
    assert_allclose(coverage(boxes, targets), [[1, 1, 1, 0], [1, 0.5, 0, 0], [0.25, 1, 0, 0]])


def test_coverage_of_no_boxes_or_no_targets_has_their_shape():
    none = np.zeros((0, 4))
    assert coverage(none, WHOLE).shape == (0, 1)
    assert coverage(WHOLE, none).shape == (1, 0)


def test_geometry_features_are_corners_sides_and_area():
    boxes = np.array([[0.25, 0.5, 0.75, 0.75]], dtype=np.float32)
    features = geometry_features(boxes)
    assert_array_equal(features, [[0.25, 0.5, 0.75, 0.75, 0.5, 0.25, 0.125]])
    assert features.dtype == np.float32


def test_boxes_are_clipped_at_the_border_of_the_image():
    assert_array_equal(clip(np.array([[-0.5, 0.2, 1.5, 0.7]])), [[0, 0.2, 1, 0.7]])


def test_pixels_and_fractions_convert_by_width_and_height():
    pixels = np.array([[20, 10, 100, 50]])
    fractions = pixels_to_fractions(pixels, width=200, height=50)
    assert_allclose(fractions, [[0.1, 0.2, 0.5, 1.0]], rtol=1e-7)
    assert fractions.dtype == np.float32
    assert_allclose(fractions_to_pixels(fractions, width=200, height=50), pixels, rtol=1e-6)


def test_coco_boxes_become_corners():
    assert_array_equal(xywh_to_corners(np.array([[10, 20, 30, 5]])), [[10, 20, 40, 25]])


def test_integer_boxes_have_an_iou():
    # 10 x 10 against its right half; integer boxes must not cause integer division.
    assert_allclose(iou(np.array([[0, 0, 10, 10]]), np.array([[5, 0, 10, 10]])), [[0.5]])
