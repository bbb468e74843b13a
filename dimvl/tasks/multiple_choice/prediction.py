"""Multiple choice with a trained model: for prefixes, a region store or annotation files.

A model of pretraining that matches can choose too, without training on questions: the probability of a candidate is the
softmax over the candidates' matching logits.
"""

import csv
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.data.annotations import Choice, describe_file, read_choices
from dimvl.data.annotations.choices import Choices
from dimvl.data.answers import Chosen
from dimvl.data.prefixes import Prefix
from dimvl.errors import UserError
from dimvl.fields import check_candidates
from dimvl.metrics.measures import mean_scores
from dimvl.metrics.predictions import official_images
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import TaskModule
from dimvl.tasks.inference import predict_texts, records_in_store
from dimvl.tasks.multiple_choice.config import ChooseConfig, ChooseEvaluation
from dimvl.tasks.pretraining.matching import MATCH_LOGIT, match_logits
from dimvl.tasks.task import Ability, Evaluation, ValidationScore, by_probability
from dimvl.tasks.validating import TextValidator
from dimvl.trained_model import TrainedModel

logger = logging.getLogger(__name__)
SCORES = {"": "accuracy", "answer": "q_a", "rationale": "qa_r"}
"""Name of the accuracy of each part of a file; of VCR's, `q_ar` is that of both right."""


@dataclass(frozen=True)
class Asked:
    """A question with candidates, tokenised.

    Attributes:
        candidates: the texts to choose from.
        words: token ids of the question with each candidate.
        repeated: rows that each candidate after the first adds besides its text, those of a prefix of its own.

    """

    candidates: Sequence[str]
    words: Sequence[np.ndarray]
    repeated: int

    def __len__(self) -> int:
        """Rows besides those of one prefix, about."""
        return sum(len(text) + 1 + self.repeated for text in self.words) - self.repeated


def tokenise(trained: TrainedModel, choices: Sequence[Choice]) -> list[Asked]:
    """Tokenise questions with candidates; a warning counts those of which the model cannot tell two apart."""
    processor = trained.processor
    words = iter(trained.tokenise([text for choice in choices for text in choice.texts]))
    repeated = 0 if processor.shared_prefix else processor.max_regions + processor.text_start
    asked = [Asked(choice.candidates, [next(words) for _ in choice.candidates], repeated) for choice in choices]
    equal = sum(len({text.tobytes() for text in one.words}) < len({*one.candidates}) for one in asked)
    if equal:
        logger.warning(
            "%d of %d questions have candidates that are the same to the model, which reads %d tokens of question and "
            "candidate; shorten them",
            *(equal, len(choices), processor.text_tokens),
        )
    return asked


def _prepare(
    trained: TrainedModel, texts: Sequence[str], candidates: Sequence[str] | Sequence[Sequence[str]], **options: Any
) -> list[Asked]:
    """Tokenise texts with the same candidates for all of them, or with a list for each.

    Raises:
        UserError: candidates of one, twice the same, or not a list for each text.

    """
    if isinstance(candidates, str):
        candidates = [candidates]
    own = [candidates] * len(texts) if all(isinstance(one, str) for one in candidates) else candidates
    if len(own) != len(texts):
        raise UserError(f"there are {len(texts)} texts and {len(own)} lists of candidates; give one list for each")
    choices = []
    for number, (text, given) in enumerate(zip(texts, own, strict=True)):
        stripped = tuple(str(one).strip() for one in given)
        check_candidates(stripped, f"text {number + 1} of {len(texts)}")
        if "" in stripped:
            raise UserError(f"candidate {stripped.index('')} of text {number + 1} is empty; give some words")
        choices.append(Choice(number, (), text.strip(), stripped))
    return tokenise(trained, choices)


def probabilities(trained: TrainedModel, prefixes: Sequence[Prefix], asked: Sequence[Asked]) -> list[Tensor]:
    """Return the probabilities (K,) of each question's candidates, on the CPU.

    If the model's prefixes do not depend on the text, consecutive equal prefixes (the same object) are computed once.
    """
    if not asked:
        return []
    each = [prefix for prefix, one in zip(prefixes, asked, strict=True) for _ in one.words]
    logits = match_logits(trained, each, [text for one in asked for text in one.words]).cpu()
    return [part.softmax(dim=0) for part in logits.split([len(one.words) for one in asked])]


def _choose(trained: TrainedModel, prefixes: Sequence[Prefix], asked: Sequence[Asked]) -> list[tuple[Asked, Tensor]]:
    return list(zip(asked, probabilities(trained, prefixes, asked), strict=True))


def _chosen(trained: TrainedModel, found: tuple[Asked, Tensor], **options: Any) -> Chosen:
    asked, values = found
    place = int(values.argmax())
    return Chosen(asked.candidates[place], place, float(values[place]), values.tolist())


CHOOSE = Ability(
    verb="choose",
    available=lambda processor: processor.chooses or processor.matches,
    prepare=_prepare,
    apply=_choose,
    result=_chosen,
    evidence=by_probability(_choose, lambda found: torch.stack([values for _, values in found])),
    takes_text=True,
    forward=MATCH_LOGIT,
    example='predictor.choose("image.png", "what is it?", ["a circle", "a star"])',
)


