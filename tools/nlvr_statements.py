"""Drawings of NLVR's kind and statements about them, both generated, for `tools/run_nlvr.py`.

A drawing has three boxes, of towers of blocks or of scattered objects. A statement is put together from the kinds of
facts that NLVR's statements are about (Suhr et al., ACL 2017): numbers of objects, towers and boxes, colours, shapes,
places of blocks in a tower, edges that objects touch. It comes with a drawing of which it is true or with one of which
it is false, as a coin decides, so that words alone do not tell the label. A bare number means exactly so many, as in
NLVR.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

SIDE = 100
"""Pixels of a box."""
COLOURS = {"yellow": "Yellow", "black": "Black", "blue": "#0099ff"}
SHAPES, SIZES = ("circle", "square", "triangle"), (10, 20, 30)
EDGES = {"top": "top", "bottom": "base", "left": "left wall", "right": "right wall"}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
TRIES = 40
"""Drawings tried for a statement before another one takes its place."""


@dataclass(frozen=True)
class Item:
    """An object: its shape, colour, pixels of a side, and its left and top ends."""

    shape: str
    colour: str
    size: int
    left: int
    top: int

    @property
    def edges(self) -> set[str]:
        """Edges of its box that it touches."""
        far = {"right": SIDE - self.left - self.size, "bottom": SIDE - self.top - self.size}
        return {name for name, distance in {"left": self.left, "top": self.top, **far}.items() if distance <= 0}

    def overlaps(self, other: "Item") -> bool:
        """Tell whether the squares around both have a point in common."""
        apart_x = max(self.left, other.left) >= min(self.left + self.size, other.left + other.size)
        apart_y = max(self.top, other.top) >= min(self.top + self.size, other.top + other.size)
        return not (apart_x or apart_y)

    def record(self) -> dict[str, Any]:
        """Return the object as `structured_rep` has it."""
        colour = COLOURS[self.colour]
        return {"type": self.shape, "color": colour, "size": self.size, "x_loc": self.left, "y_loc": self.top}


Box = Sequence[Item]
"""Objects of a box; of a tower, the lowest first."""
Drawing = Sequence[Box]
OfItem, OfBox = Callable[[Item], bool], Callable[[Box], bool]
Fact = tuple[str, Callable[[Drawing], bool]]
"""A statement, and whether it is true of a drawing."""
Count = tuple[str, str, Callable[[int], bool]]
"""Words of a number, `is` or `are`, and which numbers they allow."""
Value = TypeVar("Value")


class Writer:
    """Draws drawings and statements.

    Args:
        seed: decides all.

    """

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng([8, seed])

    def drawings(self, number: int) -> tuple[list[Drawing], list[Drawing]]:
        """Return so many drawings of towers, and half as many of scattered objects, as NLVR has."""
        towers = [[self._tower() for _ in range(3)] for _ in range(number)]
        return towers, [[self._scattered() for _ in range(3)] for _ in range(number // 2)]

    def statement(self, towers: Sequence[Drawing], scattered: Sequence[Drawing]) -> tuple[str, Drawing, bool]:
        """Return a statement, one of the drawings, and whether it is true of it."""
        about_towers = (self._end, self._end, self._above, self._above, self._height, self._some, self._only,
                        self._colours, self._second, self._ends, self._ends, self._tall, self._blocks)  # fmt: skip
        about_scattered = (self._touching, self._touching, self._touching, self._found, self._holding, self._holding,
                           self._holding_two, self._size, self._box_colours, self._together)  # fmt: skip
        while True:
            tower = self._chance(0.65)
            text, holds = self._one_of(about_towers if tower else about_scattered)()
            wanted = self._chance(0.5)
            for _ in range(TRIES):
                drawing = self._one_of(towers if tower else scattered)
                if holds(drawing) == wanted:
                    return text, drawing, wanted

    def _tower(self) -> Box:
        height = int(self.random.integers(1, 5))
        return [Item("square", self._colour(), 20, 40, 80 - 21 * place) for place in range(height)]

    def _scattered(self) -> Box:
        """Draw one to seven objects that do not overlap, a third of them at an edge or in a corner."""
        items: list[Item] = []
        number = int(self.random.integers(1, 8))
        while len(items) < number:
            size = self._one_of(SIZES)
            left, top = (int(self.random.integers(1, SIDE - size)) for _ in range(2))
            edge = self._one_of(("left", "right", "top", "bottom", "corner")) if self._chance(0.35) else None
            if edge in ("left", "right", "corner"):
                left = {"left": 0, "right": SIDE - size}.get(edge, self._one_of((0, SIDE - size)))
            if edge in ("top", "bottom", "corner"):
                top = {"top": 0, "bottom": SIDE - size}.get(edge, self._one_of((0, SIDE - size)))
            one = Item(self._one_of(SHAPES), self._colour(), size, left, top)
            if not any(map(one.overlaps, items)):
                items.append(one)
        return items

    # Words for parts of statements.

    def _chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def _one_of(self, values: Sequence[Value]) -> Value:
        return values[int(self.random.integers(len(values)))]

    def _colour(self) -> str:
        return self._one_of(tuple(COLOURS))

    def _number(self, most: int) -> Count:
        kinds = ("a", "a", "no", "one", "", "", "exactly ", "only ", "at least ", "at most ", "more than ")
        kind = self._one_of(kinds)
        if kind == "a":
            return "a", "is", lambda count: count > 0
        if kind == "no":
            return "no", "is", lambda count: count == 0
        size = 1 if kind == "one" else int(self.random.integers(1, most + 1))
        words = ("" if kind == "one" else kind) + self._one_of((str(size), NUMBERS[size]))
        verb = "is" if size == 1 else "are"
        if kind == "at least ":
            return words, verb, lambda count: count >= size
        if kind == "at most ":
            return words, verb, lambda count: count <= size
        if kind == "more than ":
            return words, verb, lambda count: count > size
        return words, verb, lambda count: count == size

    def _items(self, verb: str, nouns: Sequence[str]) -> tuple[str, OfItem]:
        """Return words for objects of a noun, perhaps of a colour, and which objects they mean."""
        noun, colour = self._one_of(nouns), self._colour() if self._chance(0.75) else None
        words = _plural(f"{colour} {noun}" if colour else noun, verb)
        return words, lambda item: colour in (None, item.colour) and (noun not in SHAPES or noun == item.shape)

    def _counted(self, nouns: Sequence[str]) -> tuple[str, OfBox]:
        number, verb, allows = self._number(3)
        words, meant = self._items(verb, nouns)
        return f"{number} {words}", lambda box: allows(sum(map(meant, box)))

    def _boxes(self, noun: str, words: str, has: OfBox) -> Fact:
        """Return a statement about how many towers or boxes are so."""
        if self._chance(0.2):
            starts = (f"all {_plural(noun)} have", f"all 3 {_plural(noun)} contain", f"each {noun} has")
            return f"{self._one_of(starts)} {words}", lambda drawing: all(map(has, drawing))
        number, verb, allows = self._number(3)
        links = ("with", "with", "having", "that has" if verb == "is" else "that have")
        text = f"there {verb} {number} {_plural(noun, verb)} {self._one_of(links)} {words}"
        return text, lambda drawing: allows(sum(map(has, drawing)))

    def _at_end(self) -> tuple[str, str, OfBox]:
        """Return a colour, an end of a tower, and whether a tower has the colour there."""
        colour, end = self._colour(), self._one_of(("top", "base", "bottom"))
        return colour, end, lambda box: box[-1 if end == "top" else 0].colour == colour

    # Statements about towers.

    def _end(self) -> Fact:
        colour, end, has = self._at_end()
        return self._boxes("tower", f"a {colour} block at the {end}", has)

    def _ends(self) -> Fact:
        colour, end, has = self._at_end()
        number, verb, allows = self._number(3)
        words = f"there {verb} {number} {_plural(f'{colour} block', verb)} as the {end} of a tower"
        least = int(self.random.integers(2, 5)) if self._chance(0.4) else 1
        if least > 1:
            words += f" with at least {self._one_of((str(least), NUMBERS[least]))} blocks"
        return words, lambda drawing: allows(sum(len(box) >= least and has(box) for box in drawing))

    def _tall(self) -> Fact:
        colour, end, has = self._at_end()
        height = int(self.random.integers(2, 5))
        tall = self._one_of((str(height), NUMBERS[height]))
        start = self._one_of(("the tower with {} blocks has", "there is a tower with exactly {} blocks that has"))
        words = f"{start.format(tall)} a {colour} block at the {end}"
        return words, lambda drawing: any(len(box) == height and has(box) for box in drawing)

    def _above(self) -> Fact:
        upper, lower = self._colour(), self._colour()
        word = self._one_of(("over", "above", "on", "below", "under"))
        first, second = (lower, upper) if word in ("below", "under") else (upper, lower)

        def has(box: Box) -> bool:
            colours = [item.colour for item in box]
            return any(one == upper and lower in colours[:place] for place, one in enumerate(colours))

        return self._boxes("tower", f"a {first} block {word} a {second} block", has)

    def _height(self) -> Fact:
        number, verb, allows = self._number(4)
        return self._boxes("tower", f"{number} {_plural('block', verb)}", lambda box: allows(len(box)))

    def _some(self) -> Fact:
        return self._boxes("tower", *self._counted(("block",)))

    def _only(self) -> Fact:
        colour = self._colour()
        return self._boxes("tower", f"only {colour} blocks", lambda box: all(item.colour == colour for item in box))

    def _colours(self) -> Fact:
        number = int(self.random.integers(2, 4))
        words = self._one_of(("blocks of {} different colors", "{} different colors")).format(number)
        return self._boxes("tower", words, lambda box: len({item.colour for item in box}) == number)

    def _second(self) -> Fact:
        colour = self._colour()
        words = f"a {colour} block as the second block from the base"
        return self._boxes("tower", words, lambda box: len(box) > 1 and box[1].colour == colour)

    def _blocks(self) -> Fact:
        return self._objects(("block",), "", lambda item: True)

    # Statements about scattered objects.

    def _objects(self, nouns: Sequence[str], where: str, there: OfItem) -> Fact:
        """Return a statement about the objects of all three boxes."""
        number, verb, allows = self._number(3 if where else 6)
        words, meant = self._items(verb, nouns)
        text = f"there {verb} {number} {words}{where}"
        return text, lambda drawing: allows(sum(meant(item) and there(item) for box in drawing for item in box))

    def _found(self) -> Fact:
        return self._objects(_NOUNS, "", lambda item: True)

    def _touching(self) -> Fact:
        kind = self._one_of(("edge", "edge", "corner", "one", "one", "none"))
        touching = self._one_of((" touching", " touching", " closely touching"))
        word = self._one_of(("edge", "wall", "side"))
        if kind == "none":
            return self._objects(_NOUNS, f" not touching any {word}", lambda item: not item.edges)
        if kind == "corner":
            return self._objects(_NOUNS, f"{touching} a corner", lambda item: len(item.edges) > 1)
        if kind == "edge":
            return self._objects(_NOUNS, f"{touching} the {word}", lambda item: bool(item.edges))
        edge = self._one_of(tuple(EDGES))
        where = self._one_of((EDGES[edge], edge if edge in ("top", "bottom") else f"{edge} side"))
        of_box = self._one_of(("", " of a box"))
        return self._objects(_NOUNS, f"{touching} the {where}{of_box}", lambda item: edge in item.edges)

    def _holding(self) -> Fact:
        return self._boxes(self._one_of(_BOXES), *self._counted(_NOUNS))

    def _holding_two(self) -> Fact:
        (words, has), (others, has_others) = self._counted(_NOUNS), self._counted(_NOUNS)
        noun = self._one_of(_BOXES)
        return self._boxes(noun, f"{words} and {others}", lambda box: has(box) and has_others(box))

    def _size(self) -> Fact:
        number, verb, allows = self._number(7)
        words = f"{number} {_plural('item', verb)}"
        return self._boxes(self._one_of(_BOXES), words, lambda box: allows(len(box)))

    def _box_colours(self) -> Fact:
        number = int(self.random.integers(1, 4))
        words = {1: "items of the same color", 2: "items of 2 different colors", 3: "items of all 3 colors"}[number]
        noun = self._one_of(_BOXES)
        return self._boxes(noun, words, lambda box: len({item.colour for item in box}) == number)

    def _together(self) -> Fact:
        colour = self._colour()
        words = f"all {colour} items are in the same box"
        return words, lambda drawing: sum(any(item.colour == colour for item in box) for box in drawing) == 1


_NOUNS = (*SHAPES, *SHAPES, "item", "item", "object")
_BOXES = ("box", "box", "grey square")


def _plural(noun: str, verb: str = "are") -> str:
    """Return the plural of a noun, or the noun itself if the verb is `is`."""
    return noun if verb == "is" else noun + ("es" if noun.endswith("x") else "s")
