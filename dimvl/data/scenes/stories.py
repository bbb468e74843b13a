"""Stories: sequences of 3 to 5 images of the same objects, with one sentence about each.

The first sentence says what there is. Between two images one thing changes, and the sentence of the second one says
what: an object appears, leaves, moves or changes colour. Stories that a model tells are judged by `judge_story`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from dimvl.data.scenes.language import is_true
from dimvl.data.scenes.phrases import (
    NUMBER_WORDS,
    SLOTS,
    Phrase,
    clear_place,
    describe,
    pick,
    place_of,
    referring_phrase,
    shuffled,
)
from dimvl.data.scenes.world import (
    COLOURS,
    HELD_OUT_COMBINATIONS,
    SceneObject,
    SceneOptions,
    World,
    first_id_of_story,
    generator_for,
    moved,
    random_world,
    with_new_object,
    with_objects,
)

_LENGTHS = (3, 4, 5)
_TRIES = 12
_LONG_SHARE = 0.3  # of objects whose size and texture the first sentence tells, too
_SHORTEST_WAY = 0.25  # of a move along one axis, as a share of the image's side

_FIRST = ("there is {} and {}", "we see {} and {}", "the picture shows {} and {}")
_APPEARS = ("{} appears", "now there is {}")
_LEAVES = ("the {} disappears", "the {} leaves", "now the {} is gone")
_TURNS = ("the {} turns {}", "the {} becomes {}", "now the {} is {}")
_MOVES = ("the {} moves {}", "the {} goes {}")
_WAYS = {"left": "to the left", "right": "to the right", "above": "up", "below": "down"}


class Story(NamedTuple):
    """The scenes of a story, in order, and the sentence of each, without full stop."""

    worlds: tuple[World, ...]
    sentences: tuple[str, ...]


class _Change(NamedTuple):
    world: World
    sentence: str


def length(index: int) -> int:
    """Return the number of images of a story of any split."""
    return _LENGTHS[index % len(_LENGTHS)]


def sample_story(options: SceneOptions, split: str, index: int) -> Story:
    """Return story `index` of `split`; its images are its own, and begin as those of the split do."""
    first_id = first_id_of_story(split, index)
    generator = generator_for(options, first_id, "story")
    while True:
        worlds, sentences = [random_world(options, split, first_id, generator)], [""]
        while len(worlds) < length(index) and (change := _change(worlds[-1], options, generator)) is not None:
            worlds.append(replace(change.world, image_id=worlds[-1].image_id + 1))
            sentences.append(change.sentence)
        if len(worlds) == length(index):
            sentences[0] = _first_sentence(worlds, generator)
            return Story(tuple(worlds), tuple(sentences))


def _first_sentence(worlds: list[World], generator: np.random.Generator) -> str:
    """Name two objects of the first scene, those that change if possible."""
    items = shuffled(worlds[0].objects, generator)
    items.sort(key=lambda item: all(item in world.objects for world in worlds))
    first, *others = (
        describe(item, SLOTS if generator.random() < _LONG_SHARE else ("colour", "shape")) for item in items
    )
    second = next((phrase for phrase in others if phrase != first), None)
    if second is None:
        return f"there are {NUMBER_WORDS[len(items)]} {first.plural()}"
    return pick(_FIRST, generator).format(first.with_article(), second.with_article())


def _change(world: World, options: SceneOptions, generator: np.random.Generator) -> _Change | None:
    """Return the next scene, or None if nothing can change."""
    for change in shuffled(_CHANGES, generator):
        for _ in range(_TRIES):
            if (found := change(world, options, generator)) is not None:
                return found
    return None


def _appears(world: World, options: SceneOptions, generator: np.random.Generator) -> _Change | None:
    if len(world.objects) == options.max_objects:
        return None
    later = with_new_object(world, options, generator)
    if later is None:
        return None
    phrase = referring_phrase(later.objects[-1], later, SLOTS, generator)
    if phrase is None:
        return None
    place = clear_place(later.objects[-1], later)
    where = f" in the {place}" if place and generator.random() < 0.5 else ""
    return _Change(later, pick(_APPEARS, generator).format(phrase.with_article()) + where)


def _leaves(world: World, options: SceneOptions, generator: np.random.Generator) -> _Change | None:
    if len(world.objects) == options.min_objects:
        return None
    return _changed(world, pick(world.objects, generator), None, (_LEAVES, ""), options, generator)


def _turns(world: World, options: SceneOptions, generator: np.random.Generator) -> _Change | None:
    item = pick(world.objects, generator)
    known = ((item.shape, colour) for colour in COLOURS if colour != item.colour)
    colour = pick([colour for shape, colour in known if (shape, colour) not in HELD_OUT_COMBINATIONS], generator)
    return _changed(world, item, replace(item, colour=colour), (_TURNS, colour), options, generator)


def _moves(world: World, options: SceneOptions, generator: np.random.Generator) -> _Change | None:
    item = pick(world.objects, generator)
    margin = item.extent / 2 + 1
    axis = int(generator.integers(2))
    goal = float(generator.uniform(margin, world.width - margin))
    way = goal - item.centre[axis]
    if abs(way) < _SHORTEST_WAY * world.width:
        return None
    x, y = (goal, item.centre[1]) if axis == 0 else (item.centre[0], goal)
    return _changed(world, item, moved(item, x, y), (_MOVES, _way(axis, way)), options, generator)


def _way(axis: int, pixels: float) -> str:
    """Return the words for a move along an axis, 0 across and 1 down."""
    return _WAYS[(("left", "right"), ("above", "below"))[axis][pixels > 0]]


def _changed(
    world: World,
    item: SceneObject,
    new: SceneObject | None,
    told: tuple[tuple[str, ...], str],
    options: SceneOptions,
    generator: np.random.Generator,
) -> _Change | None:
    """Put `new` in the place of an object, or nothing, and tell it; None if no phrase says which object it was."""
    kept = [new if other is item else other for other in world.objects]
    phrase = referring_phrase(item, world, SLOTS, generator)
    later = with_objects(world, [other for other in kept if other is not None], options)
    if phrase is None or later is None:
        return None
    wordings, words = told
    return _Change(later, pick(wordings, generator).format(phrase.singular(), words))


_CHANGES: tuple[Callable[[World, SceneOptions, np.random.Generator], _Change | None], ...] = (
    *(_appears, _leaves, _turns, _moves),
)


def judge_story(story: str, worlds: Sequence[World]) -> list[bool]:
    """Return for each image whether the story's sentence about it is true; a missing one is not.

    The first sentence is judged as a caption. Each other one must tell the one change since the image before, in the
    words of these stories, and describe the object so that no other one fits; one that appears may have a likeness.
    """
    told = [" ".join(sentence.split()) for sentence in story.lower().split(".")] + [""] * len(worlds)
    counts = {f"there are {word} {phrase.plural()}" for phrase, word in _counted(worlds[0])}
    changes = (sentence in _told(*pair) for sentence, pair in zip(told[1:], pairwise(worlds), strict=False))
    return [told[0] in counts or is_true(told[0], worlds[0]), *changes]


def _phrases(item: SceneObject) -> Iterator[Phrase]:
    """Yield the phrases that fit an object, but for the mere "object"."""
    every = (describe(item, slots) for number in range(1, 5) for slots in combinations(SLOTS, number))
    yield from dict.fromkeys(phrase for phrase in every if phrase != Phrase())


def _counted(world: World) -> Iterator[tuple[Phrase, str]]:
    """Yield the phrases that fit several objects, and the word for how many."""
    for phrase in {phrase for item in world.objects for phrase in _phrases(item)}:
        if (number := phrase.count_in(world)) in NUMBER_WORDS:
            yield phrase, NUMBER_WORDS[number]


def _told(before: World, now: World) -> set[str]:
    """Return the true sentences about the change between two images of a story."""
    first, second = ([replace(item, visible=1.0) for item in world.objects] for world in (before, now))
    old = next((item for item in first if item not in second), None)
    new = next((item for item in second if item not in first), None)
    if old is None:
        names = [] if new is None else [phrase.with_article() for phrase in _phrases(new)]
        places = ("", "" if new is None else f" in the {place_of(new, now)}")
        return {text.format(name) + place for name in names for text in _APPEARS for place in places}
    wordings: tuple[str, ...] = _LEAVES
    words = ""
    if new is not None and new.centre == old.centre:
        wordings, words = _TURNS, new.colour
    elif new is not None:
        axis = int(new.centre[0] == old.centre[0])
        wordings, words = _MOVES, _way(axis, new.centre[axis] - old.centre[axis])
    names = [phrase.singular() for phrase in _phrases(old) if phrase.count_in(before) == 1]
    return {text.format(name, words) for name in names for text in wordings}
