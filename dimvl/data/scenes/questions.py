"""Questions about scenes with their answers: existence, counting, attribute, place, relation and comparison.

The wanted answer is drawn first and then a question with that answer, so that a question-only model gains little over
chance. Held-out combinations are asked about in the compositional split only: elsewhere the answer would always be no.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dimvl.data.scenes.phrases import (
    CLEAR_MARGIN,
    OPPOSITE,
    PLACES,
    SIDES,
    SLOTS,
    VALUES,
    Phrase,
    clear_place,
    clear_sides,
    describe,
    offset,
    pick,
    referring_phrase,
    shuffled,
)
from dimvl.data.scenes.world import SceneObject, SceneOptions, World, generator_for

KINDS = ("existence", "counting", "attribute", "place", "relation", "comparison")
_ASKED_AS = {"size": "size", "colour": "color", "texture": "texture", "shape": "shape"}

_EXISTENCE = ("is there {}?", "can you see {}?", "does the picture show {}?")
_COUNTING = ("how many {} are there?", "how many {} can you see?", "how many {} are in the picture?")
_ATTRIBUTE = ("what {} is the {}?", "which {} does the {} have?", "what is the {} of the {}?")
_PLACE = ("where in the picture is the {}?", "in which part of the picture does the {} lie?", "where is the {}?")
_RELATION = ("is the {} {} the {}?", "does the {} lie {} the {}?", "can you see the {} {} the {}?")
_OPEN_RELATION = ("what {} is the object {} the {}?", "which {} does the object {} the {} have?")
_WHERE = ("where is the {} relative to the {}?", "on which side of the {1} is the {0}?")
_MORE = ("are there more {} than {}?", "do you see more {} than {}?", "does the picture show more {} than {}?")
_EQUAL = ("are there as many {} as {}?", "do you see as many {} as {}?")
_SAME = ("is the {1} the same {0} as the {2}?", "do the {1} and the {2} have the same {0}?")

# Relation questions ask for yes or no, from _FIRST_WHERE on for the side, which is the easiest way to learn relations,
# and from _FIRST_OPEN on for an object: two of five, because many find none to ask for.
_FIRST_WHERE, _FIRST_OPEN = 6, 12
_LARGEST_COUNT = 4
_COUNTED_SLOTS = ((), ("size",), ("size",), ("texture",), ("shape",), ("shape",), ("colour",), ("colour", "shape"))
_COMPARED = (*SLOTS, "more", "more", "more", "more", "equal", "equal")
_ASKED_SLOTS = (  # of existence questions; a size or texture alone would nearly always be present
    *(("shape",), ("colour",), ("colour", "shape"), ("colour", "shape"), ("size", "shape"), ("size", "colour")),
    *(("texture", "shape"), ("texture", "colour"), ("size", "colour", "shape"), ("colour", "texture", "shape")),
)
_WANTED = 20  # a wanted answer is drawn as a number below this, which each kind of question interprets
_WANTED_TRIED, _TRIES = 6, 16  # wanted answers tried, and attempts at each


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        kind: one of `KINDS`.
        text: lower case, with question mark.
        answer: a word, a number or yes/no.
        phrases: the noun phrases in the text.

    """

    kind: str
    text: str
    answer: str
    phrases: tuple[Phrase, ...]

    @property
    def answer_type(self) -> str:
        """The answer type of VQA v2: yes/no, number or other."""
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "number" if self.answer.isdigit() else "other"

    @property
    def names_held_out(self) -> bool:
        """Whether the question names a held-out combination."""
        return any(phrase.is_held_out for phrase in self.phrases)


def sample_questions(world: World, options: SceneOptions, compositional: bool = False) -> list[Question]:
    """Ask `questions_per_image` different questions, cycling through the kinds.

    If `compositional`, at least half of them ask about held-out combinations where possible; otherwise none.
    """
    generator = generator_for(options, world.image_id, "questions")
    questions: list[Question] = []
    first_kind = world.image_id % len(KINDS)
    named = 0
    for number in range(options.questions_per_image):
        asked = {question.text for question in questions}
        kinds = [KINDS[(first_kind + number + step) % len(KINDS)] for step in range(len(KINDS))]
        must_name = compositional and 2 * named < options.questions_per_image
        question = _find(kinds[0], world, generator, asked, (True,)) if must_name else None
        for kind in kinds:  # if the scene has no question of the first kind, try the next
            question = question or _find(kind, world, generator, asked, (True, False) if compositional else (False,))
        if question is not None:
            questions.append(question)
            named += question.names_held_out
    return questions


def _find(
    kind: str, world: World, generator: np.random.Generator, asked: set[str], naming: tuple[bool, ...]
) -> Question | None:
    """Return a new question whose `names_held_out` is in `naming`; None if none is found."""
    for wanted in generator.permutation(_WANTED)[:_WANTED_TRIED].tolist():
        for _ in range(_TRIES):
            question = _ASK[kind](world, wanted, generator)
            if question is not None and question.text not in asked and question.names_held_out in naming:
                return question
    return None


