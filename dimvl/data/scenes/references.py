"""Phrases that describe exactly one object of a scene, with its box: by attributes, place or relation.

A phrase by place or relation names attributes that at least two objects have, so that attributes alone do not tell
which one is meant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dimvl.data.scenes.phrases import (
    CLEAR_MARGIN,
    SIDES,
    SLOTS,
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

KINDS = ("attribute", "place", "relation")
_TRIES = 20
_NUM_WORDS = (0, 1, 1, 1, 2, 2)  # drawn for each phrase by place or relation


@dataclass(frozen=True)
class Reference:
    """One phrase.

    Attributes:
        kind: one of `KINDS`.
        text: lower case, such as "the small red star left of the blue square".
        item: the only object that it describes.

    """

    kind: str
    text: str
    item: SceneObject


def sample_references(world: World, options: SceneOptions) -> list[Reference]:
    """Write `phrases_per_image` different phrases, cycling through the kinds; fewer if the scene has no more."""
    generator = generator_for(options, world.image_id, "phrases")
    found: dict[str, Reference] = {}
    for number in range(options.phrases_per_image):
        first = world.image_id + number
        kinds = [KINDS[(first + step) % len(KINDS)] for step in range(len(KINDS))]
        tried = (_DESCRIBE[kind](world, generator) for kind in kinds for _ in range(_TRIES))
        new = next((reference for reference in tried if reference and reference.text not in found), None)
        if new is not None:
            found[new.text] = new
    return list(found.values())


def _by_attributes(world: World, generator: np.random.Generator) -> Reference | None:
    item = pick(world.objects, generator)
    phrase = referring_phrase(item, world, SLOTS, generator)
    return None if phrase is None else Reference("attribute", f"the {phrase.singular()}", item)


def _by_place(world: World, generator: np.random.Generator) -> Reference | None:
    item = pick(world.objects, generator)
    phrase, others = _shared_phrase(item, world, generator)
    place = clear_place(item, world)
    if place is None or not others or any(clear_place(other, world) in (None, place) for other in others):
        return None
    return Reference("place", f"the {phrase.singular()} in the {place}", item)


def _by_relation(world: World, generator: np.random.Generator) -> Reference | None:
    """Describe an object by its side of another one; all others with these attributes are clearly opposite."""
    item, landmark = shuffled(world.objects, generator)[:2]
    phrase, others = _shared_phrase(item, world, generator)
    sides = clear_sides(item, landmark, world)
    if not others or not sides:
        return None
    side = pick(sides, generator)
    margin = CLEAR_MARGIN * world.width
    if any(offset(side, other, landmark) > -margin for other in others if other is not landmark):
        return None
    known = referring_phrase(landmark, world, SLOTS, generator)
    if known is None:
        return None
    words = pick(SIDES[side], generator)
    return Reference("relation", f"the {phrase.singular()} {words} the {known.singular()}", item)


def _shared_phrase(
    item: SceneObject, world: World, generator: np.random.Generator
) -> tuple[Phrase, Sequence[SceneObject]]:
    """Return a phrase for `item`, and the other objects that it fits."""
    phrase = describe(item, shuffled(SLOTS, generator)[: pick(_NUM_WORDS, generator)])
    return phrase, [other for other in phrase.found_in(world) if other is not item]


_DESCRIBE: dict[str, Callable[[World, np.random.Generator], Reference | None]] = {
    "attribute": _by_attributes,
    "place": _by_place,
    "relation": _by_relation,
}
