"""Facts that a caption states, and whether they are true in a scene.

Kinds: `object` (the scene has what the phrase names), `attribute` (one per adjective of a phrase), `place`, `relation`
and `count`. A counted phrase ("two red circles") states one count fact and nothing else.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from dimvl.data.scenes.phrases import Phrase, offset, place_of
from dimvl.data.scenes.world import World

FactKind = Literal["object", "attribute", "place", "relation", "count"]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One statement.

    Attributes:
        kind: object, attribute, place, relation or count.
        phrase: the whole noun phrase; in a relation fact, the one on the given side of `other`.
        adjective: the adjective of an attribute fact.
        place: the quarter of the image of a place fact.
        side: left, right, above or below, for a relation fact.
        other: the second phrase of a relation fact.
        count: the number of a count fact.

    """

    kind: FactKind
    phrase: Phrase
    adjective: str | None = None
    place: str | None = None
    side: str | None = None
    other: Phrase | None = None
    count: int | None = None


def phrase_facts(phrase: Phrase) -> list[Fact]:
    """Return the object fact and the attribute facts of one noun phrase."""
    attributes = [Fact(kind="attribute", phrase=phrase, adjective=word) for word in phrase.adjectives]
    return [Fact(kind="object", phrase=phrase), *attributes]


def best_match(phrase: Phrase, world: World, taken: Set[int] = frozenset()) -> int | None:
    """Return the index of the object with the phrase's shape and most of its adjectives; None without that shape.

    Ties prefer an object outside `taken`, then the earlier one.
    """
    ranks = [(len(phrase.shared_with(item)), index not in taken) for index, item in enumerate(world.objects)]
    candidates = [index for index, item in enumerate(world.objects) if phrase.shape in (None, item.shape)]
    return max(candidates, key=ranks.__getitem__, default=None)


def judge(fact: Fact, world: World) -> bool:
    """Return whether `fact` is true in `world`.

    - object: an object of that shape exists; for "object" instead of a shape, one that the whole phrase matches;
    - attribute: the object that best matches the whole phrase (`best_match`) has it;
    - place: an object that matches the whole phrase has its centre there;
    - relation: two distinct objects match the two phrases, and the centre of the first is strictly on that side of the
      centre of the second;
    - count: exactly that many objects match.
    """
    if fact.kind == "object" and fact.phrase.shape is None:
        return fact.phrase.count_in(world) > 0
    if fact.kind in ("object", "attribute"):
        index = best_match(fact.phrase, world)
        return index is not None and (
            fact.kind == "object" or fact.adjective in fact.phrase.shared_with(world.objects[index])
        )
    matching = fact.phrase.found_in(world)
    if fact.kind == "count":
        return len(matching) == fact.count
    if fact.kind == "place":
        return any(place_of(item, world) == fact.place for item in matching)
    assert fact.side is not None and fact.other is not None
    others = fact.other.found_in(world)  # an object is on no side of itself, so the two are distinct
    return any(offset(fact.side, item, other) > 0 for item in matching for other in others)
