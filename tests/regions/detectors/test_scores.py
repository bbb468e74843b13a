"""Average precision and attribute accuracy against values computed by hand."""

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.detectors.scores import attribute_accuracy, average_precision_50
from dimvl.regions.records import Detections

CLASSES = ("circle", "star")
ATTRIBUTES = {"size": ("small", "large"), "colour": ("red", "blue")}


def instances(*objects, images=1):
    """COCO instances of 100 x 200 images; an object is (image, class, [x, y, w, h], attributes)."""
    return {
        "images": [{"id": image + 1, "width": 100, "height": 200} for image in range(images)],
        "categories": [{"id": 1, "name": "star"}, {"id": 2, "name": "circle"}],
        "annotations": [
            {"image_id": image, "category_id": {"star": 1, "circle": 2}[name], "bbox": box, "attributes": attributes}
            for image, name, box, attributes in objects
        ],
    }


def detections(*regions):
    """Regions as (class, score, [x, y, w, h] in pixels of a 100 x 200 image, attribute ids)."""
    corners = np.array([region[2] for region in regions], dtype=np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return Detections(
        boxes=corners / np.array([100, 200, 100, 200], dtype=np.float32),
        features=np.zeros((len(regions), 1), np.float16),
        class_ids=np.array([[region[0]] for region in regions], dtype=np.int16).reshape(-1, 1),
        class_scores=np.array([[region[1]] for region in regions], dtype=np.float16).reshape(-1, 1),
        attribute_ids=np.array([region[3] for region in regions], dtype=np.int16).reshape(-1, 2),
        attribute_scores=np.ones((len(regions), 2), np.float16),
    )


LEFT, RIGHT, BELOW = [0, 0, 40, 40], [50, 0, 40, 40], [0, 100, 40, 40]
SMALL_RED, LARGE_BLUE = ["small", "red"], ["large", "blue"]


def test_finding_everything_and_nothing_else_scores_one():
    truth = instances((1, "circle", LEFT, SMALL_RED), (2, "star", RIGHT, LARGE_BLUE), images=2)
    found = {1: detections((0, 0.9, LEFT, (0, 2))), 2: detections((1, 0.4, RIGHT, (1, 3)))}
    assert average_precision_50(found, truth, CLASSES) == pytest.approx(1.0)


def test_average_precision_equals_the_value_by_hand():
    # Circles, best first: hit, miss, hit of 3 objects. Recall 1/3 at precision 1, recall 2/3 at precision 2/3.
    # Of the 101 recalls 0, .01, ... 1, those up to .33 (34) give 1, those up to .66 (33) give 2/3, the rest 0.
    truth = instances(*[(1, "circle", box, SMALL_RED) for box in (LEFT, RIGHT, BELOW)])
    found = {1: detections((0, 0.9, LEFT, (0, 2)), (0, 0.8, [60, 100, 30, 30], (0, 2)), (0, 0.7, RIGHT, (0, 2)))}
    assert average_precision_50(found, truth, CLASSES) == pytest.approx((34 + 33 * 2 / 3) / 101)


def test_scores_are_ranked_over_all_images():
    # The miss in image 2 outranks the hit in image 1: precision 1/2 everywhere.
    truth = instances((1, "circle", LEFT, SMALL_RED), images=2)
    found = {1: detections((0, 0.5, LEFT, (0, 2))), 2: detections((0, 0.75, LEFT, (0, 2)))}
    assert average_precision_50(found, truth, CLASSES) == pytest.approx(0.5)


def test_a_second_region_on_the_same_object_is_a_miss():
    truth = instances((1, "circle", LEFT, SMALL_RED), (1, "circle", RIGHT, SMALL_RED))
    found = {1: detections((0, 0.9, LEFT, (0, 2)), (0, 0.8, LEFT, (0, 2)), (0, 0.7, RIGHT, (0, 2)))}
    # Recall 1/2 at precision 1 (51 of the 101 recalls), recall 1 at precision 2/3.
    assert average_precision_50(found, truth, CLASSES) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_the_overlap_must_reach_one_half():
    truth = instances((1, "circle", [0, 0, 50, 50], SMALL_RED))
    half, less = [0, 0, 50, 25], [0, 0, 50, 24]  # the half is exact in fractions, too
    assert average_precision_50({1: detections((0, 0.9, half, (0, 2)))}, truth, CLASSES) == pytest.approx(1.0)
    assert average_precision_50({1: detections((0, 0.9, less, (0, 2)))}, truth, CLASSES) == 0.0


def test_the_mean_is_over_classes_that_have_objects():
    wrong_class = instances((1, "circle", LEFT, SMALL_RED), (1, "star", RIGHT, SMALL_RED))
    found = {1: detections((0, 0.9, LEFT, (0, 2)), (0, 0.8, RIGHT, (0, 2)))}
    assert average_precision_50(found, wrong_class, CLASSES) == pytest.approx(0.5)
    assert average_precision_50(found, instances((1, "circle", LEFT, SMALL_RED)), CLASSES) == pytest.approx(1.0)


def test_images_with_nothing_found_lower_recall():
    truth = instances((1, "circle", LEFT, SMALL_RED), (2, "circle", LEFT, SMALL_RED), images=3)
    whole_image = detections((-1, 0.0, [0, 0, 100, 200], (-1, -1)))
    found = {1: detections((0, 0.9, LEFT, (0, 2))), 2: whole_image, 3: detections()}
    assert average_precision_50(found, truth, CLASSES) == pytest.approx(51 / 101)
    assert average_precision_50({}, truth, CLASSES) == 0.0


def test_attributes_count_only_for_found_objects():
    truth = instances(
        (1, "circle", LEFT, ["small", "red"]),
        (1, "circle", RIGHT, ["large", "blue"]),
        (1, "star", BELOW, ["large", "red"]),
        (2, "star", BELOW, ["large", "red"]),
        images=2,
    )
    found = {
        1: detections(
            (0, 0.9, LEFT, (0, 2)),  # both right
            (0, 0.8, RIGHT, (1, 2)),  # colour wrong
            (0, 0.7, BELOW, (0, 3)),  # wrong class: not found
            (0, 0.6, LEFT, (1, 3)),  # the object is already matched
        )
    }
    scores = attribute_accuracy(found, truth, CLASSES, ATTRIBUTES)
    assert scores == pytest.approx({"size": 1.0, "colour": 0.5, "all": 0.5, "found": 0.5})


def test_a_region_without_attributes_is_wrong():
    truth = instances((1, "circle", LEFT, SMALL_RED))
    found = {1: detections((0, 0.9, LEFT, (-1, 2)))}
    assert attribute_accuracy(found, truth, CLASSES, ATTRIBUTES)["size"] == 0.0


def test_an_input_with_nothing_to_score_is_an_error():
    with pytest.raises(UserError, match="no annotated object is of the classes"):
        average_precision_50({}, instances(), CLASSES)
    with pytest.raises(UserError, match="no annotated object was found"):
        attribute_accuracy({}, instances((1, "circle", LEFT, SMALL_RED)), CLASSES, ATTRIBUTES)
