"""Captions of scenes: sentences from templates, and a parser that reads exactly these sentences back into facts.

A template is a sentence with alternatives "(is|sits)" and slots "{a}". Writing picks one alternative and fills the
slots; parsing turns the same template into a regular expression, so the two cannot drift apart. The slots:

    {a} {b} {c}       "a large red circle" or "a large red object"; {A} {B} may say "the" if only one object matches
    {side} {side2}    "to the left of": a is on that side of b, or of c
    {its}             "on its left": a is on that side of b
    {place} {place2}  "top left": a, or b, is in that quarter of the image
    {many} {all}      "two red circles": none, or each, of the mentioned objects is among them
"""

import re
from collections.abc import Iterable

import numpy as np

from dimvl.data.scenes.facts import Fact, judge, phrase_facts
from dimvl.data.scenes.phrases import (
    NAMED_TEXTURES,
    NUMBER_WORDS,
    PLACES,
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
    "{A} (is|sits|lies) in the {place}",
    f"{_SEE} {{a}} in the {{place}}",
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
_SHARES = {"{place}": 8, "{many}": 4, "{all}": 4, "{side}": 4, "{its}": 4}  # how often templates are drawn; others: 2
_DRAWN = [t for t in TEMPLATES for _ in range(next((n for slot, n in _SHARES.items() if slot in t), 2))]

_ITS = {
    "left": ("on its left", "to its left"),
    "right": ("on its right", "to its right"),
    "above": ("above it", "over it"),
    "below": ("below it", "beneath it", "under it"),
}
_WORDS, _FACTS = range(8, 23), range(3, 9)  # allowed in a caption
_NUM_ADJECTIVES = (1, 1, 1, 2, 2, 2, 2, 3, 3)  # drawn for each phrase
_OBJECT_SHARE = 0.3  # of phrases that say "object" instead of the shape, as most questions do
_TRIES = 200


def _one_of(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(words)})"


_ADJECTIVES = f"(?:{_one_of(SIZES)} )?(?:{_one_of(COLOURS)} )?(?:{_one_of(NAMED_TEXTURES)} )?"
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
    """Return the facts of a caption: of a, b and c, places, relations, count. None for a sentence outside the grammar.

    Case, spaces, the final full stop and the choice of article are ignored.
    """
    words = " ".join(text.lower().replace(",", " , ").split())
    words = words.removesuffix(".").rstrip().replace(" ,", ",")
    match = next(filter(None, (pattern.fullmatch(words) for pattern in _PATTERNS)), None)
    return None if match is None else _facts(match.groupdict())


def is_true(caption: str, world: World) -> bool:
    """Return whether the caption can be parsed and all its facts are true in `world`."""
    facts = parse_caption(caption)
    return facts is not None and all(judge(fact, world) for fact in facts)


def _facts(texts: dict[str, str]) -> list[Fact]:
    phrases = {slot: read_phrase(texts[slot]) for slot in "abc" if slot in texts}
    facts = [fact for phrase in phrases.values() for fact in phrase_facts(phrase)]
    for slot, name in (("place", "a"), ("place2", "b")):
        if slot in texts:
            facts.append(Fact(kind="place", phrase=phrases[name], place=texts[slot]))
    for slot, other in (("side", "b"), ("its", "b"), ("side2", "c")):
        if slot in texts:
            side = _SIDE_OF[texts[slot]]
            facts.append(Fact(kind="relation", phrase=phrases["a"], side=side, other=phrases[other]))
    for slot in ("many", "all"):
        if slot in texts:
            number, words = texts[slot].split(" ", 1)
            facts.append(Fact(kind="count", phrase=read_phrase(words), count=_NUMBER_OF[number]))
    return facts


def sample_captions(world: World, options: SceneOptions) -> list[str]:
    """Write `captions_per_image` different captions of `world`, all true and of 8 to 22 words."""
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
        texts = _fill(template, world, generator)
        if texts is None:
            continue
        sentence = re.sub(r"\(([^)]*)\)", lambda words: pick(words[1].split("|"), generator), template).format(**texts)
        facts = parse_caption(sentence)
        assert facts is not None, f"the grammar cannot parse its own sentence: {sentence}"
        if len(sentence.split()) in _WORDS and len(facts) in _FACTS and all(judge(fact, world) for fact in facts):
            return sentence + "."
    raise AssertionError(f"no caption for scene {world.image_id}")  # two objects always yield one


def _fill(template: str, world: World, generator: np.random.Generator) -> dict[str, str] | None:
    """Return texts for the slots of a template; None if the scene has no objects for it."""
    slots = re.findall(r"{(\w+)}", template)
    names = [slot for slot in slots if slot.lower() in "abc"]
    if len(names) > len(world.objects):
        return None
    items = dict(zip([name.lower() for name in names], shuffled(world.objects, generator), strict=False))
    phrases = {name: _describe(items[name.lower()], generator) for name in names}
    filled = {name: _with_article(name, phrase, world, generator) for name, phrase in phrases.items()}
    for slot, other, texts in (("side", "b", SIDES), ("its", "b", _ITS), ("side2", "c", SIDES)):
        if slot in slots:
            sides = clear_sides(items["a"], items[other], world)
            if not sides:
                return None
            filled[slot] = pick(texts[pick(sides, generator)], generator)
    for slot, name in (("place", "a"), ("place2", "b")):
        if slot in slots:
            place = clear_place(items[name], world)
            if place is None:
                return None
            filled[slot] = place
    for slot in ("many", "all"):
        if slot in slots:
            counted = _counted_phrases(world, list(items.values()), inside=slot == "all")
            if not counted:
                return None
            phrase = pick(counted, generator)
            filled[slot] = f"{NUMBER_WORDS[phrase.count_in(world)]} {phrase.plural()}"
    return filled


def _counted_phrases(world: World, items: list[SceneObject], inside: bool) -> list[Phrase]:
    """Return phrases for at least two objects that match all (inside) or none of the mentioned items."""
    all_slots = ((), ("shape",), ("colour",), ("size",), ("colour", "shape"), ("size", "shape"))
    phrases = {describe(item, slots) for item in world.objects for slots in all_slots}
    counted = [
        phrase
        for phrase in phrases
        if phrase.count_in(world) >= 2 and all(phrase.matches(item) == inside for item in items)
    ]
    return sorted(counted, key=Phrase.singular)  # a set has no order, and the choice must be reproducible


def _describe(item: SceneObject, generator: np.random.Generator) -> Phrase:
    adjectives = ["size", "colour"] + (["texture"] if item.texture != "plain" else [])
    named = shuffled(adjectives, generator)[: pick(_NUM_ADJECTIVES, generator)]
    return describe(item, named if generator.random() < _OBJECT_SHARE else [*named, "shape"])


def _with_article(slot: str, phrase: Phrase, world: World, generator: np.random.Generator) -> str:
    if slot.isupper() and phrase.count_in(world) == 1 and generator.random() < 0.5:
        return f"the {phrase.singular()}"
    return phrase.with_article()
