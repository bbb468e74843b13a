"""VQA accuracy by the protocol of the VQA v2 evaluator, quirks included.

An answer counts by how many people gave it: the mean, over the ten ways to leave one person out, of min(n / 3, 1) with
n the others who agree (Antol et al., ICCV 2015; Goyal et al., CVPR 2017). Answers are normalised only where the people
do not all say the same.

The evaluator's formula needs four people. On questions with fewer, such as those of GQA with one answer each, it would
give no answer a full point; here they score the share of the people who gave the answer, normalised in any case.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dimvl.data.annotations import Question
from dimvl.data.answers import AGREEING, agreement, normalise_answer, strip_answer
from dimvl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class VqaScores:
    """Accuracies, as fractions in [0, 1] where nothing else is said.

    Attributes:
        overall: mean over questions.
        by_answer_type: mean over the questions of each answer type (yes/no, number, other).
        by_kind: mean over the questions of each question type.
        count: questions scored.
        few_people: how many of them have fewer than four answers, so that their score is no official one.
        unanswered: questions that nobody answered; they are left out.
        official: the same in percent to two decimals, under the names of the official evaluator: overall,
            perAnswerType, perQuestionType.

    """

    overall: float
    by_answer_type: dict[str, float]
    by_kind: dict[str, float]
    count: int
    few_people: int
    unanswered: int
    official: dict[str, Any]

    def remarks(self) -> list[str]:
        """Tell what a reader of the scores must know."""
        remarks = []
        if self.few_people:
            remarks.append(
                f"{self.few_people} of {self.count} questions have answers of fewer than {AGREEING + 1} people; they "
                "score the share of the people who gave the answer, which the official evaluator does not"
            )
        if self.unanswered:
            remarks.append(f"{self.unanswered} questions that nobody answered are left out")
        return remarks


def question_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of one predicted answer given what people answered, at least one."""
    if len(answers) <= AGREEING:
        return agreement(
            [normalise_answer(answer) for answer in answers].count(normalise_answer(prediction)), len(answers)
        )
    given = [strip_answer(answer) for answer in answers]
    predicted = strip_answer(prediction)
    if len(set(given)) > 1:
        given = [normalise_answer(answer) for answer in given]
        predicted = normalise_answer(predicted)
    agreeing = given.count(predicted)
    scores = [min((agreeing - (answer == predicted)) / AGREEING, 1.0) for answer in given]
    return sum(scores) / len(scores)


def vqa_accuracy(predictions: Mapping[int, str], questions: Sequence[Question]) -> VqaScores:
    """Score predictions.

    Args:
        predictions: question id -> answer, one for each question.
        questions: with what people answered.

    Raises:
        UserError: no question, a question without a prediction, or nobody answered any of them.

    """
    if not questions:
        raise UserError("there are no questions to score; give a question file that is not empty")
    answered = [question for question in questions if question.answers]
    if not answered:
        raise UserError("none of the questions has answers to compare with; give their annotations")
    by_answer_type, by_kind = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    accuracies = []
    for question in answered:
        if question.question_id not in predictions:
            raise UserError(f"question {question.question_id} has no predicted answer; predict every question")
        accuracy = question_accuracy(predictions[question.question_id], question.answers)
        accuracies.append(accuracy)
        by_answer_type[question.answer_type].append(accuracy)
        by_kind[question.kind].append(accuracy)
    return VqaScores(
        overall=_mean(accuracies),
        by_answer_type={name: _mean(values) for name, values in sorted(by_answer_type.items())},
        by_kind={name: _mean(values) for name, values in sorted(by_kind.items())},
        count=len(accuracies),
        few_people=sum(len(question.answers) <= AGREEING for question in answered),
        unanswered=len(questions) - len(answered),
        official={
            "overall": _percent(accuracies),
            "perAnswerType": {name: _percent(values) for name, values in sorted(by_answer_type.items())},
            "perQuestionType": {name: _percent(values) for name, values in sorted(by_kind.items())},
        },
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(values: Sequence[float]) -> float:
    return round(100 * sum(values) / len(values), 2)  # the evaluator's order of operations, which decides ties
