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
from dimvl.data.matching import in_store, match_file
from dimvl.data.prefixes import Prefix, PrefixImages
from dimvl.errors import UserError
from dimvl.metrics.predictions import official_images
from dimvl.metrics.vqa import question_accuracy, vqa_accuracy
from dimvl.regions.store import RegionStore
from dimvl.tasks.answering.config import VqaConfig, VqaEvaluation
from dimvl.tasks.answering.statements import read_statements
from dimvl.tasks.answering.training import answer_logits, answer_spec, question_example
from dimvl.tasks.answering.zero_shot import ZERO_SHOT, answer_by_statements
from dimvl.tasks.base import TaskModule
from dimvl.tasks.inference import finite, pair_batches
from dimvl.tasks.task import Ability, Evaluation, ValidationScore, Validator, by_probability
from dimvl.tasks.validating import matched, sample, subset
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
    processor = trained.processor
    examples = [
        question_example("question", prefix, texts, processor.tokenizer, processor.shared_prefix)
        for prefix, texts in trained.by_prefix(prefixes, words)
    ]
    batch = trained.batch(examples, answer_spec(processor))
    return finite(answer_logits(trained.model, batch).float().sigmoid().cpu())


def best_answer(trained: TrainedModel, probabilities: Tensor, top: int = 5) -> Answer:
    """Return the best answers to one question, from the probabilities (A,) of all answers."""
    answers = trained.processor.answers
    if top < 1:
        raise UserError(f"top is {top}; it must be at least 1")
    best = probabilities.topk(min(top, len(answers)))
    ranked = [(answers[index], value) for value, index in zip(*(part.tolist() for part in best), strict=True)]
    return Answer(*ranked[0], ranked)


ANSWER = Ability(
    verb="answer",
    available=lambda processor: bool(processor.answers),
    apply=answer_probabilities,
    result=best_answer,
    evidence=by_probability(answer_probabilities),
    takes_text=True,
    example='predictor.answer("image.png", "what colour is the circle?")',
)


def answer_questions(
    trained: TrainedModel, store: RegionStore, questions: Sequence[Question], progress: Progress | None = None
) -> dict[Id, str]:
    """Return the most probable answer to each question, by question id.

    If the model's prefixes do not depend on the question, an image is computed once for all its questions.

    Raises:
        UserError: the list is empty, the store lacks an image, or the store is of another extractor.

    """
    ANSWER.check(trained)
    result: dict[Id, str] = {}
    words = trained.tokenise([question.text for question in questions])
    images, rows = [question.images for question in questions], [len(text) + 1 for text in words]
    for chosen, prefixes in pair_batches(trained, store, images, rows, trained.processor.shared_prefix):
        best = answer_probabilities(trained, prefixes, [words[place] for place in chosen]).argmax(dim=1).tolist()
        for place, answer in zip(chosen, best, strict=True):
            result[questions[place].question_id] = trained.processor.answers[answer]
        if progress is not None:
            progress(len(result), len(questions))
    return result


def evaluate_questions(
    trained: TrainedModel, store: RegionStore, options: VqaEvaluation, progress: Progress | None = None
) -> Evaluation:
    """Answer a question file and, if it has annotations, score the answers by the official VQA accuracy.

    With `options.statements`, the model answers by these rules. Questions that no rule covers get the empty answer.

    Raises:
        UserError: as in `answer_questions` or `answer_by_statements`, `read_questions`, `match_file` and
            `read_statements`.

    """
    rules = None if options.statements is None else read_statements(options.statements)
    read = read_questions(options.questions, options.annotations)
    match = match_file(options.questions, read, store, trained.processor, options.match, "--match ")
    match.check(store, options.missing, "--skip-missing")
    questions = list(in_store(read, match))
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
        "image not in the store": match.texts_missing,
        "question that no rule covers, with the empty answer": uncovered,
        "question without an answer to compare with": scores["unanswered"] if scores else 0,
    }
    return Evaluation(predictions=records, items=items, scores=scores, left_out=left_out)


class AccuracyValidator(Validator):
    """Official accuracy of the most probable answers."""

    def __init__(self, config: VqaConfig, module: TaskModule, store: RegionStore) -> None:
        section = config.validation
        assert section is not None
        every = matched(read_questions(section.questions, section.annotations), section.questions, config, store)
        self.questions = [every[place] for place in subset(len(every), section)]
        if unanswered := [question for question in self.questions if not question.answers]:
            raise UserError(
                f"question {unanswered[0].question_id} of {section.questions} has no answers to compare with; give "
                "their annotations as validation.annotations, or remove the questions without answers"
            )
        self.trained = TrainedModel(module.model, module.processor, section.questions)
        self.words = self.trained.tokenise([question.text for question in self.questions])
        self.reader = module.processor.reader(store)
        self.images = PrefixImages.find(store, [question.images for question in self.questions])
        self.costs = self.reader.rows(self.images) + np.array([len(text) + 1 for text in self.words])
        self.shown = sample(len(self.questions), section)

    def run(self, items: np.ndarray) -> tuple[list[list[int]], list[list[float]]]:
        """Return the best answers of each question and their probabilities."""
        prefixes = self.reader.prefixes(self.images[items])
        found = answer_probabilities(self.trained, prefixes, [self.words[item] for item in items])
        probabilities, order = found.sort(dim=1, descending=True, stable=True)
        return order[:, :TOP_ANSWERS].tolist(), probabilities[:, :TOP_ANSWERS].tolist()

    def result(self, parts: Sequence[tuple[np.ndarray, Any]]) -> ValidationScore:
        """Score the best answer of each question."""
        names = self.trained.processor.answers
        best = {int(item): order for items, (orders, _) in parts for item, order in zip(items, orders, strict=True)}
        values = {int(item): row for items, (_, rows) in parts for item, row in zip(items, rows, strict=True)}
        predictions = [
            {
                "question_id": self.questions[item].question_id,
                "image_id": ", ".join(self.questions[item].image_ids),
                "question": self.questions[item].text,
                "answers": [[names[answer], round(p, 4)] for answer, p in zip(best[item], values[item], strict=True)],
                "truth": [answer for answer, _ in Counter(self.questions[item].answers).most_common()],
            }
            for item in self.shown
        ]
        answers = {question.question_id: names[best[item][0]] for item, question in enumerate(self.questions)}
        return ValidationScore(vqa_accuracy(answers, self.questions).overall, predictions=predictions)
