"""Which candidates become regions, against the most obvious way to say it."""

import numpy as np
import pytest
import torch

import dimvl.regions.detectors.selection
from dimvl.errors import UserError
from dimvl.regions.detectors.selection import Selection, label_first, select
from dimvl.regions.geometry import iou


def candidates(seed, count=60, labels=3):
    random = np.random.default_rng(seed)
    corners = random.random((count, 2, 2)) * 100
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    return boxes, random.permutation(count).astype(np.float32) / count, random.integers(0, labels, count)


def obvious(boxes, scores, labels, selection):
    """Keep each candidate, best first, that no kept one of its label overlaps too much."""
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        covered = any(
            labels[index] == labels[other]
            and iou(boxes[index][None], boxes[other][None])[0, 0] > selection.nms_threshold
            for other in kept
        )
        wanted = scores[index] > selection.score_threshold or len(kept) < selection.min_regions
        if not covered and wanted and len(kept) < selection.max_regions:
            kept.append(index)
    return kept


@pytest.mark.parametrize("first_look", [1, 7, 256])  # however few are looked at first
@pytest.mark.parametrize(
    "given",
    [
        {"score_threshold": 0.5, "min_regions": 0},
        {"score_threshold": 0.9, "min_regions": 12},
        {"score_threshold": 0.0, "min_regions": 0, "max_regions": 9},
        {"score_threshold": 0.0, "min_regions": 1000, "max_regions": 1000},
        {"score_threshold": 0.3, "nms_threshold": 1.0},
        {"score_threshold": 0.3, "nms_threshold": 0.0},
        {"score_threshold": 1.0, "min_regions": 0},
    ],
    ids=str,
)
def test_selection_equals_an_obvious_loop(monkeypatch, given, first_look):
    monkeypatch.setattr(dimvl.regions.detectors.selection, "FIRST_LOOK", first_look)
    selection = Selection(**given)
    for seed in range(5):
        boxes, scores, labels = candidates(seed)
        kept = select(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), selection)
        assert kept.tolist() == obvious(boxes, scores, labels, selection)


def test_boxes_suppress_only_boxes_of_their_own_class():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    chosen = Selection(min_regions=0)
    assert select(boxes, scores, torch.tensor([0, 1, 0]), chosen).tolist() == [1, 2]
    assert select(boxes, scores, torch.tensor([0, 0, 0]), chosen).tolist() == [1]


def test_no_candidates_give_no_regions():
    none = select(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), Selection())
    assert none.tolist() == []


def test_a_limit_that_is_not_given_yields_to_the_one_that_is():
    assert Selection().changed({"max_regions": 4}) == Selection(min_regions=4, max_regions=4)
    assert Selection().changed({"min_regions": 150}) == Selection(min_regions=150, max_regions=150)
    assert Selection().changed({"score_threshold": 0.7, "side": 3}) == Selection(score_threshold=0.7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"score_threshold": 1.5}, r"score_threshold is 1\.5; give a number from 0 to 1"),
        ({"nms_threshold": -0.1}, "nms_threshold is -0.1"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"min_regions": -1}, "min_regions is -1; give 0 or more"),
        ({"max_regions": 0, "min_regions": 0}, "max_regions is 0"),
        ({"min_regions": 9, "max_regions": 5}, "max_regions is 5 but min_regions is 9"),
    ],
)
def test_a_value_out_of_range_is_rejected(given, message):
    with pytest.raises(UserError, match=message):
        Selection(**given)


def test_the_own_label_comes_first_with_its_score():
    probabilities = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.1]])
    ids, scores = label_first(probabilities, torch.tensor([2, 0]), 2)
    assert ids.tolist() == [[2, 1], [0, 1]]
    torch.testing.assert_close(scores, torch.tensor([[0.3, 0.6], [0.5, 0.2]]))
