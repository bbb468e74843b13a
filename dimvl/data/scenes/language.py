"""Captions of scenes: sentences from templates, and the parser that reads exactly these sentences back into facts.

A template is a sentence with alternatives "(is|sits)" and slots "{a}". Writing picks one alternative and fills the
slots; reading turns the same template into a regular expression, so the two cannot drift apart. The slots:

    {a} {b} {c}    "a large red circle"; {A} {B}: "the" is possible where the phrase names one object only
    {side}         "to the left of": a lies on that side of b; {side2}: a lies on that side of c
    {its}          "on its left": a lies on that side of b
    {place} {place2}  "top left": a and b lie in that quarter of the picture
    {many}         "two red circles": neither a nor b is among them; {all}: every mentioned object is among them
"""

import re
from collections.abc import Iterable

import numpy as np

from dimvl.data.scenes.facts import Fact, judge, phrase_facts
from dimvl.data.scenes.phrases import (
    NUMBER_WORDS,
    PLACES,
    SAID_TEXTURES,
    SIDES,
    Phrase,
    clear_place,
    clear_sides,
    describe,
    pick,
    plural,
    read_phrase,
    shuffled,
)
from dimvl.data.scenes.world import COLOURS, SHAPES, SIZES, SceneObject, SceneOptions, World, generator_for

_SEE = "(there is|i can see|you can see|the picture shows|the image contains|we see)"
_SEE_MANY = "(there are|i can see|you can see|the picture shows|the image contains|we see)"
_PICTURE = "(a picture|an image|a drawing) (of|with)"
TEMPLATES = (
    "{A} (is|sits|lies) {side} {B}",
    "{A} (is|sits|lies) {side} {B} and {side2} {c}",
    f"{_SEE} {{a}} {{side}} {{B}}",
    f"{_SEE} {{a}} {{side}} {{B}} and {{c}}",
    "{side} {B} (there is|you can see|lies) {a}",
    "{B} has {a} {its}",
    f"{_PICTURE} {{a}} {{side}} {{b}}",
    "there are {all} and {A} (is|sits|lies) {side} {B}",
    "{A} (is|sits|lies) {side} {B}, and there are {all} (in total|altogether)",
    "{A} (is|sits|lies) in the {place} and {B} in the {place2}",
    f"{_SEE} {{a}} in the {{place}} and {{b}} in the {{place2}}",
    "in the {place} (there is|you can see|lies) {a}, and in the {place2} {b}",
    "{A} (is|sits|lies) in the {place}, {side} {B}",
    "there are {all}, one of them is {a}",
    f"{_SEE_MANY} {{many}} and {{a}}",
    "{a} is (shown|drawn) (with|together with) {many}",
    "besides {many} there is {a}",
    f"{_SEE} {{a}} and {{b}}",
    f"{_SEE} {{a}}, {{b}} and {{c}}",
    f"{_PICTURE} {{a}}, {{b}} and {{c}}",
)
_SHARES = {"{place}": 4, "{side}": 3, "{its}": 3}  # what is said of where things lie comes more often than the rest
_DRAWN = [t for t in TEMPLATES for _ in range(next((n for slot, n in _SHARES.items() if slot in t), 2))]

_ITS = {
    "left": ("on its left", "to its left"),
    "right": ("on its right", "to its right"),
    "above": ("above it", "over it"),
    "below": ("below it", "beneath it", "under it"),
}
_FEWEST_WORDS, _MOST_WORDS = 8, 22
_FEWEST_FACTS, _MOST_FACTS = 3, 8
_ADJECTIVES_SAID = (1, 1, 1, 2, 2, 2, 2, 3, 3)  # drawn for each phrase
_TRIES = 200


def _one_of(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(words)})"


_ADJECTIVES = f"(?:{_one_of(SIZES)} )?(?:{_one_of(COLOURS)} )?(?:{_one_of(SAID_TEXTURES)} )?"
_PHRASE = f"(?:an?|the) (?P<NAME>{_ADJECTIVES}{_one_of((*SHAPES, 'object'))})"
_COUNTED = f"(?P<NAME>{_one_of(NUMBER_WORDS.values())} {_ADJECTIVES}{_one_of(plural(s) for s in (*SHAPES, 'object'))})"
_SIDE = f"(?P<NAME>{_one_of(text for texts in SIDES.values() for text in texts)})"
_SLOT_PATTERNS = {
    **dict.fromkeys("abcAB", _PHRASE),
    **dict.fromkeys(("many", "all"), _COUNTED),
    **dict.fromkeys(("side", "side2"), _SIDE),
    **dict.fromkeys(("place", "place2"), f"(?P<NAME>{_one_of(PLACES)})"),
    "its": f"(?P<NAME>{_one_of(text for texts in _ITS.values() for text in texts)})",
}
_SIDE_OF = {text: side for sides in (SIDES, _ITS) for side, texts in sides.items() for text in texts}
_NUMBER_OF = {word: number for number, word in NUMBER_WORDS.items()}


def _pattern(template: str) -> re.Pattern[str]:
    pattern = template.replace("(", "(?:")
    return re.compile(
        re.sub(r"{(\w+)}", lambda slot: _SLOT_PATTERNS[slot[1]].replace("NAME", slot[1].lower()), pattern)
    )


_PATTERNS = tuple(_pattern(template) for template in TEMPLATES)


