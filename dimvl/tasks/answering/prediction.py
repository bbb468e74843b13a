"""Question answering with a trained model: for prefixes, a region store or annotation files."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.data.annotations import Id, Question, describe_file, read_questions
from dimvl.data.answers import Answer
from dimvl.data.prefixes import Prefix
from dimvl.errors import UserError
from dimvl.metrics.predictions import official_images
from dimvl.metrics.vqa import question_accuracy, vqa_accuracy
from dimvl.regions.store import RegionStore
from dimvl.tasks.answering.config import VqaConfig, VqaEvaluation
from dimvl.tasks.answering.statements import read_statements
from dimvl.tasks.answering.training import answer_logits, answer_spec
from dimvl.tasks.answering.zero_shot import ZERO_SHOT, answer_by_statements
from dimvl.tasks.base import TaskModule
from dimvl.tasks.inference import finite, predict_texts, records_in_store
from dimvl.tasks.task import Ability, Evaluation, Forward, ValidationScore, by_probability
from dimvl.tasks.texts import text_batch
from dimvl.tasks.validating import TextValidator
from dimvl.trained_model import TrainedModel

logger = logging.getLogger(__name__)
TOP_ANSWERS = 3
"""Answers logged per question of the validation sample."""


@torch.inference_mode()
def answer_probabilities(trained: TrainedModel, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> Tensor:
    """Return the probability of each answer to one question per prefix, (M, A); a row need not sum to 1.

    If the model's prefixes do not depend on the question, consecutive equal prefixes (the same object) are computed
    once.
    """
    batch = text_batch(trained, prefixes, words, answer_spec(trained.processor))
    return finite(answer_logits(trained.model, batch).float().sigmoid().cpu())


def best_answer(trained: TrainedModel, probabilities: Tensor, top: int = 5) -> Answer:
    """Return the best answers to one question, from the probabilities (A,) of all answers."""
    answers = trained.processor.answers
    if top < 1:
        raise UserError(f"top is {top}; it must be at least 1")
    best = probabilities.topk(min(top, len(answers)))
    ranked = [(answers[index], value) for value, index in zip(*(part.tolist() for part in best), strict=True)]
    return Answer(*ranked[0], ranked)


ANSWER_LOGITS = Forward(
    name="answer",
    head="answer_head",
    outputs=lambda head, rows: (head(rows.text[-1:])[0],),
    meanings={"logits": "(labels,) logits; the sigmoid of each is the probability of that answer"},
    eager=lambda trained, prefix, words: (
        answer_logits(trained.model, text_batch(trained, [prefix], [words], answer_spec(trained.processor)))[0],
    ),
    labels=lambda processor: processor.answers,
)
ANSWER = Ability(
    verb="answer",
    available=lambda processor: bool(processor.answers),
    apply=answer_probabilities,
    result=best_answer,
    evidence=by_probability(answer_probabilities),
    takes_text=True,
    example='predictor.answer("image.png", "what colour is the circle?")',
    forward=ANSWER_LOGITS,
)


def answer_questions(
    trained: TrainedModel, store: RegionStore, questions: Sequence[Question], progress: Progress | None = None
) -> dict[Id, str]:
    """Return the most probable answer to each question, by question id.

    Raises:
        UserError: the list is empty, the store lacks an image, or the store is of another extractor.

    """
    ANSWER.check(trained)
    names = trained.processor.answers

    def best(prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> list[str]:
        return [names[place] for place in answer_probabilities(trained, prefixes, words).argmax(dim=1).tolist()]

    words = trained.tokenise([question.text for question in questions])
    found = predict_texts(trained, store, [question.images for question in questions], words, best, progress)
    return dict(zip([question.question_id for question in questions], found, strict=True))


def evaluate_questions(
    trained: TrainedModel, store: RegionStore, options: VqaEvaluation, progress: Progress | None = None
) -> Evaluation:
    """Answer a question file and, if it has annotations, score the answers by the official VQA accuracy.

    With `options.statements`, the model answers by these rules. Questions that no rule covers get the empty answer.

    Raises:
        UserError: as in `answer_questions` or `answer_by_statements`, `read_questions`, `records_in_store`
            and `read_statements`.

    """
    rules = None if options.statements is None else read_statements(options.statements)
    read = read_questions(options.questions, options.annotations)
    questions, missing = records_in_store(options.questions, read, trained, store, options)
    if rules is None:
        if ZERO_SHOT.available(trained.processor) and not ANSWER.available(trained.processor):
            raise UserError(f"{trained.weights.parent} was not trained to answer; give rules as --statements FILE")
        answers = answer_questions(trained, store, questions, progress)
    else:
        answers = answer_by_statements(trained, store, questions, rules, progress)
    uncovered = len(questions) - len(answers)
    answers = {question.question_id: "" for question in questions} | answers
    items = []
    for question in questions:
        answer, images = answers[question.question_id], official_images(question.named_images)
        item: dict[str, Any] = {"question_id": question.question_id, **images}
        item |= {"question": question.text, "prediction": answer}
        if question.answers:
            item |= {"answers": question.answers, "accuracy": question_accuracy(answer, question.answers)}
            kinds = {"kind": question.kind, "answer_type": question.answer_type}
            item |= {name: kind for name, kind in kinds.items() if kind}
        items.append(item)
    records = [{"question_id": item["question_id"], "answer": item["prediction"]} for item in items]
    scores: dict[str, Any] = {}
    if any(question.answers for question in questions):
        found = vqa_accuracy(answers, questions)
        for remark in found.remarks():
            logger.warning("%s", remark)
        scores = {"task": "vqa", "data": describe_file(options.questions), **asdict(found)}
        if rules is not None:
            scores["zero_shot"] = {"score": rules.score, "uncovered": uncovered}
    left_out = {
        "image not in the store": missing,
        "question that no rule covers, with the empty answer": uncovered,
        "question without an answer to compare with": scores["unanswered"] if scores else 0,
    }
    return Evaluation(predictions=records, items=items, scores=scores, left_out=left_out)


class AccuracyValidator(TextValidator[Question]):
    """Official accuracy of the most probable answers."""

    def __init__(self, config: VqaConfig, module: TaskModule, store: RegionStore) -> None:
        section = config.validation
        assert section is not None
        questions = read_questions(section.questions, section.annotations)
        super().__init__(config, module, store, section.questions, questions)
        if unanswered := [question for question in self.records if not question.answers]:
            raise UserError(
                f"question {unanswered[0].question_id} of {section.questions} has no answers to compare with; give "
                "their annotations as validation.annotations, or remove the questions without answers"
            )

    def predict(self, prefixes: Sequence[Prefix], texts: Sequence[np.ndarray]) -> list[list[tuple[str, float]]]:
        """Return the best answers to each question and their probabilities."""
        names = self.trained.processor.answers
        values, order = answer_probabilities(self.trained, prefixes, texts).sort(dim=1, descending=True, stable=True)
        pairs = zip(order[:, :TOP_ANSWERS].tolist(), values[:, :TOP_ANSWERS].tolist(), strict=True)
        return [[(names[place], value) for place, value in zip(*pair, strict=True)] for pair in pairs]

    def score(self, found: Sequence[Sequence[tuple[str, float]]]) -> ValidationScore:
        """Score the best answer to each question."""
        predictions = [
            {
                "question_id": self.records[item].question_id,
                "image_id": ", ".join(self.records[item].image_ids),
                "question": self.records[item].text,
                "answers": [[name, round(value, 4)] for name, value in found[item]],
                "truth": [answer for answer, _ in Counter(self.records[item].answers).most_common()],
            }
            for item in self.shown
        ]
        answers = {question.question_id: own[0][0] for question, own in zip(self.records, found, strict=True)}
        return ValidationScore(vqa_accuracy(answers, self.records).overall, predictions=predictions)
