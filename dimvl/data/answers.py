r"""Answers of VQA v2: the official normalisation, the answer vocabulary and the soft targets.

The normalisation has the quirks of the official evaluator: its period expression is `(?!<=\d)(\.)(?!\d)`, and its flag
is passed as a count (re.UNICODE = 32 replacements).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dimvl.errors import UserError
from dimvl.fields import is_blank
from dimvl.files import read_json
from dimvl.regions.display import table
from dimvl.showing import counted

_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_PERIODS_REMOVED = 32
AGREEING = 3  # other people who must give the same answer for a full point
_COMMA = re.compile(r"(\d)(\,)(\d)")
_PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}


@dataclass(frozen=True)
class Answer:
    """The best answer with its probability, and the best few (answer, probability), best first.

    Each answer has a probability of its own (a sigmoid, as is usual for VQA v2); they do not add up to 1. Those of
    answers by statements do.
    """

    text: str
    probability: float
    top: list[tuple[str, float]]

    def _repr_html_(self) -> str:
        return table(("answer", "probability"), self.top or [(self.text, self.probability)])


class Chosen(NamedTuple):
    """The most probable candidate.

    Attributes:
        candidate: its text.
        place: its place among the candidates, from 0.
        probability: its probability among them.
        probabilities: those of all candidates, in their order.

    """

    candidate: str
    place: int
    probability: float
    probabilities: list[float]


def _contractions() -> dict[str, str]:
    """Return spellings without one of the apostrophes -> the contraction.

    This is the evaluator's list with its errors: "im" and "ive" stay unchanged (its entries are capitalised, but words
    are lower-case), and one entry removes an apostrophe.
    """
    words = (
        "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't "
        "he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've "
        "must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't "
        "shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's "
        "something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've "
        "they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd "
        "where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't "
        "wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've"
    )
    spellings = {
        word[:index] + word[index + 1 :]: word
        for word in words.split()
        for index, letter in enumerate(word)
        if letter == "'"
    }
    return spellings | {"somebody'd": "somebodyd"}


_CONTRACTIONS = _contractions()


@lru_cache(maxsize=4096)
def normalise_answer(answer: str) -> str:
    """Normalise an answer like the official evaluator: punctuation, number words, articles, contractions."""
    return _words(_punctuation(strip_answer(answer)))


def strip_answer(answer: str) -> str:
    """Remove newlines, tabs and outer spaces: all that the evaluator does if all ten people agree."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str) -> str:
    result = text
    has_number_comma = _COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        if f"{mark} " in text or f" {mark}" in text or has_number_comma:
            result = result.replace(mark, "")
        else:
            result = result.replace(mark, " ")
    return _PERIOD.sub("", result, count=_PERIODS_REMOVED)


def _words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Return the soft targets of one question: the score of each answer, see `agreement`.

    With ten people, 1, 2, 3, 4 and more give .3, .6, .9, 1 (LXMERT, UNITER); the single answer of GQA gets 1.
    """
    counts = Counter(map(normalise_answer, answers))
    return {answer: agreement(count, len(answers)) for answer, count in counts.items()}


def agreement(agreeing: int, people: int) -> float:
    """Return the score of an answer that `agreeing` of `people` people gave, at least one.

    As in the evaluator of VQA v2, it is the mean of min(n / 3, 1) over leaving out each person in turn, where n of the
    others gave the answer. Among three or fewer people nobody has three others, so there it is the share of the people;
    for four people the two are equal.
    """
    if people <= AGREEING:
        return agreeing / people
    without, with_all = min((agreeing - 1) / AGREEING, 1.0), min(agreeing / AGREEING, 1.0)
    return (agreeing * without + (people - agreeing) * with_all) / people


def answer_vocabulary(answers: Iterable[Sequence[str]], size: int) -> list[str]:
    """Return the `size` answers that are most often the most frequent answer to a question; ties alphabetically.

    Answers of which the normalisation leaves nothing, such as "?", are not among them; published lists may have "".
    """
    counts: Counter[str] = Counter()
    for people in answers:
        ranked = Counter(map(normalise_answer, people)).most_common()
        if best := next((answer for answer, _ in ranked if not is_blank(answer)), ""):
            counts[best] += 1
    return [answer for answer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]]


def read_answers(path: Path, noun: str = "answer") -> list[str]:
    """Read an answer vocabulary: a JSON list, or a JSON mapping from each answer to its number.

    Args:
        path: the file.
        noun: what it lists, for messages.

    Published lists have different orders, so a head only fits the list that it was trained with.

    Raises:
        UserError: it is neither, has an answer twice, or the numbers have gaps.

    """
    content = read_json(path)
    if isinstance(content, dict):
        numbers = list(content.values())
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
        if not whole or sorted(numbers) != list(range(len(numbers))):
            raise UserError(f"{path}: the {noun}s are not numbered from 0 to {len(numbers) - 1}; renumber them")
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not all(isinstance(answer, str) for answer in content):
        raise UserError(f"{path} is not a list of {noun}s; give a JSON list of texts")
    if len(content) < 2:
        raise UserError(f"{path} has {counted(len(content), noun)}; give at least 2")
    if twice := [answer for answer, count in Counter(content).items() if count > 1]:
        raise UserError(f"{path} has the {noun} {twice[0]!r} twice; remove one")
    return content


def answer_ids(vocabulary: Sequence[str]) -> dict[str, int]:
    """Return the number of each answer by its own form and, unless that is another answer, its normalised form.

    Published lists have answers that the normalisation changes, and targets are normalised.
    """
    ids = {answer: number for number, answer in enumerate(vocabulary)}
    for answer, number in list(ids.items()):
        ids.setdefault(normalise_answer(answer), number)
    return ids


def label_ids(scores: Mapping[str, float], vocabulary: Mapping[str, int]) -> tuple[tuple[int, float], ...]:
    """Return soft targets as (answer id, score), without answers outside the vocabulary."""
    return tuple((vocabulary[answer], score) for answer, score in scores.items() if answer in vocabulary)
