import json
from pathlib import Path

import pytest

from dimvl.data.annotations import read_captions, read_questions
from dimvl.data.answers import (
    agreement,
    answer_ids,
    answer_vocabulary,
    label_ids,
    normalise_answer,
    read_answers,
    soft_scores,
)
from dimvl.errors import UserError
from dimvl.metrics.vqa import question_accuracy

PUBLISHED = Path(__file__).parents[3] / "shared/data/vqa_answers/trainval_label2ans.json"
COCO = Path(__file__).parents[3] / "shared/data/coco_small"


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_soft_scores_of_ten_people_are_the_published_ones():
    for people, score in [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]:
        answers = ["red"] * people + [f"other {number}" for number in range(10 - people)]
        assert soft_scores(answers)["red"] == pytest.approx(score)


@pytest.mark.parametrize(
    ("answers", "scores"),
    [
        ([], {}),
        (["red"], {"red": 1}),  # the one answer of GQA is right
        (["red", "The red", "blue"], {"red": 2 / 3, "blue": 1 / 3}),
        (["red"] * 4 + ["blue"], {"red": 1, "blue": 4 / 5 / 3}),  # the person who said blue has no one to agree
        (["red"] * 10 + ["blue"], {"red": 1, "blue": 10 / 11 / 3}),
    ],
)
def test_soft_scores_follow_the_same_rule_for_any_number_of_people(answers, scores):
    assert soft_scores(answers) == pytest.approx(scores)


@pytest.mark.parametrize("people", range(1, 13))
def test_the_training_target_of_an_answer_is_its_score(people):
    for agreeing in range(1, people + 1):
        answers = ["red"] * agreeing + ["blue"] * (people - agreeing)
        assert agreement(agreeing, people) == pytest.approx(question_accuracy("red", answers))
    assert agreement(people, people) == 1, "an answer that everybody gives is right"


def test_an_answer_vocabulary_is_a_list_or_a_mapping_to_numbers(tmp_path):
    assert read_answers(write(tmp_path / "a.json", ["", "yes", "no"])) == ["", "yes", "no"]
    assert read_answers(write(tmp_path / "a.json", {"no": 2, "": 0, "yes": 1})) == ["", "yes", "no"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "not valid JSON"),
        (3, "is not a list of answers"),
        (["yes", 1], "is not a list of answers"),
        (["yes"], "has 1 answer; give at least 2"),
        (["yes", "no", "yes"], "has the answer 'yes' twice"),
        ({"yes": 0, "no": 2}, "are not numbered from 0 to 1"),
        ({"yes": 0, "no": 0}, "are not numbered from 0 to 1"),
        ({"yes": 0, "no": "1"}, "are not numbered from 0 to 1"),
        ({"yes": False, "no": True}, "are not numbered from 0 to 1"),
    ],
)
def test_the_error_for_a_bad_vocabulary_is_one_sentence(tmp_path, content, says):
    with pytest.raises(UserError, match=says) as caught:
        read_answers(write(tmp_path / "a.json", content))
    assert str(caught.value).startswith(str(tmp_path / "a.json"))


def test_listed_answers_that_the_normalisation_changes_can_be_targets():
    ids = answer_ids(["yes", "the sky", "sky", "T-shirt"])
    assert (ids["sky"], ids["the sky"], ids["T-shirt"], ids[normalise_answer("t-shirt")]) == (2, 1, 3, 3)
    assert label_ids(soft_scores(["T-shirt"] * 10), ids) == ((3, 1.0),)


def test_no_answer_that_cannot_be_seen_is_chosen_for_a_vocabulary():
    people = [["?"] * 6 + ["red"] * 4, ["the"] * 10, ["\u200b"] * 10, [""], ["blue"], []]
    assert answer_vocabulary(people, 9) == ["blue", "red"]


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published answer list is not on this machine")
def test_every_answer_of_the_published_list_can_be_a_target():
    answers = read_answers(PUBLISHED)
    ids = answer_ids(answers)
    assert len(answers) == 3129
    reached = {ids[normalise_answer(answer)] for answer in answers}
    shadowed = [answer for number, answer in enumerate(answers) if number not in reached]
    # An answer whose normalised form is another answer of the list cannot be reached: "two men" of "2 men", and so on.
    assert all(normalise_answer(answer) in answers for answer in shadowed)


@pytest.mark.skipif(not COCO.exists(), reason="the small COCO subset is not on this machine")
def test_real_files_are_read_completely():
    captions = read_captions(COCO / "captions.json")
    assert len(captions) == 700 and len({caption.image_id for caption in captions}) == 140
    parts = [read_captions(COCO / f"captions_{split}.json") for split in ("train", "val")]
    assert sorted(map(repr, captions)) == sorted(map(repr, parts[0] + parts[1]))
    images = {
        split: {caption.image_id for caption in part} for split, part in zip(("train", "val"), parts, strict=True)
    }
    splits = json.loads((COCO / "splits.json").read_text())
    assert all(images[split] <= set(map(str, splits[split])) for split in images)
    questions = read_questions(COCO / "vqa_questions.json", COCO / "vqa_annotations.json")
    assert len(questions) == 42 and {len(question.answers) for question in questions} == {10}
    assert {question.answer_type for question in questions} == {"yes/no", "number", "other"}
