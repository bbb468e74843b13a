"""Noun phrases and sides: the words that captions and questions share.

A phrase reads "large red striped circle": size, colour, texture, shape, always in this order. The texture "plain" is
never said, and a phrase without a shape says "object".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dimvl.data.scenes.world import COLOURS, HELD_OUT_COMBINATIONS, SHAPES, SIZES, TEXTURES, SceneObject, World

Item = TypeVar("Item")

SAID_TEXTURES = tuple(texture for texture in TEXTURES if texture != "plain")
NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
SIDES = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "beneath", "under"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PLACES = ("top left", "top right", "bottom left", "bottom right")
PLACE_MARGIN = 0.06
"""A place is only said where the centre is at least this share of the picture's side off both middle lines."""
CLEAR_MARGIN = 0.15
"""A side is only said where the centres are at least this share of the picture's side apart."""

_SLOT_OF = {
    **dict.fromkeys(SIZES, "size"),
    **dict.fromkeys(COLOURS, "colour"),
    **dict.fromkeys(SAID_TEXTURES, "texture"),
    **dict.fromkeys(SHAPES, "shape"),
}


def plural(noun: str) -> str:
    """Return the plural of a shape or of "object"."""
    return noun + ("es" if noun.endswith("s") else "s")


_SINGULAR = {plural(noun): noun for noun in (*SHAPES, "object")}


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """What a noun phrase says of an object; None where it says nothing."""

    size: str | None = None
    colour: str | None = None
    texture: str | None = None
    shape: str | None = None

    @property
    def adjectives(self) -> tuple[str, ...]:
        """The adjectives in the order of reading."""
        return tuple(filter(None, (self.size, self.colour, self.texture)))

    @property
    def is_held_out(self) -> bool:
        """Whether it names a held-out combination."""
        return (self.shape, self.colour) in HELD_OUT_COMBINATIONS

    def shared_with(self, item: SceneObject) -> tuple[str, ...]:
        """Return the adjectives that are true of `item`."""
        return tuple(word for word in self.adjectives if word in (item.size, item.colour, item.texture))

    def names_shape_of(self, item: SceneObject) -> bool:
        """Whether `item` has the shape, or no shape is said."""
        return self.shape is None or self.shape == item.shape

    def matches(self, item: SceneObject) -> bool:
        """Whether everything said is true of `item`."""
        return (  # spelled out: writing questions asks this most of the time
            self.shape in (None, item.shape)
            and self.colour in (None, item.colour)
            and self.size in (None, item.size)
            and self.texture in (None, item.texture)
        )

    def count_in(self, world: World) -> int:
        """Return how many objects it matches."""
        return sum(self.matches(item) for item in world.objects)

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
    said = {}
    for word in words.split():
        word = _SINGULAR.get(word, word)
        if word != "object":
            said[_SLOT_OF[word]] = word
    return Phrase(**said)


def describe(item: SceneObject, slots: tuple[str, ...] | list[str]) -> Phrase:
    """Return the phrase that says the given slots (size, colour, texture, shape) of `item`; plain is not said."""
    said = {slot: getattr(item, slot) for slot in slots}
    return Phrase(**{slot: word for slot, word in said.items() if word != "plain"})


def offset(side: str, item: SceneObject, other: SceneObject) -> float:
    """Return how many pixels the centre of `item` lies on `side` of the centre of `other`; negative on the opposite."""
    axis = 0 if side in ("left", "right") else 1
    sign = 1.0 if side in ("right", "below") else -1.0
    return sign * (item.centre[axis] - other.centre[axis])


def place_of(item: SceneObject, world: World) -> str:
    """Return the quarter of the picture in which the centre of `item` lies."""
    across, down = item.centre[0] >= world.width / 2, item.centre[1] >= world.height / 2
    return PLACES[2 * down + across]


def clear_place(item: SceneObject, world: World) -> str | None:
    """Return the quarter of the picture in which `item` clearly lies; None near a middle line."""
    distances = (abs(item.centre[0] / world.width - 0.5), abs(item.centre[1] / world.height - 0.5))
    return place_of(item, world) if min(distances) >= PLACE_MARGIN else None


def clear_sides(item: SceneObject, other: SceneObject, world: World) -> list[str]:
    """Return the sides of `other` on which `item` clearly lies."""
    return [side for side in SIDES if offset(side, item, other) >= CLEAR_MARGIN * world.width]


def shuffled(items: Sequence[Item], generator: np.random.Generator) -> list[Item]:
    """Return the items in random order."""
    return [items[index] for index in generator.permutation(len(items))]


def pick(items: Sequence[Item], generator: np.random.Generator) -> Item:
    """Return one of the items."""
    return items[int(generator.integers(len(items)))]
