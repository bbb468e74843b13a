"""Zero-shot answering: a pretrained model judges a statement for each answer, so no question label is needed.

Scores of a statement:

- `match`: the logit of the matching head. A statement is a text of its own, judged as in pretraining.
- `masked_word`: the log-probability of the answer's tokens, all masked at once, by the word head; an article that the
  statement fits to the answer is masked with it, since "an" would reveal the orange one of several colours. It is the
  mean over the tokens: their sum would be lower for each further piece, and short answers would win. Image and text
  see each other, as in masked language modelling, so `shared_prefix` does not matter here.

Sources: masked words decide between answers in PET (Schick and Schütze, EACL 2021), and statements made of question and
answer are matched with images by CLIP in Song et al. (ACL 2022). Different on purpose: matching knows true and false,
so one answer may be for images of which no statement is true.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dimvl.callbacks import Progress
from dimvl.data.annotations import Id, Question
from dimvl.data.answers import Answer
from dimvl.data.examples import Example, Text
from dimvl.data.layout import starts_of
from dimvl.data.prefixes import Prefix
from dimvl.data.targets import TargetSpec, WordTargets
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.showing import short
from dimvl.tasks.answering.statements import Asked, Statement, StatementRules, read_statements
from dimvl.tasks.base import plain_text
from dimvl.tasks.inference import finite, predict_texts
from dimvl.tasks.pretraining.matching import match_logits
from dimvl.tasks.task import Ability
from dimvl.trained_model import TrainedModel

Rules = str | Path | StatementRules
"""A file of rules, or the rules."""


@dataclass(frozen=True)
class _Prepared:
    """A question by its tokenised statements.

    Attributes:
        score: what decides between them, `match` or `masked_word`.
        asked: the statements; None if no rule covers the question.
        words: token ids (T,) of each statement.
        places: places (L,) of the answer's tokens in each statement.
        repeated: rows that each statement after the first adds besides its text, those of a prefix of its own.

    """

    score: str
    asked: Asked | None
    words: Sequence[np.ndarray]
    places: Sequence[np.ndarray]
    repeated: int

    def __len__(self) -> int:
        """Rows besides those of one prefix, about."""
        return sum(len(text) + 1 + self.repeated for text in self.words) - self.repeated * (len(self.words) > 0)


def _prepare(trained: TrainedModel, questions: Sequence[str], statements: Rules, **options: Any) -> list[_Prepared]:
    """Tokenise the statements of questions, each statement once.

    Raises:
        UserError: the model lacks the head that scores them, a mistake in the rules, or a statement that is cut
            before its answer.

    """
    rules = statements if isinstance(statements, StatementRules) else read_statements(Path(statements))
    processor, masked = trained.processor, rules.score == "masked_word"
    if not processor.matches or (masked and not processor.masked_words):
        raise UserError(
            f"{trained.weights.parent} was not trained to predict {'masked words' if masked else 'matches'}, by which "
            f"{rules.source} scores; give a pretraining run or its export"
        )
    asked = [rules.ask(question) for question in questions]
    needed = list(dict.fromkeys(statement for one in asked if one for statement in one.statements))
    tokens = dict(zip(needed, trained.tokenise([statement.text for statement in needed]), strict=True))
    places = dict.fromkeys(needed, np.zeros(0, dtype=np.int64))
    if masked:
        places = {statement: _places_of_answer(trained, statement, len(words)) for statement, words in tokens.items()}
        if cut := [statement.text for statement, own in places.items() if len(own) == 0]:
            raise UserError(
                f"{rules.source}: the answer of {short(cut[0])} has no word among the {processor.text_tokens} text "
                "tokens of the model; shorten the statement"
            )
    # Masked statements are nearly all equal, and computed once.
    repeated = 0 if masked or processor.shared_prefix else processor.max_regions + processor.text_start
    return [
        _Prepared(rules.score, one, [tokens[each] for each in own], [places[each] for each in own], repeated)
        for one, own in ((one, one.statements if one else []) for one in asked)
    ]


def _places_of_answer(trained: TrainedModel, statement: Statement, length: int) -> np.ndarray:
    """Return the places (L,) of the answer's tokens among the first `length` of a statement."""
    pieces = [len(part) for part in trained.processor.tokenizer.encode_all(statement.parts)]
    return np.flatnonzero(np.repeat(np.arange(len(pieces)) % 2 == 1, pieces)[:length])


