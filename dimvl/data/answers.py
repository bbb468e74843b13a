r"""Answers of VQA v2: the official normalisation, the answer vocabulary and the soft targets.

The normalisation is that of the official evaluator, quirks included: its period expression is `(?!<=\d)(\.)(?!\d)` and
its flag is passed in the place of a count (re.UNICODE = 32 replacements).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_PERIODS_REMOVED = 32
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
    """Spellings without (some of) the apostrophe -> the contraction."""
    plain = (
        "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
        "i'm i've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't "
        "should've shouldn't somebody'd somebody's someone'd someone'll someone's something'd something'll that's there'd "
        "there're there's they'd they'll they're they've wasn't we've weren't what'll what're what's what've when's "
        "where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd "
        "you'll you're you've"
    )
    return {word.replace("'", ""): word for word in plain.split()}


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
    """Soft targets of one question: 0, .3, .6, .9, 1 for 0, 1, 2, 3 and more of ten people (LXMERT, UNITER)."""
    return {answer: min(1.0, 0.3 * count) for answer, count in Counter(map(normalise_answer, answers)).items()}


def answer_vocabulary(answers: Iterable[Sequence[str]], size: int) -> list[str]:
    """Choose the `size` answers given most often as a question's most frequent one; ties in alphabetical order."""
    counts: Counter[str] = Counter()
    for people in answers:
        if people:
            counts[Counter(map(normalise_answer, people)).most_common(1)[0][0]] += 1
    return [answer for answer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]]


def label_ids(scores: Mapping[str, float], vocabulary: Mapping[str, int]) -> tuple[tuple[int, float], ...]:
    """Soft targets as (answer id, score), answers outside the vocabulary left out."""
    return tuple((vocabulary[answer], score) for answer, score in scores.items() if answer in vocabulary)
