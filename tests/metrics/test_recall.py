"""Ranks of retrieval: equal to an obvious slow reference, with ties, two stages and folds."""

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.metrics import recall
from dimvl.metrics.recall import Candidates, folds, inverse, mean_scores, ranks, recall_scores, texts_of_other_images

RNG = np.random.default_rng(7)
OWNERS = [[0], [0], [1], [2], [2, 4], [2], [3], [4, 0], [4]]
"""Images of nine texts; image 5 has none."""


def slow_rank(first: np.ndarray, right: list[int], candidates: list[int], second: np.ndarray) -> int:
    """Sort a gallery: candidates first, then by score, then wrong before right.

    A right candidate is none if a wrong answer of the same score is not.
    """
    if not right:
        return 0
    out = [score for place, score in enumerate(first) if place not in candidates and place not in right]
    scored = dict(zip(candidates, second, strict=True))
    candidates = [place for place in candidates if place not in right or first[place] not in out]
    scores = {place: (0, -scored[place]) for place in candidates}
    scores |= {place: (1, -score) for place, score in enumerate(first) if place not in scores}
    order = sorted(scores, key=lambda place: (*scores[place], place in right))
    return 1 + min(order.index(place) for place in right)


def made(queries: int, gallery: int, levels: int) -> np.ndarray:
    return RNG.integers(0, levels, (queries, gallery)).astype(np.float32)


@pytest.mark.parametrize("levels", [2, 4, 1000])
@pytest.mark.parametrize("size", [0, 1, 3, 6])
def test_ranks_are_those_of_sorting_with_wrong_before_right_among_equals(levels: int, size: int) -> None:
    for _ in range(20):
        scores = made(len(OWNERS), 6, levels)
        for first, right in ((scores, OWNERS), (scores.T, inverse(OWNERS, 6))):
            shuffled = RNG.random(first.shape)  # which of equals are candidates
            places = np.lexsort((shuffled, -first))[:, :size]
            second = made(len(first), size, levels)
            expected = [
                slow_rank(row, own, chosen.tolist(), again)
                for row, own, chosen, again in zip(first, right, places, second, strict=True)
            ]
            assert ranks(first, right, Candidates(places, second)).tolist() == expected
            if not size:
                assert ranks(first, right).tolist() == expected


def test_chunks_and_blocks_of_any_size_give_the_same_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = made(len(OWNERS), 6, 5)
    candidates = Candidates(np.array([RNG.permutation(6)[:2] for _ in OWNERS]), made(len(OWNERS), 2, 5))
    whole = ranks(scores, OWNERS, candidates).tolist()
    assert ranks(iter([scores[:2], scores[2:7], scores[7:]]), OWNERS, candidates).tolist() == whole
    monkeypatch.setattr(recall, "_AT_ONCE", 13)
    assert ranks(scores, OWNERS, candidates).tolist() == whole


def test_a_model_that_scores_all_pairs_alike_finds_nothing() -> None:
    scores = np.zeros((4, 20), np.float32)
    found = recall_scores(ranks(scores, [[query] for query in range(4)]))
    assert found == {"r1": 0, "r5": 0, "r10": 0, "mean_recall": 0, "median_rank": 20, "mean_rank": 20, "count": 4}


def test_a_right_answer_does_not_become_a_candidate_by_its_place_among_equals() -> None:
    scores, second = np.array([[1, 1, 1, 0]], np.float32), np.array([[9, 0]], np.float32)
    assert ranks(scores, [[0]], Candidates(np.array([[0, 1]]), second)).tolist() == [3]
    assert ranks(scores[:, [0, 1, 3]], [[0]], Candidates(np.array([[0, 1]]), second)).tolist() == [1]


def test_scores_are_shares_of_the_queries_that_have_an_answer() -> None:
    found = recall_scores(np.array([1, 1, 4, 7, 0, 30]))
    assert found == {
        **{"r1": 0.4, "r5": 0.6, "r10": 0.8, "mean_recall": pytest.approx(0.6)},
        **{"median_rank": 4, "mean_rank": 8.6, "count": 5},
    }
    assert recall_scores(np.array([1, 2]))["median_rank"] == 1, "rounded down"
    with pytest.raises(UserError, match="no query of this retrieval has a right answer; "):
        recall_scores(np.array([0, 0]))


@pytest.mark.parametrize("where", ["scores", "candidates"])
def test_a_score_that_is_not_a_number_is_refused(where: str) -> None:
    scores, second = np.zeros((2, 3), np.float32), np.zeros((2, 1), np.float32)
    (scores if where == "scores" else second)[1, 0] = np.nan
    with pytest.raises(UserError, match="not finite numbers; "):
        ranks(scores, [[0], [0]], Candidates(np.array([[1], [2]]), second))


def test_folds_are_consecutive_and_searched_as_if_they_were_all() -> None:
    assert folds(OWNERS, 6, 4) == [] and folds(OWNERS, 6, 6) == []
    scores = made(len(OWNERS), 6, 1000)
    found = []
    for fold, images in zip(folds(OWNERS, 6, 3), ([0, 1, 2], [3, 4, 5]), strict=True):
        texts = [text for text, own in enumerate(OWNERS) if own[0] in images]
        assert fold.images.tolist() == images and fold.texts.tolist() == texts
        part = scores[np.ix_(texts, images)]
        expected = [
            slow_rank(row, [images.index(image) for image in OWNERS[text] if image in images], [], np.zeros(0))
            for row, text in zip(part, texts, strict=True)
        ]
        assert ranks(part, fold.owners).tolist() == expected
        found.append(recall_scores(np.array(expected)))
    means = mean_scores(found)
    assert means["r1"] == (found[0]["r1"] + found[1]["r1"]) / 2 and means["count"] == len(OWNERS)


def test_texts_that_another_image_has_too_are_counted() -> None:
    texts = ["a dog", "a cat", "a dog ", "a cat", "A dog"]
    assert texts_of_other_images(texts, [[0], [1], [2], [1], [3]]) == 2


def test_extra_right_answers_give_the_recall_of_the_package_that_has_them() -> None:
    metrics = pytest.importorskip("eccv_caption").Metrics()
    text_ids = metrics.coco_ids.tolist()
    image_ids = list(dict.fromkeys(metrics.coco_gts["t2i"][text][0] for text in text_ids))
    found = recall.extra_owners(image_ids, list(map(str, text_ids)))
    every = range(0, 5000, 37)
    for name, (texts, _) in found.items():
        queries = [image for image in every if texts[image]]
        scores = RNG.permuted(np.tile(np.arange(25_000, dtype=np.float32), (len(queries), 1)), axis=1)
        for row, query in zip(scores, queries, strict=True):
            row[texts[query][:2]] += RNG.integers(0, 30_000)
        order = np.argsort(-scores, axis=1)
        ranked = {image_ids[query]: [text_ids[text] for text in row] for query, row in zip(queries, order, strict=True)}
        gts = getattr(metrics, f"{name}_gts")
        gts["i2t"] = {image: gts["i2t"][image] for image in ranked}
        own = recall_scores(ranks(scores, [texts[query] for query in queries]))
        assert len(queries) > 20
        for k in (1, 5, 10):
            assert own[f"r{k}"] == getattr(metrics, f"{name}_recalls")({"i2t": ranked}, "i2t", K=k)["i2t"]
    with pytest.raises(UserError, match="or omit extra_positives"):
        recall.extra_owners(image_ids[1:], text_ids)
