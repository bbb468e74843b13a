"""Statements about two or three images, true or false, as in NLVR (Suhr et al., ACL 2017) and NLVR2 (ACL 2019).

They come in groups of four: two texts that differ in one word, number or quantity, each about two sets of images that
differ in one image. Each text is true of one set and false of the other, and of each set one text is true. So neither
texts nor images alone tell anything about the labels.

Images are those of the split. Where objects are not clearly on a side or the other, no side is stated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dimvl.data.scenes.phrases import (
    NUMBER_WORDS,
    OPPOSITE,
    SIDES,
    SLOTS,
    VALUES,
    Phrase,
    clear_sides,
    describe,
    pick,
    shuffled,
)
from dimvl.data.scenes.world import SceneObject, SceneOptions, World, generator_for

KINDS = ("quantity", "relation", "only", "each", "comparison", "total")
GROUP = 4
_COUNTS = (2, 2, 3)  # of images, drawn for each group
_POSITIONS = {2: ("left", "right"), 3: ("left", "middle", "right")}
_QUANTITIES: Mapping[int, Mapping[str, frozenset[int]]] = {  # of how many images something is true
    2: {
        "both images have": frozenset({2}),
        "exactly one of the images has": frozenset({1}),
        "at least one of the images has": frozenset({1, 2}),
        "neither of the images has": frozenset({0}),
    },
    3: {
        "all three images have": frozenset({3}),
        "exactly one of the images has": frozenset({1}),
        "exactly two of the images have": frozenset({2}),
        "at least two of the images have": frozenset({2, 3}),
        "none of the images has": frozenset({0}),
    },
}
_MORE, _FEWER = (f"{word} {{}} in the {{}} image than in the {{}} one" for word in ("more", "fewer"))
_EQUAL = "as many {} in the {} image as in the {} one"
_OPPOSITES = {_MORE: _FEWER, _FEWER: _MORE}
_NUM_WORDS = (1, 2, 2, 2, 3)  # of a phrase, drawn
_COUNTED_SLOTS = ((), ("colour",), ("shape",), ("shape",), ("size",), ("texture",), ("colour", "shape"))
_TRIES, _CHANGES_TRIED, _REPLACEMENTS = 12, 4, 30
"""Attempts at a statement of each kind, changes of each, and images tried in the place of one."""


@dataclass(frozen=True)
class Statement:
    """One statement.

    Attributes:
        kind: one of `KINDS`.
        text: lower case, with full stop.
        images: ids of the images, from left to right.
        label: whether it is true of them.

    """

    kind: str
    text: str
    images: tuple[int, ...]
    label: bool


def sample_statements(worlds: Sequence[World], place: int, options: SceneOptions) -> list[Statement]:
    """Write `statements_per_image` statements about the image at `place` and others, cycling through the kinds.

    Each group names a held-out combination of that image, if it has one. No statement of other splits does: it would be
    true, or false, of all their images. There are fewer statements if no fitting images are found.
    """
    generator = generator_for(options, worlds[place].image_id, "statements")
    statements: list[Statement] = []
    for number in range(options.statements_per_image // GROUP):
        first = worlds[place].image_id + number
        kinds = [KINDS[(first + step) % len(KINDS)] for step in range(len(KINDS))]
        texts = {statement.text for statement in statements}
        tried = (_group(kind, worlds, place, generator) for kind in kinds for _ in range(_TRIES))
        found = next((group for group in tried if group and not texts & {each.text for each in group}), [])
        statements += found
    return statements


def _group(kind: str, worlds: Sequence[World], place: int, generator: np.random.Generator) -> list[Statement]:
    """Return four statements, or none if images or texts that make them false are not found."""
    count = pick(_COUNTS, generator)
    places = [place]
    while len(places) < count:
        places.append(_another(len(worlds), places, generator))
    places = shuffled(places, generator)
    claim = _draw(kind, [worlds[at] for at in places], places.index(place), generator)
    if claim is None:
        return []
    for changed in shuffled(list(claim.changes(count)), generator)[:_CHANGES_TRIED]:
        pair = (claim, changed)
        truths = [each.holds([worlds[at] for at in places]) for each in pair]
        if None in truths or truths[0] == truths[1]:
            continue
        position = int(generator.integers(count))
        for _ in range(_REPLACEMENTS):
            others = [*places]
            others[position] = _another(len(worlds), places, generator)
            if [each.holds([worlds[at] for at in others]) for each in pair] == truths[::-1]:
                return [
                    Statement(kind, each.text(count), tuple(worlds[at].image_id for at in images), truth == wanted)
                    for images, wanted in ((places, True), (others, False))
                    for each, truth in zip(pair, truths, strict=True)
                ]
    return []


def _another(count: int, taken: Sequence[int], generator: np.random.Generator) -> int:
    """Return one of `count` places that is not taken."""
    while (place := int(generator.integers(count))) in taken:
        pass
    return place


def _draw(kind: str, worlds: Sequence[World], own: int, generator: np.random.Generator) -> "_Claim | None":
    """Return a random statement about objects of the images, one of them of the image at `own`; None if it has none."""
    count = len(worlds)
    item = pick([item for item in worlds[own].objects if item.is_held_out] or worlds[own].objects, generator)
    if kind in ("comparison", "total"):
        slots = ("colour", "shape") if item.is_held_out else pick(_COUNTED_SLOTS, generator)
        phrase = describe(item, slots)
        if kind == "total":
            number = sum(phrase.count_in(world) for world in worlds)
            return _Claim(kind, (phrase,), NUMBER_WORDS[number]) if number in NUMBER_WORDS else None
        other = (own + int(generator.integers(1, count))) % count
        at = tuple(shuffled((own, other), generator))
        return _Claim(kind, (phrase,), pick((_MORE, _FEWER, _EQUAL), generator), at=at)
    thing = _thing(item, generator)
    if kind == "only":
        return _Claim(kind, (thing,), at=(own,))
    how = pick(tuple(_QUANTITIES[count]), generator)
    if kind == "quantity":
        return _Claim(kind, (thing,), how)
    if kind == "relation":
        other_item = pick([other for other in worlds[own].objects if other is not item], generator)
        sides = clear_sides(item, other_item, worlds[own])
        return _Claim(kind, (thing, _thing(other_item, generator)), how, pick(sides, generator)) if sides else None
    other = (own + int(generator.integers(1, count))) % count
    named = {own: thing, other: _thing(pick(worlds[other].objects, generator), generator)}
    return _Claim(kind, tuple(named[at] for at in sorted(named)), at=tuple(sorted(named)))


def _thing(item: SceneObject, generator: np.random.Generator) -> Phrase:
    """Return a phrase for an object; of a held-out combination, it names that."""
    slots = shuffled(SLOTS, generator)[: pick(_NUM_WORDS, generator)]
    phrase = describe(item, (*slots, "colour", "shape") if item.is_held_out else slots)
    return describe(item, ("shape",)) if phrase == Phrase() else phrase


@dataclass(frozen=True)
class _Claim:
    """What a statement says; which fields count depends on the kind.

    Attributes:
        kind: one of `KINDS`.
        things: noun phrases: of a relation and of `each` two, else one.
        how: quantity, comparison, or number in total.
        side: the side of the second thing on which the first is, in a relation.
        at: positions of the images that are named.

    """

    kind: str
    things: tuple[Phrase, ...]
    how: str = ""
    side: str = ""
    at: tuple[int, ...] = ()

    def text(self, count: int) -> str:
        """Return the sentence about `count` images."""
        places = [_POSITIONS[count][position] for position in self.at]
        named = [thing.with_article() for thing in self.things]
        if self.kind == "quantity":
            return f"{self.how} {named[0]}."
        if self.kind == "relation":
            return f"{self.how} {named[0]} {SIDES[self.side][-1]} {named[1]}."
        if self.kind == "only":
            return f"only the {places[0]} image has {named[0]}."
        if self.kind == "each":
            return f"the {places[0]} image has {named[0]} and the {places[1]} image has {named[1]}."
        if self.kind == "comparison":
            return f"there are {self.how.format(self.things[0].plural(), *places)}."
        return f"there are {self.how} {self.things[0].plural()} in the images altogether."

    def holds(self, worlds: Sequence[World]) -> bool | None:
        """Return whether it is true of the images; None if that is not clear."""
        counts = [self.things[0].count_in(world) for world in worlds]
        if self.kind == "quantity":
            return sum(count > 0 for count in counts) in _QUANTITIES[len(worlds)][self.how]
        if self.kind == "relation":
            found = [self._is_related(world) for world in worlds]
            return None if None in found else sum(map(bool, found)) in _QUANTITIES[len(worlds)][self.how]
        if self.kind == "only":
            return [count > 0 for count in counts] == [position in self.at for position in range(len(worlds))]
        if self.kind == "each":
            pairs = zip(self.things, self.at, strict=True)
            return all(thing.count_in(worlds[position]) > 0 for thing, position in pairs)
        if self.kind == "comparison":
            first, second = (counts[position] for position in self.at)
            if first == second == 0:
                return None
            return first == second if self.how == _EQUAL else first > second if self.how == _MORE else first < second
        return NUMBER_WORDS.get(sum(counts)) == self.how

    def _is_related(self, world: World) -> bool | None:
        """Return whether a thing is clearly on that side of another; None if it is only slightly or nearly."""
        first, second = (thing.found_in(world) for thing in self.things)
        pairs = [(item, other) for item in first for other in second if item is not other]
        if any(self.side in clear_sides(item, other, world) for item, other in pairs):
            return True
        clear = all(OPPOSITE[self.side] in clear_sides(item, other, world) for item, other in pairs)
        return False if clear else None

    def changes(self, count: int) -> Iterator["_Claim"]:
        """Yield the claims about as many images that differ in one word or number."""
        others: Sequence[str] = ()
        if self.kind in ("quantity", "relation"):
            others = tuple(_QUANTITIES[count])
        elif self.how in _OPPOSITES:
            others = (_OPPOSITES[self.how],)
        elif self.kind == "total":
            others = tuple(NUMBER_WORDS.values())
        yield from (replace(self, how=other) for other in others if other != self.how)
        if self.kind == "relation":
            yield replace(self, side=OPPOSITE[self.side])
        if self.kind == "only":
            yield from (replace(self, at=(place,)) for place in range(count) if (place,) != self.at)
        for number, thing in enumerate(self.things):
            for slot in SLOTS:
                for value in VALUES[slot] if getattr(thing, slot) else ():
                    if value != getattr(thing, slot):
                        new = replace(thing, **{slot: value})
                        yield replace(self, things=(*self.things[:number], new, *self.things[number + 1 :]))
