r"""Answers of VQA v2: the official normalisation, the answer vocabulary and the soft targets.

The normalisation is that of the official evaluator, quirks included: its period expression is `(?!<=\d)(\.)(?!\d)` and
its flag is passed in the place of a count (re.UNICODE = 32 replacements).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dimvl.errors import UserError
from dimvl.files import read_json

_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_PERIODS_REMOVED = 32
AGREEING = 3  # others who must give an answer too for a full point
_COMMA = re.compile(r"(\d)(\,)(\d)")
_PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}


def _contractions() -> dict[str, str]:
    """Spellings that lack one apostrophe -> the contraction.

    The evaluator's list, its holes included: "im" and "ive" stay as they are (its own entries begin with a capital and
    meet lower-case words), and one entry takes an apostrophe off.
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
    lacking = {
        word[:place] + word[place + 1 :]: word
        for word in words.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }
    return lacking | {"somebody'd": "somebodyd"}


_CONTRACTIONS = _contractions()


def normalise_answer(answer: str) -> str:
    """Bring an answer into the official evaluator's form: punctuation, number words, articles, contractions."""
    return _words(_punctuation(strip_answer(answer)))


def strip_answer(answer: str) -> str:
    """Take newlines, tabs and outer blanks off: all that the evaluator does where all ten people agree."""
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
    """Soft targets of one question: what each answer would score, see `agreement`.

    So 0, .3, .6, .9, 1 for 0, 1, 2, 3 and more of ten people (LXMERT, UNITER), and 1 for the one answer of GQA.
    """
    counts = Counter(map(normalise_answer, answers))
    return {answer: agreement(count, len(answers)) for answer, count in counts.items()}


def agreement(agreeing: int, people: int) -> float:
    """Score of an answer that so many of all people gave, at least one.

    The mean over the ways to leave one person out of min(n / 3, 1), with n the others who agree, as the evaluator of
    VQA v2 has it. Three or fewer people have no three others, so that nobody could be right: there it is the share of
    the people, which for four is the same.
    """
    if people <= AGREEING:
        return agreeing / people
    left_out, there = min((agreeing - 1) / AGREEING, 1.0), min(agreeing / AGREEING, 1.0)
    return (agreeing * left_out + (people - agreeing) * there) / people


def answer_vocabulary(answers: Iterable[Sequence[str]], size: int) -> list[str]:
    """Choose the `size` answers given most often as a question's most frequent one; ties in alphabetical order."""
    counts: Counter[str] = Counter()
    for people in answers:
        if people:
            counts[Counter(map(normalise_answer, people)).most_common(1)[0][0]] += 1
    return [answer for answer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]]


def read_answers(path: Path) -> list[str]:
    """Read an answer vocabulary: a JSON list, or a JSON mapping from each answer to its place.

    The lists of published models have different orders, so a head only fits the list that it was trained with.

    Raises:
        UserError: it is neither, has an answer twice, or the places have gaps.

    """
    content = read_json(path)
    if isinstance(content, dict):
        places = list(content.values())
        whole = all(isinstance(place, int) and not isinstance(place, bool) for place in places)
        if not whole or sorted(places) != list(range(len(places))):
            raise UserError(f"{path}: the places of the answers are not 0 to {len(places) - 1}; number them so")
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not all(isinstance(answer, str) for answer in content):
        raise UserError(f"{path} is no list of answers; give a JSON list of texts")
    if len(content) < 2:
        raise UserError(f"{path} has {len(content)} answers; give at least 2")
    if twice := [answer for answer, count in Counter(content).items() if count > 1]:
        raise UserError(f"{path} has the answer {twice[0]!r} twice; remove one")
    return content


def answer_ids(vocabulary: Sequence[str]) -> dict[str, int]:
    """Place of each answer, by its own form and by its normalised one where that is no other answer.

    Published lists have answers that the normalisation changes, and targets are normalised.
    """
    ids = {answer: place for place, answer in enumerate(vocabulary)}
    for answer, place in list(ids.items()):
        ids.setdefault(normalise_answer(answer), place)
    return ids


def label_ids(scores: Mapping[str, float], vocabulary: Mapping[str, int]) -> tuple[tuple[int, float], ...]:
    """Soft targets as (answer id, score), answers outside the vocabulary left out."""
    return tuple((vocabulary[answer], score) for answer, score in scores.items() if answer in vocabulary)
