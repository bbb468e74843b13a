import numpy as np
import pytest

from dimvl.concepts.measure import AveragePrecision, best_iou, is_inside


def test_average_precision_is_the_mean_precision_at_the_images_that_have_the_word():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    labels = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], bool)
    of_words = AveragePrecision(probabilities, labels).of_words()
    assert of_words[0] == pytest.approx((1 / 1 + 2 / 3) / 2) and np.isnan(of_words[1])


def test_an_image_that_counts_twice_is_one_that_is_there_twice():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.random((8, 5)), rng.random((8, 5)) < 0.5
    counts = np.array([2, 0, 1, 1, 3, 0, 1, 0])
    weighted = AveragePrecision(probabilities, labels).of_words(counts.astype(float))
    rows = np.repeat(np.arange(8), counts)
    # Copies share their rank, so compare with the exact weights and not with copies in an order.
    order = np.argsort(-probabilities[:, 0])
    ranked, hits = counts[order], counts[order] * labels[order, 0]
    expected = (np.cumsum(hits) / np.maximum(np.cumsum(ranked), 1) * hits).sum() / hits.sum()
    assert weighted[0] == pytest.approx(expected) and len(rows) == counts.sum()


def test_means_are_over_words_that_occur_and_intervals_contain_them():
    rng = np.random.default_rng(1)
    labels = rng.random((40, 6)) < 0.3
    labels[:, 5] = False
    probabilities = np.clip(labels * 0.5 + rng.random((40, 6)) * 0.7, 0, 1)
    means = AveragePrecision(probabilities, labels).means(
        {"all": np.arange(6), "verb": np.array([5]), "noun": np.array([0])}, 50, 0
    )
    assert means.keys() == {"all", "noun"} and means["all"].words == 5
    assert means["all"].low < means["all"].mean < means["all"].high


def test_points_and_boxes_are_compared_with_people_s_boxes():
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    assert is_inside(np.array([[0.2, 0.5], [0.6, 0.4]]), boxes).tolist() == [True, False]
    assert best_iou(np.array([[0, 0, 0.5, 1]]), boxes).tolist() == pytest.approx([0.5])
