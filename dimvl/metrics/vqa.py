"""VQA accuracy by the protocol of the VQA v2 evaluator, including its quirks.

An answer scores the mean, over leaving out each of ten people in turn, of min(n / 3, 1), where n of the others gave the
answer (Antol et al., ICCV 2015; Goyal et al., CVPR 2017). Answers are normalised only if the people disagree.

This formula needs four people: with fewer, as in GQA with one answer per question, no answer would score a full point.
Such questions score the share of people who gave the answer, always normalised.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dimvl.data.annotations import Id, Question
from dimvl.data.answers import AGREEING, agreement, normalise_answer, strip_answer
from dimvl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class VqaScores:
    """Accuracies, as fractions in [0, 1] except `official`.

    Attributes:
        overall: mean over questions.
        by_answer_type: mean for each answer type (yes/no, number, other).
        by_kind: mean for each question type.
        count: number of scored questions.
        few_people: number of them with fewer than four answers, whose scores are not official ones.
        unanswered: number of questions without answers, which are skipped.
        official: percent with two decimals, under the names of the official evaluator: overall, perAnswerType,
            perQuestionType.

    """

    overall: float
    by_answer_type: dict[str, float]
    by_kind: dict[str, float]
    count: int
    few_people: int
    unanswered: int
    official: dict[str, Any]

    def remarks(self) -> list[str]:
        """Return what a reader of the scores must know."""
        remarks = []
        if self.few_people:
            remarks.append(
                f"{self.few_people} of {self.count} questions have answers of fewer than {AGREEING + 1} people; they "
                "score the share of people who gave the answer, unlike in the official evaluator"
            )
        if self.unanswered:
            total = self.count + self.unanswered
            remarks.append(f"{self.unanswered} of {total} questions have no answers and are skipped")
        return remarks


def question_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy of one prediction, given the answers of at least one person."""
    if len(answers) <= AGREEING:
        return agreement(list(map(normalise_answer, answers)).count(normalise_answer(prediction)), len(answers))
    answers, prediction = list(map(strip_answer, answers)), strip_answer(prediction)
    if len(set(answers)) > 1:
        answers, prediction = list(map(normalise_answer, answers)), normalise_answer(prediction)
    agreeing = answers.count(prediction)
    scores = [min((agreeing - (answer == prediction)) / AGREEING, 1.0) for answer in answers]
    return sum(scores) / len(scores)


def vqa_accuracy(predictions: Mapping[Id, str], questions: Sequence[Question]) -> VqaScores:
    """Score predictions, by question id, against the answers of the questions.

    Raises:
        UserError: no question, none with answers, or a question without a prediction.

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