def _ranked(
    trained: TrainedModel, prefixes: Sequence[Prefix], asked: Sequence[_Prepared]
) -> list[list[tuple[str, float]]]:
    """Return the answers to each question with their probabilities, best first; none if no rule covers it."""
    scores = _match_scores if all(one.score == "match" for one in asked) else _word_scores
    return [
        [] if one.asked is None else one.asked.ranked(logits.tolist())
        for one, logits in zip(asked, scores(trained, prefixes, asked), strict=True)
    ]


def _best_answer(trained: TrainedModel, ranked: Sequence[tuple[str, float]], top: int = 5, **options: Any) -> Answer:
    """Return the best of the ranked answers; of none, the empty answer."""
    if top < 1:
        raise UserError(f"top is {top}; it must be at least 1")
    return Answer(*ranked[0], list(ranked[:top])) if ranked else Answer("", 0.0, [])


ZERO_SHOT = Ability(
    verb="answer by statements",
    available=lambda processor: processor.matches,
    prepare=_prepare,
    apply=_ranked,
    result=_best_answer,
    takes_text=True,
    example='predictor.answer("image.png", "is there a circle?", statements="rules.yaml")',
)


def answer_by_statements(
    trained: TrainedModel,
    store: RegionStore,
    questions: Sequence[Question],
    rules: StatementRules,
    progress: Progress | None = None,
) -> dict[Id, str]:
    """Return the best answer to each question that a rule covers, by question id.

    Raises:
        UserError: the model cannot score statements, no question is covered, or as `answer_questions`.

    """
    asked = _prepare(trained, [question.text for question in questions], rules)
    covered = [place for place, one in enumerate(asked) if one.asked is not None]
    if questions and not covered:
        raise UserError(
            f"{rules.source} covers none of the {len(questions):,} questions, such as {short(questions[0].text)}; "
            "write rules for them"
        )
    found = predict_texts(
        trained,
        store,
        [questions[place].images for place in covered],
        [asked[place] for place in covered],
        lambda prefixes, own: _ranked(trained, prefixes, own),
        progress,
    )
    return {questions[place].question_id: ranked[0][0] for place, ranked in zip(covered, found, strict=True)}


def _match_scores(trained: TrainedModel, prefixes: Sequence[Prefix], asked: Sequence[_Prepared]) -> list[np.ndarray]:
    """Return the matching logits (S,) of each question's statements."""
    repeated = [prefix for prefix, one in zip(prefixes, asked, strict=True) for _ in one.words]
    words = [text for one in asked for text in one.words]
    logits = match_logits(trained, repeated, words).double().cpu().numpy() if words else np.zeros(0)
    return np.split(logits, np.cumsum([len(one.words) for one in asked])[:-1])


@torch.inference_mode()
def _word_scores(trained: TrainedModel, prefixes: Sequence[Prefix], asked: Sequence[_Prepared]) -> list[np.ndarray]:
    """Return the mean log-probability (S,) of the answer's tokens in each question's statements.

    Statements that are equal once masked are computed once.
    """
    tokenizer, examples = trained.processor.tokenizer, list[Example]()
    number_of = dict[tuple[int, bytes], int]()
    uses = list[list[tuple[int, np.ndarray]]]()  # of each question: number of the masked text, wanted tokens
    for prefix, one in zip(prefixes, asked, strict=True):
        uses.append([])
        for words, places in zip(one.words, one.places, strict=True):
            masked = words.copy()
            masked[places] = tokenizer.mask
            number = number_of.setdefault((id(prefix), masked.tobytes()), len(examples))
            if number == len(examples):
                text = Text(token_ids=plain_text(masked, tokenizer).token_ids, places=places, labels=words[places])
                examples.append(Example(source="statement", objective="masked_lm", prefix=prefix, texts=[text]))
            uses[-1].append((number, words[places]))
    if not examples:
        return [np.zeros(0) for _ in asked]
    batch = trained.batch(examples, {"masked_lm": TargetSpec(WordTargets)})
    assert trained.model.word_head is not None
    rows = trained.model(batch)[batch.targets["masked_lm"].rows]
    logs = finite(trained.model.word_head(rows).float().log_softmax(dim=-1).cpu()).double().numpy()
    starts = starts_of(np.array([len(example.texts[0].places) for example in examples]))
    return [
        np.array([logs[starts[number] + np.arange(len(wanted)), wanted].mean() for number, wanted in own])
        for own in uses
    ]
