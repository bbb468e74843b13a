"""Noun phrases and sides: the words that all texts share.

A phrase reads "large red striped circle": size, colour, texture, shape, always in this order. The texture "plain" is
never mentioned, and a phrase without a shape says "object".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dimvl.data.scenes.world import COLOURS, HELD_OUT_COMBINATIONS, SHAPES, SIZES, TEXTURES, SceneObject, World

Item = TypeVar("Item")

NAMED_TEXTURES = tuple(texture for texture in TEXTURES if texture != "plain")
SLOTS = ("size", "colour", "texture", "shape")
VALUES = {"size": SIZES, "colour": tuple(COLOURS), "texture": NAMED_TEXTURES, "shape": SHAPES}
NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
SIDES = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "beneath", "under"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PLACES = ("top left", "top right", "bottom left", "bottom right")
CLEAR_MARGIN = 0.15  # a side is only mentioned if the centres are at least this share of the image's side apart
_LONGER_SHARE = 0.3  # of referring phrases with one word more than necessary
_PLACE_MARGIN = 0.06  # ... and a place if the centre is at least this share of it away from both middle lines

_SLOT_OF = {
    **dict.fromkeys(SIZES, "size"),
    **dict.fromkeys(COLOURS, "colour"),
    **dict.fromkeys(NAMED_TEXTURES, "texture"),
    **dict.fromkeys(SHAPES, "shape"),
}


def plural(noun: str) -> str:
    """Return the plural of a shape or of "object"."""
    return noun + ("es" if noun.endswith("s") else "s")


_SINGULAR = {plural(noun): noun for noun in (*SHAPES, "object")}


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """What a noun phrase says about an object; None where it says nothing."""

    size: str | None = None
    colour: str | None = None
    texture: str | None = None
    shape: str | None = None

    @property
    def adjectives(self) -> tuple[str, ...]:
        """The adjectives in reading order."""
        return tuple(filter(None, (self.size, self.colour, self.texture)))

    @property
    def is_held_out(self) -> bool:
        """Whether the phrase names a held-out combination."""
        return (self.shape, self.colour) in HELD_OUT_COMBINATIONS

    def shared_with(self, item: SceneObject) -> tuple[str, ...]:
        """Return the adjectives that are true of `item`."""
        return tuple(word for word in self.adjectives if word in (item.size, item.colour, item.texture))

    def matches(self, item: SceneObject) -> bool:
        """Return whether the whole phrase is true of `item`."""
        return (  # spelled out: writing questions spends most of its time here
            self.shape in (None, item.shape)
            and self.colour in (None, item.colour)
            and self.size in (None, item.size)
            and self.texture in (None, item.texture)
        )

    def found_in(self, world: World) -> list[SceneObject]:
        """Return the objects that match."""
        return [item for item in world.objects if self.matches(item)]

    def count_in(self, world: World) -> int:
        """Return the number of objects that match."""
        return len(self.found_in(world))

    def singular(self) -> str:
        """Return "large red circle"."""
        return " ".join((*self.adjectives, self.shape or "object"))

    def plural(self) -> str:
        """Return "large red circles"."""
        return " ".join((*self.adjectives, plural(self.shape or "object")))

    def with_article(self) -> str:
        """Return "a large red circle"."""
        text = self.singular()
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def read_phrase(words: str) -> Phrase:
    """Read "large red circle" or "large red circles"; the words must be in the vocabulary."""
    singular = [_SINGULAR.get(word, word) for word in words.split()]
    return Phrase(**{_SLOT_OF[word]: word for word in singular if word != "object"})


def describe(item: SceneObject, slots: Sequence[str]) -> Phrase:
    """Return the phrase that names the given slots (size, colour, texture, shape) of `item`, except plain."""
    words = {slot: getattr(item, slot) for slot in slots}
    return Phrase(**{slot: word for slot, word in words.items() if word != "plain"})


def referring_phrase(
    item: SceneObject, world: World, slots: Sequence[str], generator: np.random.Generator
) -> Phrase | None:
    """Return a phrase of some of the slots that only `item` matches; None if no such phrase exists.

    Words are added in random order until the phrase is unique, and sometimes one more.
    """
    order = shuffled(slots, generator)
    longer = generator.random() < _LONGER_SHARE
    for number in range(1, len(order) + 1):
        phrase = describe(item, order[: number + longer])
        if phrase.count_in(world) == 1:
            return phrase
    return None


def offset(side: str, item: SceneObject, other: SceneObject) -> float:
    """Return the pixels by which the centre of `item` is on `side` of the centre of `other`; negative if opposite."""
    axis = 0 if side in ("left", "right") else 1
    sign = 1.0 if side in ("right", "below") else -1.0
    return sign * (item.centre[axis] - other.centre[axis])


def place_of(item: SceneObject, world: World) -> str:
    """Return the quarter of the image that contains the centre of `item`."""
    across, down = item.centre[0] >= world.width / 2, item.centre[1] >= world.height / 2
    return PLACES[2 * down + across]


def clear_place(item: SceneObject, world: World) -> str | None:
    """Return the quarter of the image that clearly contains `item`; None near a middle line."""
    distances = (abs(item.centre[0] / world.width - 0.5), abs(item.centre[1] / world.height - 0.5))
    return place_of(item, world) if min(distances) >= _PLACE_MARGIN else None


def clear_sides(item: SceneObject, other: SceneObject, world: World) -> list[str]:
    """Return the sides of `other` that `item` is clearly on."""
    return [side for side in SIDES if offset(side, item, other) >= CLEAR_MARGIN * world.width]


def shuffled(items: Sequence[Item], generator: np.random.Generator) -> list[Item]:
    """Return the items in random order."""
    return [items[index] for index in generator.permutation(len(items))]


def pick(items: Sequence[Item], generator: np.random.Generator) -> Item:
    """Return one of the items."""
    return items[int(generator.integers(len(items)))]