def _existence(world: World, wanted: int, generator: np.random.Generator) -> Question | None:
    """Ask for an object that exists or, which is hardest, for a true phrase with one word changed."""
    slots = _ASKED_SLOTS[wanted // 2]
    yes = wanted % 2 == 0
    for item in shuffled(world.objects, generator):
        phrase = describe(item, slots)
        if any(getattr(phrase, slot) is None for slot in slots):
            continue  # a plain object has no texture to mention
        if not yes:
            slot = pick(slots, generator)
            others = [value for value in VALUES[slot] if value != getattr(phrase, slot)]
            phrase = Phrase(**{**vars(phrase), slot: pick(others, generator)})
        if (phrase.count_in(world) > 0) == yes:
            text = pick(_EXISTENCE, generator).format(phrase.with_article())
            return Question("existence", text, "yes" if yes else "no", (phrase,))
    return None


def _counting(world: World, wanted: int, generator: np.random.Generator) -> Question | None:
    slots = pick(_COUNTED_SLOTS, generator)
    phrase = _random_phrase(world, slots, generator)
    count = phrase.count_in(world)
    if count != wanted % (_LARGEST_COUNT + 1):
        return None
    return Question("counting", pick(_COUNTING, generator).format(phrase.plural()), str(count), (phrase,))


def _attribute(world: World, wanted: int, generator: np.random.Generator) -> Question | None:
    slot = SLOTS[wanted % len(SLOTS)]
    value = pick(sorted({getattr(item, slot) for item in world.objects}), generator)
    item = pick([item for item in world.objects if getattr(item, slot) == value], generator)
    phrase = referring_phrase(item, world, [other for other in SLOTS if other != slot], generator)
    if phrase is None:
        return None
    text = pick(_ATTRIBUTE, generator).format(_ASKED_AS[slot], phrase.singular())
    return Question("attribute", text, getattr(item, slot), (phrase,))


def _place(world: World, wanted: int, generator: np.random.Generator) -> Question | None:
    """Ask for the quarter of the image. This prepares for relations: only here is one object's box the answer."""
    items = [item for item in world.objects if clear_place(item, world) == PLACES[wanted % len(PLACES)]]
    phrase = referring_phrase(pick(items, generator), world, SLOTS, generator) if items else None
    if phrase is None:
        return None
    text = pick(_PLACE, generator).format(phrase.singular())
    return Question("place", text, PLACES[wanted % len(PLACES)], (phrase,))


def _relation(world: World, wanted: int, generator: np.random.Generator) -> Question | None:
    item, other = shuffled(world.objects, generator)[:2]
    sides = clear_sides(item, other, world)
    if not sides:
        return None
    side = pick(sides, generator)
    if wanted >= _FIRST_OPEN:
        return _open_relation(world, item, side, other, generator)
    first = referring_phrase(item, world, SLOTS, generator)
    second = referring_phrase(other, world, SLOTS, generator)
    if first is None or second is None:
        return None
    if wanted >= _FIRST_WHERE:
        text = pick(_WHERE, generator).format(first.singular(), second.singular())
        return Question("relation", text, side, (first, second)) if len(sides) == 1 else None
    yes = wanted % 2 == 0
    words = pick(SIDES[side if yes else OPPOSITE[side]], generator)
    text = pick(_RELATION, generator).format(first.singular(), words, second.singular())
    return Question("relation", text, "yes" if yes else "no", (first, second))


def _open_relation(
    world: World, item: SceneObject, side: str, other: SceneObject, generator: np.random.Generator
) -> Question | None:
    """Ask what `item` is, if it is the only object on `side` of `other` and all the rest are clearly opposite."""
    margin = CLEAR_MARGIN * world.width
    if any(offset(side, third, other) > -margin for third in world.objects if third is not item and third is not other):
        return None
    phrase = referring_phrase(other, world, SLOTS, generator)
    if phrase is None:
        return None
    slot = pick(("shape", "colour"), generator)
    words = pick(SIDES[side], generator)
    text = pick(_OPEN_RELATION, generator).format(_ASKED_AS[slot], words, phrase.singular())
    return Question("relation", text, getattr(item, slot), (phrase,))


def _comparison(world: World, wanted: int, generator: np.random.Generator) -> Question | None:
    yes = wanted % 2 == 0
    form = _COMPARED[wanted // 2]
    if form in SLOTS:
        return _same_attribute(world, form, yes, generator)
    slots = (pick(("shape", "colour", "size", "texture"), generator),)
    first, second = (_random_phrase(world, slots, generator) for _ in range(2))
    counts = first.count_in(world), second.count_in(world)
    if first == second or counts == (0, 0):
        return None
    truth = counts[0] > counts[1] if form == "more" else counts[0] == counts[1]
    wording = pick(_MORE if form == "more" else _EQUAL, generator)
    if truth != yes:
        return None
    text = wording.format(first.plural(), second.plural())
    return Question("comparison", text, "yes" if yes else "no", (first, second))


def _same_attribute(world: World, slot: str, yes: bool, generator: np.random.Generator) -> Question | None:
    item, other = shuffled(world.objects, generator)[:2]
    if (getattr(item, slot) == getattr(other, slot)) != yes:
        return None
    slots = [name for name in SLOTS if name != slot]
    first = referring_phrase(item, world, slots, generator)
    second = referring_phrase(other, world, slots, generator)
    if first is None or second is None:
        return None
    text = pick(_SAME, generator).format(_ASKED_AS[slot], first.singular(), second.singular())
    return Question("comparison", text, "yes" if yes else "no", (first, second))


def _random_phrase(world: World, slots: tuple[str, ...], generator: np.random.Generator) -> Phrase:
    """Return a phrase with the given slots of an object in the scene, half the time with one word changed."""
    item = pick(world.objects, generator)
    words = {slot: getattr(item, slot) for slot in slots}
    changed = pick(slots, generator) if slots and generator.random() < 0.5 else None
    for slot in slots:
        if slot == changed or words[slot] not in VALUES[slot]:
            words[slot] = pick(VALUES[slot], generator)
    return Phrase(**words)


_ASK: dict[str, Callable[[World, int, np.random.Generator], Question | None]] = {
    "existence": _existence,
    "counting": _counting,
    "attribute": _attribute,
    "place": _place,
    "relation": _relation,
    "comparison": _comparison,
}
