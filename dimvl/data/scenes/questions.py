"""Questions about scenes with their answers: existence, counting, attribute, place, relation and comparison.

The wanted answer is drawn first and a question with that answer is looked for, so that who knows the question only
gains little over chance. A phrase of a held-out combination is only asked about in the compositional split: elsewhere
the answer would always be no.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dimvl.data.scenes.phrases import (
    CLEAR_MARGIN,
    OPPOSITE,
    PLACES,
    SAID_TEXTURES,
    SIDES,
    Phrase,
    clear_place,
    clear_sides,
    describe,
    offset,
    pick,
    shuffled,
)
from dimvl.data.scenes.world import COLOURS, SHAPES, SIZES, SceneObject, SceneOptions, World, generator_for

KINDS = ("existence", "counting", "attribute", "place", "relation", "comparison")
SLOTS = ("size", "colour", "texture", "shape")
VALUES = {"size": SIZES, "colour": tuple(COLOURS), "texture": SAID_TEXTURES, "shape": SHAPES}
ASKED_AS = {"size": "size", "colour": "color", "texture": "texture", "shape": "shape"}

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

_FIRST_WHERE = 6  # relation questions that want this or more ask for the side: it is the easiest way into relations
_FIRST_OPEN = 12  # ... and these for an object: two of five, as many find none to ask for
_LARGEST_COUNT = 4
_COUNTED_SLOTS = ((), ("size",), ("size",), ("texture",), ("shape",), ("shape",), ("colour",), ("colour", "shape"))
_COMPARED = (*SLOTS, "more", "more", "more", "more", "equal", "equal")
_ASKED_SLOTS = (  # of existence questions; one adjective alone would nearly always be there
    ("shape",),
    ("colour",),
    ("colour", "shape"),
    ("colour", "shape"),
    ("size", "shape"),
    ("size", "colour"),
    ("texture", "shape"),
    ("texture", "colour"),
    ("size", "colour", "shape"),
    ("colour", "texture", "shape"),
)
_WANTED = 20  # what is wanted is a number below this; each kind reads its answer from it
_WANTED_TRIED = 6
_TRIES = 16  # for one wanted answer
_LONGER_SHARE = 0.3  # of the phrases that say a word more than they need


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        kind: of `KINDS`.
        text: lower case, with question mark.
        answer: a word, a number or yes/no.
        phrases: the noun phrases that the text says.

    """

    kind: str
    text: str
    answer: str
    phrases: tuple[Phrase, ...]

    @property
    def answer_type(self) -> str:
        """Return yes/no, number or other, as VQA v2 has it."""
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "number" if self.answer.isdigit() else "other"

    @property
    def names_held_out(self) -> bool:
        """Whether it names a held-out combination."""
        return any(phrase.is_held_out for phrase in self.phrases)


_Ask = Callable[[World, int, np.random.Generator], Question | None]


def sample_questions(world: World, options: SceneOptions, compositional: bool = False) -> list[Question]:
    """Ask `questions_per_image` different questions, the kinds in turn.

    Args:
        world: the scene.
        options: for the seed and the number.
        compositional: ask about held-out combinations, where possible in at least half of the questions; otherwise in
            none.

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
        for kind in kinds:  # where the scene has none of the first kind, the next one helps out
            question = question or _find(kind, world, generator, asked, (True, False) if compositional else (False,))
        if question is not None:
            questions.append(question)
            named += question.names_held_out
    return questions


def _find(
    kind: str, world: World, generator: np.random.Generator, asked: set[str], naming: tuple[bool, ...]
) -> Question | None:
    """Look for a new question of a kind that names a held-out combination or does not; None where none is found."""
    for wanted in generator.permutation(_WANTED)[:_WANTED_TRIED].tolist():
        for _ in range(_TRIES):
            question = _ASK[kind](world, wanted, generator)
            if question is not None and question.text not in asked and question.names_held_out in naming:
                return question
    return None


def _existence(world: World, wanted: int, generator: np.random.Generator) -> Question | None:
    """Ask for something that is there or, harder than anything, for a true phrase with one word changed."""
    slots = _ASKED_SLOTS[wanted // 2]
    yes = wanted % 2 == 0
    for item in shuffled(world.objects, generator):
        phrase = describe(item, slots)
        if any(getattr(phrase, slot) is None for slot in slots):
            continue  # a plain object for a phrase with texture
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
    item = _item_with(slot, pick(sorted({getattr(item, slot) for item in world.objects}), generator), world, generator)
    phrase = _referring_phrase(item, world, [other for other in SLOTS if other != slot], generator)
    if phrase is None:
        return None
    text = pick(_ATTRIBUTE, generator).format(ASKED_AS[slot], phrase.singular())
    return Question("attribute", text, getattr(item, slot), (phrase,))


def _place(world: World, wanted: int, generator: np.random.Generator) -> Question | None:
    """Ask for the quarter of the picture: the way into relations, since only here one object's box is the answer."""
    items = [item for item in world.objects if clear_place(item, world) == PLACES[wanted % len(PLACES)]]
    phrase = _referring_phrase(pick(items, generator), world, SLOTS, generator) if items else None
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
    first = _referring_phrase(item, world, SLOTS, generator)
    second = _referring_phrase(other, world, SLOTS, generator)
    if first is None or second is None:
        return None
    if wanted >= _FIRST_WHERE:
        text = pick(_WHERE, generator).format(first.singular(), second.singular())
        return Question("relation", text, side, (first, second)) if len(sides) == 1 else None
    yes = wanted % 2 == 0
    said = pick(SIDES[side if yes else OPPOSITE[side]], generator)
    text = pick(_RELATION, generator).format(first.singular(), said, second.singular())
    return Question("relation", text, "yes" if yes else "no", (first, second))


