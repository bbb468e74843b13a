"""Scores as sums over items: equal to the official ones, with intervals for each."""

import json

import numpy as np
import pytest

from dimvl.data.scenes import SceneOptions, caption_facts, sample_world, score_captions
from dimvl.data.scenes.language import sample_captions
from dimvl.metrics.captions import caption_scores
from dimvl.metrics.evaluations import _key
from dimvl.metrics.measures import bleu, intervals, measures, meteor, units_of
from dimvl.metrics.recall import recall_scores

LINES = (
    *("8.0 8.0 3.0 2.0 4.0 4.0 2.0 2.0 0.0 0.0 0.0 0.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 3.0 7.0 7.0",),
    *("9.0 8.0 6.0 3.0 0.0 0.0 3.0 3.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 2.0 3.0 3.0",),
)
"""Statistics of two texts, by the program of METEOR 1.5."""


def values_of(items: list[dict]) -> dict[str, float]:
    """Score of all items together."""
    found = measures(items)
    return {" / ".join(place): float(score(numbers.sum(axis=0))) for place, (numbers, score) in found.items()}


def test_accuracy_has_an_interval_overall_and_for_each_kind_of_question() -> None:
    items = [
        {"question_id": number, "image_id": number // 2, "accuracy": float(number % 3 > 0), "kind": "count"}
        for number in range(60)
    ]
    items += [{"question_id": 60, "image_id": 7, "accuracy": 0.3, "kind": "colour", "answer_type": "other"}]
    items += [{"question_id": 61, "image_id": 8}]  # without an answer to compare with
    assert values_of(items) == pytest.approx(
        {
            "overall": 40.3 / 61,
            "by_kind / colour": 0.3,
            "by_kind / count": 40 / 60,
            "by_answer_type / other": 0.3,
        }
    )
    found = intervals(items)
    assert found["by_kind / colour"] == [0.3, 0.3], "samples without such a question are left out"
    assert found["overall"][0] < 40.3 / 61 < found["overall"][1] and found == intervals(items)
    assert units_of(items)[:3] == [("0",), ("0",), ("1",)]
    assert units_of([{"images": [1, "b"]}, {"count": 2}, {"count": 2}]) == [("1", "b"), 1, 2]
    assert intervals([{"prediction": "a dog"}]) == {}


def test_bleu_from_sums_is_that_of_the_official_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap.bleu")
    monkeypatch.setenv("PATH", "")  # no Java
    rng = np.random.default_rng(3)
    texts = {str(image): " ".join(map(str, rng.integers(0, 4, rng.integers(0, 9)))) for image in range(30)}
    references = {image: [" ".join(map(str, rng.integers(0, 4, 6))), texts[str(29 - int(image))]] for image in texts}
    found = caption_scores(texts, references, tokenised=True)
    items = [
        {"image_id": image, "official": found.per_image[image], "statistics": found.statistics[image]}
        for image in texts
    ]
    expected = {f"official / {name}": value for name, value in found.corpus.items()}
    assert values_of(items) == pytest.approx(expected, abs=1e-12) and len(expected) == 6
    assert all(low <= expected[name] <= high for name, (low, high) in intervals(items).items())
    assert bleu(np.zeros(9), 4) == 0
    old = [{name: value for name, value in item.items() if name != "statistics"} for item in items]
    assert values_of(old).keys() == {"official / ROUGE_L", "official / CIDEr"}, "no mean takes the place of BLEU"


def test_meteor_from_sums_is_that_of_its_program() -> None:
    rows = np.array([[float(value) for value in line.split()] for line in LINES])
    assert meteor(rows) == pytest.approx([0.41085535747888113, 0.0763650005317886], abs=1e-15)
    same = np.array([5, 5, 1, 1, 4, 4, 1, 1, *[0] * 12, 0, 5, 5.0])
    assert meteor(same) == pytest.approx(1) and meteor(np.zeros(23)) == 0


def test_facts_of_captions_have_the_precision_and_recall_of_all_captions() -> None:
    options = SceneOptions(seed=1)
    worlds = {image: sample_world(options, "train", image) for image in range(12)}
    texts = {image: sample_captions(worlds[(image * 5) % 12], options)[0] for image in worlds} | {11: "no such words"}
    scores = score_captions(texts, worlds, {image: [text] for image, text in texts.items()})
    facts = {image: caption_facts(text, worlds[image]) for image, text in texts.items()}
    items = [
        json.loads(json.dumps({"image_id": image, "facts": own.stated, "means": own.means}))
        for image, own in facts.items()
    ]
    found = values_of(items)
    assert found == pytest.approx({name: getattr(scores, name) for name in found}) and len(found) == 9
    assert 0 < found["fact_precision"] < 1 and intervals(items)["fact_recall"][0] < found["fact_recall"]
    nothing = {"image_id": 1, "facts": {kind: [0, 0] for kind in facts[0].stated}}
    assert values_of([nothing])["place_precision"] == 0


def test_the_ranks_of_a_search_give_its_recalls_by_direction_and_stage() -> None:
    rng = np.random.default_rng(5)
    image_ranks, text_ranks, first = rng.integers(0, 12, 40), rng.integers(1, 12, 80), rng.integers(1, 30, 80)
    items = [
        {"direction": "image_to_text", "image_id": image, "rank": rank}
        for image, rank in enumerate(image_ranks.tolist())
    ]
    items += [
        {"direction": "text_to_image", "text_id": text, "image_id": text // 2, "rank": rank, "embedding_rank": other}
        for text, (rank, other) in enumerate(zip(text_ranks.tolist(), first.tolist(), strict=True))
    ]
    found, expected = values_of(items), dict[str, float]()
    for place, ranks in (
        ("image_to_text", image_ranks),
        ("text_to_image", text_ranks),
        ("embedding_only / text_to_image", first),
    ):
        scores = recall_scores(ranks)
        expected |= {f"{place} / {name}": scores[name] for name in ("r1", "r5", "r10", "mean_recall", "mean_rank")}
    assert found == pytest.approx(expected)
    ends = intervals(items)
    assert ends.keys() == found.keys() and all(ends[name][0] < value < ends[name][1] for name, value in found.items())
    assert [_key(item, "an item") for item in items] == [
        *(f"image {n}" for n in range(40)),
        *(f"text {n}" for n in range(80)),
    ]
