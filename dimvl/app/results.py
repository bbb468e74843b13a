"""What a model says about an image, and the regions that it rests on, as the page shows them.

A result rests on a region by how much less probable it is without it, as `dimvl.explanation` measures; here for each
of several answers, which cost no more than one.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dimvl.drawing import heat_of, region_name
from dimvl.explanation import RegionDrop, without
from dimvl.fields import LONGEST_TEXT
from dimvl.predictor import Predictor
from dimvl.regions.records import Regions

MOST_CHANGES = 96
"""The most changes of one word that are scored."""
OTHER_WORDS = (
    ("left", "right"),
    ("above", "below"),
    ("over", "under"),
    ("top", "bottom"),
    ("one", "two", "three", "four", "five", "six"),
)
"""Words that change the meaning of any text, beside the names that the detector knows."""


class Mark(NamedTuple):
    """A region as a result shows it.

    Attributes:
        box: x1, y1, x2, y2 as fractions of width and height.
        name: attributes and class; empty if unknown.
        value: what is said of it: its score, its probability, or by how much less probable the result is without it.
        heat: how strongly it is shown, in [0, 1].

    """

    box: tuple[float, float, float, float]
    name: str
    value: float
    heat: float


@dataclass(frozen=True)
class Result:
    """A text, its probability if it has one, and the regions that it rests on, the strongest first."""

    text: str
    probability: float | None
    marks: Sequence[Mark] = ()


@dataclass(frozen=True)
class Change:
    """A text with one word changed from `old` to `new` at character `place`."""

    text: str
    place: int
    old: str
    new: str


def marks_of(predictor: Predictor, regions: Regions) -> list[Mark]:
    """Return the regions of an image with the scores of their classes, in their order."""
    extractor = predictor.trained.processor.extractor
    scores = regions.class_scores[:, 0] if regions.class_ids.shape[1] else np.zeros(len(regions))
    return [
        Mark((box[0], box[1], box[2], box[3]), region_name(extractor, regions, place), float(scores[place]), 1.0)
        for place, box in enumerate(regions.boxes.tolist())
    ]


def caption(predictor: Predictor, regions: Regions) -> tuple[Result, list[Result]]:
    """Return the caption, and each of its words, with the regions they rest on."""
    found = predictor.explain(regions, None, "caption")
    whole = [_mark(region, regions, region.probability_drop, found.probability, True) for region in found.regions]
    words = [
        Result(word, None, _ranked(_mark(one, regions, one.word_drops[place], 0.0, True) for one in found.regions))
        for place, word in enumerate(found.words)
    ]
    return Result(found.result, None, _ranked(whole)), words


def answers(predictor: Predictor, regions: Regions, question: str, top: int = 5) -> list[Result]:
    """Return the best answers to a question, each with the regions it rests on."""
    every = len(predictor.trained.processor.answers)
    whole, *fewer = predictor.predict("answer", _left_out(regions), question, top=every)
    tables = [dict(one.top) for one in fewer]
    return [
        Result(text, value, _dropped(predictor, regions, value, [table[text] for table in tables]))
        for text, value in whole.top[:top]
    ]


def match(predictor: Predictor, regions: Regions, text: str) -> tuple[Result, list[tuple[Change, float]]]:
    """Return how well a text fits with the regions that rests on, and its changes of one word, the best fit first."""
    changes = one_word_changes(predictor, regions, text)
    whole, *others = predictor.predict("match", regions, [text, *(change.text for change in changes)])
    fewer = predictor.predict("match", _left_out(regions)[1:], text) if len(regions) else []
    ranked = sorted(zip(changes, others, strict=True), key=lambda pair: -pair[1])
    return Result(text, whole, _dropped(predictor, regions, whole, fewer)), ranked


def ground(predictor: Predictor, regions: Regions, phrase: str) -> tuple[list[Mark], float]:
    """Return the regions that a phrase refers to, the most probable first, and the probability that none fits."""
    found = predictor.ground(regions, phrase)
    pairs = zip(found.regions, found.probabilities, strict=True)
    return [_mark(region, regions, value, 1.0)._replace(heat=value**0.5) for region, value in pairs], found.nowhere


def one_word_changes(predictor: Predictor, regions: Regions, text: str) -> list[Change]:
    """Change each word to others of its kind: names that the detector knows, opposites, numbers.

    The names of the image's own regions, which are the hardest to tell apart, come first; there are at most
    `MOST_CHANGES`.
    """
    extractor = predictor.trained.processor.extractor
    here = {
        *(extractor.classes[index] for index in regions.class_ids.ravel().tolist() if index >= 0),
        *(extractor.attributes[index] for index in regions.attribute_ids.ravel().tolist() if index >= 0),
    }
    kinds = [
        [name for name in names if re.fullmatch(r"\w+", name)] for names in (extractor.classes, extractor.attributes)
    ]
    words = list(re.finditer(r"\w+", text[:LONGEST_TEXT]))
    found = [
        (new not in here, change)
        for kind in (*kinds, *OTHER_WORDS)
        for word in words
        for new, change in _changes_of(text, word, kind)
    ]
    return [change for _, change in sorted(found, key=lambda pair: pair[0])[:MOST_CHANGES]]


def _changes_of(text: str, word: re.Match[str], kind: Sequence[str]) -> Iterator[tuple[str, Change]]:
    """Yield each other word of a kind and the change to it; a plural stays one, and `a` or `an` fits the new word."""
    old = word[0].lower()
    plural = "s" if old not in kind and old.endswith("s") and old[:-1] in kind else ""
    if old.removesuffix(plural) not in kind:
        return
    article = re.search(r"\b(an?)(\s+)$", text[: word.start()], re.IGNORECASE)
    for new in kind:
        if new != old.removesuffix(plural):
            before = text[: word.start()]
            if article:
                fitting = article[1][0] + ("n" if new[0] in "aeiou" else "")
                before = before[: article.start()] + fitting + article[2]
            yield new, Change(before + new + plural + text[word.end() :], len(before), word[0], new + plural)


def _left_out(regions: Regions) -> list[Regions]:
    """Return the regions, and then the regions without each of them."""
    return [regions, *(without(regions, place) for place in range(len(regions)))]


def _dropped(predictor: Predictor, regions: Regions, whole: float, fewer: Sequence[float]) -> list[Mark]:
    """Return the marks of a result from its probability and that without each region."""
    marks = zip(marks_of(predictor, regions), fewer, strict=True)
    return _ranked(mark._replace(value=whole - value, heat=heat_of(whole - value, whole)) for mark, value in marks)


def _mark(region: RegionDrop, regions: Regions, value: float, probability: float, logarithms: bool = False) -> Mark:
    width, height = regions.width, regions.height
    box = (region.box[0] / width, region.box[1] / height, region.box[2] / width, region.box[3] / height)
    return Mark(box, " ".join((*region.attributes, region.name)), value, heat_of(value, probability, logarithms))


def _ranked(marks: Iterator[Mark] | Sequence[Mark]) -> list[Mark]:
    return sorted(marks, key=lambda mark: -mark.value)