def _open_relation(
    world: World, item: SceneObject, side: str, other: SceneObject, generator: np.random.Generator
) -> Question | None:
    """Ask what `item` is, the only object on that side of `other`, all the rest being clearly on the opposite one."""
    margin = CLEAR_MARGIN * world.width
    if any(offset(side, third, other) > -margin for third in world.objects if third is not item and third is not other):
        return None
    phrase = _referring_phrase(other, world, SLOTS, generator)
    if phrase is None:
        return None
    slot = pick(("shape", "colour"), generator)
    said = pick(SIDES[side], generator)
    text = pick(_OPEN_RELATION, generator).format(ASKED_AS[slot], said, phrase.singular())
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
    if form == "more":
        truth, wording = counts[0] > counts[1], pick(_MORE, generator)
    else:
        truth, wording = counts[0] == counts[1], pick(_EQUAL, generator)
    if truth != yes:
        return None
    text = wording.format(first.plural(), second.plural())
    return Question("comparison", text, "yes" if yes else "no", (first, second))


def _same_attribute(world: World, slot: str, yes: bool, generator: np.random.Generator) -> Question | None:
    item, other = shuffled(world.objects, generator)[:2]
    if (getattr(item, slot) == getattr(other, slot)) != yes:
        return None
    slots = [name for name in SLOTS if name != slot]
    first = _referring_phrase(item, world, slots, generator)
    second = _referring_phrase(other, world, slots, generator)
    if first is None or second is None:
        return None
    text = pick(_SAME, generator).format(ASKED_AS[slot], first.singular(), second.singular())
    return Question("comparison", text, "yes" if yes else "no", (first, second))


def _random_phrase(world: World, slots: tuple[str, ...], generator: np.random.Generator) -> Phrase:
    """Return a phrase of the given slots, of an object of the scene, half the time with one change."""
    item = pick(world.objects, generator)
    said = {slot: getattr(item, slot) for slot in slots}
    changed = pick(slots, generator) if slots and generator.random() < 0.5 else None
    for slot in slots:
        if slot == changed or said[slot] not in VALUES[slot]:
            said[slot] = pick(VALUES[slot], generator)
    return Phrase(**said)


def _item_with(slot: str, value: str, world: World, generator: np.random.Generator) -> SceneObject:
    return pick([item for item in world.objects if getattr(item, slot) == value], generator)


def _referring_phrase(
    item: SceneObject, world: World, slots: Sequence[str], generator: np.random.Generator
) -> Phrase | None:
    """Return a phrase of some of the slots that no other object matches; None where there is none.

    Words are added in random order until the phrase is unique, and sometimes one more.
    """
    order = shuffled(slots, generator)
    longer = generator.random() < _LONGER_SHARE
    for number in range(1, len(order) + 1):
        phrase = describe(item, order[: number + longer])
        if phrase.count_in(world) == 1:
            return phrase
    return None


_ASK: dict[str, _Ask] = {
    "existence": _existence,
    "counting": _counting,
    "attribute": _attribute,
    "place": _place,
    "relation": _relation,
    "comparison": _comparison,
}