def scores_of_each(choices: Sequence[Choice], places: Sequence[int]) -> list[dict[str, float]]:
    """Return what each question counts for, by the name of the score; nothing where the right one is not published.

    The rationale of a right answer also counts for `q_ar`, which is 1 if both are right.
    """
    answered: dict[str, float] = {}
    found = []
    for choice, place in zip(choices, places, strict=True):
        part, own = choice.part.partition("-")[0], {}
        if choice.answer is not None:
            right = float(place == choice.answer)
            own = {SCORES[part]: right}
            if part == "answer":
                answered[str(choice.choice_id)] = right
            elif str(choice.choice_id) in answered:
                own["q_ar"] = right * answered[str(choice.choice_id)]
        found.append(own)
    return found


def evaluate_choices(
    trained: TrainedModel, store: RegionStore, options: ChooseEvaluation, progress: Progress | None = None
) -> Evaluation:
    """Choose for a file of questions and, where the right candidates are published, score the choices.

    Raises:
        UserError: as `read_choices`, `records_in_store` and `predict_texts`; or the model cannot choose.

    """
    CHOOSE.check(trained)
    read = read_choices(options.choices, every_answer=True)
    choices, missing = records_in_store(options.choices, read.items, trained, store, options)
    images, asked = [choice.images for choice in choices], tokenise(trained, choices)
    found = predict_texts(trained, store, images, asked, partial(probabilities, trained), progress)
    places = [int(values.argmax()) for values in found]
    each = scores_of_each(choices, places)
    predictions, items = [], []
    for choice, place, values, own in zip(choices, places, found, each, strict=True):
        question_id = f"{choice.choice_id} {choice.part}" if choice.part else choice.choice_id
        record: dict[str, Any] = {"question_id": question_id}
        record |= {"prediction": place, "probabilities": [round(value, 6) for value in values.tolist()]}
        predictions.append(record)
        about = {"text": choice.text, "candidates": list(choice.candidates), "answer": choice.answer}
        items.append({**record, **official_images(choice.named_images), **about, "means": own})
    scores: dict[str, Any] = mean_scores(each)
    if scores:
        counted = sum(bool(own) for own in each)
        scores = {"task": "choose", "data": describe_file(options.choices), **scores, "questions": counted}
    unscored = sum(choice.answer is None and not choice.part.startswith("rationale") for choice in choices)
    return Evaluation(
        predictions=predictions,
        items=items,
        scores=scores,
        submissions=_submissions(read._replace(items=choices), found),
        left_out={
            "image not in the store": missing,
            "question without an answer to compare with": unscored if scores else 0,
        },
    )


def _submissions(choices: Choices, found: Sequence[Tensor]) -> dict[str, str]:
    """Return the official submission of a file, by its name.

    A-OKVQA: question id -> text of the choice. VCR: a line of probabilities for each question, of the answers and of
    the rationales of each answer.
    """
    if choices.format == "A-OKVQA":
        pairs = zip(choices.items, found, strict=True)
        chosen = {str(choice.choice_id): choice.candidates[int(values.argmax())] for choice, values in pairs}
        return {"submission.json": json.dumps(chosen, ensure_ascii=False)}
    if choices.format != "VCR":
        return {}
    rows: dict[str, dict[str, str]] = {}
    for choice, values in zip(choices.items, found, strict=True):
        name = choice.part.replace("rationale-", "rationale_conditioned_on_a")
        row = rows.setdefault(str(choice.choice_id), {"annot_id": str(choice.choice_id)})
        row |= {f"{name}_{place}": f"{value:.8g}" for place, value in enumerate(values.tolist())}
    written = io.StringIO()
    writer = csv.DictWriter(written, next(iter(rows.values())), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    return {"submission.csv": written.getvalue()}


class ChoiceValidator(TextValidator[Choice]):
    """Accuracy of the most probable candidates; of VCR, the mean over answers and rationales."""

    def __init__(self, config: ChooseConfig, module: TaskModule, store: RegionStore) -> None:
        section = config.validation
        assert section is not None
        super().__init__(config, module, store, section.choices, read_choices(section.choices).items)
        if unanswered := [choice for choice in self.records if choice.answer is None]:
            raise UserError(
                f"{section.choices}: {unanswered[0].name} has no answer to compare with; give a file with the right "
                "candidates, or remove the questions without one"
            )

    def tokenise(self) -> list[Asked]:
        """Tokenise the questions with their candidates."""
        return tokenise(self.trained, self.records)

    def predict(self, prefixes: Sequence[Prefix], texts: Sequence[Asked]) -> list[list[float]]:
        """Return the probabilities of the candidates of each question."""
        return [values.tolist() for values in probabilities(self.trained, prefixes, texts)]

    def score(self, found: Sequence[Sequence[float]]) -> ValidationScore:
        """Score the best candidate of each question."""
        each = scores_of_each(self.records, [int(np.argmax(values)) for values in found])
        own = [score for one in each for name, score in one.items() if name != "q_ar"]
        predictions = [
            {
                "question_id": choice.choice_id,
                "image_id": ", ".join(choice.image_ids),
                "question": choice.text,
                "answers": [
                    [text, round(value, 4)] for text, value in zip(choice.candidates, found[item], strict=True)
                ],
                "truth": [choice.candidates[choice.answer or 0]],
            }
            for item, choice in ((item, self.records[item]) for item in self.shown)
        ]
        scores = mean_scores(each)
        return ValidationScore(float(np.mean(own)), scores if len(scores) > 1 else {}, predictions)