def parse_caption(text: str) -> list[Fact] | None:
    """Read the facts of a caption, in the order a, b, c, places, relations, count.

    Case, blanks and the final stop do not matter, nor does the choice of article.

    Returns:
        The facts, or None for a sentence that the grammar does not know.

    """
    words = " ".join(text.lower().replace(",", " , ").split())
    words = words.removesuffix(".").rstrip().replace(" ,", ",")
    for pattern in _PATTERNS:
        match = pattern.fullmatch(words)
        if match:
            return _facts({slot: said for slot, said in match.groupdict().items() if said is not None})
    return None


def is_true(caption: str, world: World) -> bool:
    """Whether the caption can be read and all its facts are true in `world`."""
    facts = parse_caption(caption)
    return facts is not None and all(judge(fact, world) for fact in facts)


def _facts(said: dict[str, str]) -> list[Fact]:
    phrases = {slot: read_phrase(said[slot]) for slot in "abc" if slot in said}
    facts = [fact for phrase in phrases.values() for fact in phrase_facts(phrase)]
    for slot, name in (("place", "a"), ("place2", "b")):
        if slot in said:
            facts.append(Fact(kind="place", phrase=phrases[name], place=said[slot]))
    for slot, other in (("side", "b"), ("its", "b"), ("side2", "c")):
        if slot in said:
            side = _SIDE_OF[said[slot]]
            facts.append(Fact(kind="relation", phrase=phrases["a"], side=side, other=phrases[other]))
    for slot in ("many", "all"):
        if slot in said:
            number, words = said[slot].split(" ", 1)
            facts.append(Fact(kind="count", phrase=read_phrase(words), count=_NUMBER_OF[number]))
    return facts


def sample_captions(world: World, options: SceneOptions) -> list[str]:
    """Write `captions_per_image` different captions of `world`, each one true and of 8 to 22 words."""
    generator = generator_for(options, world.image_id, "captions")
    captions: list[str] = []
    while len(captions) < options.captions_per_image:
        caption = _sample_caption(world, generator)
        if caption not in captions:
            captions.append(caption)
    return captions


def _sample_caption(world: World, generator: np.random.Generator) -> str:
    for _ in range(_TRIES):
        template = pick(_DRAWN, generator)
        said = _fill(template, world, generator)
        if said is None:
            continue
        sentence = re.sub(r"\(([^)]*)\)", lambda words: pick(words[1].split("|"), generator), template).format(**said)
        facts = parse_caption(sentence)
        assert facts is not None, f"the grammar cannot read its own sentence: {sentence}"
        if (
            _FEWEST_WORDS <= len(sentence.split()) <= _MOST_WORDS
            and _FEWEST_FACTS <= len(facts) <= _MOST_FACTS
            and all(judge(fact, world) for fact in facts)
        ):
            return sentence + "."
    raise AssertionError(f"no caption for scene {world.image_id}")  # two objects always give one


def _fill(template: str, world: World, generator: np.random.Generator) -> dict[str, str] | None:
    """Texts for the slots of a template; None where the scene has no objects for it."""
    slots = re.findall(r"{(\w+)}", template)
    names = [slot for slot in slots if slot.lower() in "abc"]
    if len(names) > len(world.objects):
        return None
    items = dict(zip([name.lower() for name in names], shuffled(world.objects, generator), strict=False))
    phrases = {name: _describe(items[name.lower()], generator) for name in names}
    said = {name: _with_article(name, phrase, world, generator) for name, phrase in phrases.items()}
    for slot, other, texts in (("side", "b", SIDES), ("its", "b", _ITS), ("side2", "c", SIDES)):
        if slot in slots:
            sides = clear_sides(items["a"], items[other], world)
            if not sides:
                return None
            said[slot] = pick(texts[pick(sides, generator)], generator)
    for slot, name in (("place", "a"), ("place2", "b")):
        if slot in slots:
            place = clear_place(items[name], world)
            if place is None:
                return None
            said[slot] = place
    for slot in ("many", "all"):
        if slot in slots:
            counted = _counted_phrases(world, list(items.values()), inside=slot == "all")
            if not counted:
                return None
            phrase = pick(counted, generator)
            said[slot] = f"{NUMBER_WORDS[phrase.count_in(world)]} {phrase.plural()}"
    return said


def _counted_phrases(world: World, items: list[SceneObject], inside: bool) -> list[Phrase]:
    """Phrases for two objects or more that match all (inside) or none of the mentioned items."""
    phrases = {
        describe(item, slots)
        for item in world.objects
        for slots in ((), ("shape",), ("colour",), ("size",), ("colour", "shape"), ("size", "shape"))
    }
    return sorted(
        (
            phrase
            for phrase in phrases
            if phrase.count_in(world) >= 2 and all(phrase.matches(item) == inside for item in items)
        ),
        key=Phrase.singular,  # a set has no order of its own, and the choice must be the same every time
    )


def _describe(item: SceneObject, generator: np.random.Generator) -> Phrase:
    adjectives = ["size", "colour"] + (["texture"] if item.texture != "plain" else [])
    return describe(item, [*shuffled(adjectives, generator)[: pick(_ADJECTIVES_SAID, generator)], "shape"])


def _with_article(slot: str, phrase: Phrase, world: World, generator: np.random.Generator) -> str:
    if slot.isupper() and phrase.count_in(world) == 1 and generator.random() < 0.5:
        return f"the {phrase.singular()}"
    return phrase.with_article()
