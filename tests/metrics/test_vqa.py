import json
from pathlib import Path

import pytest

from dimvl.data.annotations import Question, read_questions
from dimvl.data.answers import normalise_answer
from dimvl.errors import UserError
from dimvl.metrics.vqa import question_accuracy, vqa_accuracy

GOLDEN = Path(__file__).parents[2].parent / "shared/data/golden/vqa_golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the official scores are not on this machine")
PREDICTIONS = ("all_yes", "most_common", "first_annotator", "messy")


def make_question(number: int, answers: list[str], kind: str = "what", answer_type: str = "other") -> Question:
    return Question(number, ("1",), "what?", tuple(answers), kind, answer_type)


@pytest.mark.parametrize("agreeing", range(11))
def test_accuracy_is_the_mean_over_leaving_out_each_of_ten_people(agreeing: int) -> None:
    answers = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    # n agree: n of the sets have n - 1 of them, the other 10 - n have all n
    expected = (agreeing * min((agreeing - 1) / 3, 1) + (10 - agreeing) * min(agreeing / 3, 1)) / 10
    assert question_accuracy("red", answers) == pytest.approx(expected)


def test_accuracies_of_one_to_four_agreeing_people_equal_hand_computed_ones() -> None:
    accuracies = [question_accuracy("red", ["red"] * count + ["blue"] * (10 - count)) for count in (1, 2, 3, 4)]
    assert accuracies == pytest.approx([0.3, 0.6, 0.9, 1.0])


def test_answers_are_normalised_only_if_people_disagree() -> None:
    assert question_accuracy("Yes.", ["yes"] * 10) == 0
    assert question_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1
    assert question_accuracy(" yes\n", ["yes"] * 10) == 1, "outer spaces are always removed"


@pytest.mark.parametrize(
    ("prediction", "answers", "accuracy"),
    [
        ("red", ["red"], 1.0),
        ("blue", ["red"], 0.0),
        ("t shirt", ["T-shirt"], 1.0),  # models answer in the normalised form
        ("Two", ["2", "2"], 1.0),
        ("red", ["red", "blue"], 0.5),
        ("red", ["red", "the red", "blue"], 2 / 3),
        ("red", ["red"] * 3, 1.0),
        ("T-shirt", ["t shirt"] * 4, 0.0),  # from four people on, the official rule with its quirks
        ("red", ["red"] * 3 + ["blue"], 0.75),
        ("red", ["red"] * 3 + ["blue"] * 8, (3 * 2 / 3 + 8) / 11),
    ],
)
def test_with_three_people_or_fewer_the_score_is_the_share_who_gave_the_answer(
    prediction: str, answers: list[str], accuracy: float
) -> None:
    assert question_accuracy(prediction, answers) == pytest.approx(accuracy)


def test_scores_report_questions_with_few_people_and_skip_those_without_answers() -> None:
    questions = [make_question(1, ["red"]), make_question(2, ["red"] * 4), make_question(3, [])]
    scores = vqa_accuracy({1: "red", 2: "blue", 3: "red"}, questions)
    assert (scores.overall, scores.count, scores.few_people, scores.unanswered) == (0.5, 2, 1, 1)
    few, unanswered = scores.remarks()
    assert few.startswith("1 of 2 questions have answers of fewer than 4 people") and unanswered.startswith("1 ")
    assert vqa_accuracy({2: "red"}, questions[1:2]).remarks() == []


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("The Two cats", "2 cats"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("twas", "'twas"),
        ("im", "im"),
        ("somebody'd", "somebodyd"),
        ("u.s.a.", "usa"),
        ("1,000", "1000"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("red- blue-green", "red bluegreen"),
        ("it's", "it's"),
        ("a  dog", "dog"),
    ],
)
def test_normalisation_follows_the_evaluator_with_its_quirks(answer: str, normalised: str) -> None:
    assert normalise_answer(answer) == normalised


def test_accuracy_is_also_reported_by_answer_type_and_kind() -> None:
    questions = [
        make_question(1, ["yes"] * 10, "existence", "yes/no"),
        make_question(2, ["2"] * 10, "counting", "number"),
        make_question(3, ["3"] * 10, "counting", "number"),
    ]
    scores = vqa_accuracy({1: "yes", 2: "2", 3: "5"}, questions)
    assert scores.overall == pytest.approx(2 / 3)
    assert scores.by_answer_type == {"number": 0.5, "yes/no": 1.0}
    assert scores.by_kind == {"counting": 0.5, "existence": 1.0}
    assert scores.count == 3


@pytest.mark.parametrize(
    ("predictions", "questions", "message"),
    [
        ({}, [], "no questions to score"),
        ({}, [make_question(7, ["red"] * 10)], "question 7 has no predicted answer"),
        ({7: "red"}, [make_question(7, [])], "none of the questions has answers"),
    ],
)
def test_what_cannot_be_scored_is_refused_naming_the_question(
    predictions: dict[int, str], questions: list[Question], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        vqa_accuracy(predictions, questions)


@needs_golden
@pytest.mark.parametrize("name", PREDICTIONS)
def test_every_question_scores_like_in_the_official_evaluator(name: str) -> None:
    questions = read_questions(GOLDEN / "questions.json", GOLDEN / "annotations.json")
    predictions = {record["question_id"]: record["answer"] for record in read(f"pred_{name}.json")}
    expected = read("expected_per_question.json")[name]
    different = {
        question.question_id: (predictions[question.question_id], question.answers)
        for question in questions
        if round(100 * question_accuracy(predictions[question.question_id], question.answers), 2)
        != expected[str(question.question_id)]
    }
    assert not different


def read(name: str) -> dict:
    return json.loads((GOLDEN / name).read_text())


@needs_golden
@pytest.mark.parametrize("name", PREDICTIONS)
def test_overall_scores_equal_those_of_the_official_evaluator(name: str) -> None:
    questions = read_questions(GOLDEN / "questions.json", GOLDEN / "annotations.json")
    predictions = {record["question_id"]: record["answer"] for record in read(f"pred_{name}.json")}
    scores, expected = vqa_accuracy(predictions, questions), read("expected.json")["accuracy"][name]
    assert round(100 * scores.overall, 2) == expected["overall"]
    assert {key: round(100 * value, 2) for key, value in scores.by_answer_type.items()} == expected["perAnswerType"]
    assert {key: round(100 * value, 2) for key, value in scores.by_kind.items()} == expected["perQuestionType"]
