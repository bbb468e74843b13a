"""Facts that a caption states, judged against the world.

Kinds: `object` (some object of that shape is there), `attribute` (one per adjective of a phrase), `place`, `relation`
and `count`. A counted phrase ("two red circles") states one count fact and nothing else.
"""

from dataclasses import dataclass
from typing import Literal

from dimvl.data.scenes.phrases import Phrase, offset, place_of
from dimvl.data.scenes.world import SceneObject, World

FactKind = Literal["object", "attribute", "place", "relation", "count"]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One statement.

    Attributes:
        kind: object, attribute, place, relation or count.
        phrase: the whole noun phrase it belongs to; of a relation, the one that lies on the side of `other`.
        adjective: of an attribute fact.
        place: quarter of the picture, of a place fact.
        side: left, right, above or below, of a relation fact.
        other: the second phrase of a relation fact.
        count: of a count fact.

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


def best_match(phrase: Phrase, world: World, taken: frozenset[int] | set[int] = frozenset()) -> int | None:
    """Return the index of the object of the phrase's shape that shares most adjectives; None without such a shape.

    Among equals an object outside `taken` comes first, then the earlier one.
    """
    candidates = [index for index, item in enumerate(world.objects) if phrase.names_shape_of(item)]
    if not candidates:
        return None
    return max(candidates, key=lambda index: (len(phrase.shared_with(world.objects[index])), index not in taken))


def judge(fact: Fact, world: World) -> bool:
    """Whether `fact` is true in `world`.

    - object: an object of the shape is there;
    - attribute: the object that matches the whole phrase best (`best_match`) has it;
    - place: an object that matches the phrase entirely has its centre there;
    - relation: two distinct objects match the two phrases entirely and the centre of the first lies strictly on the
      side of the centre of the second;
    - count: exactly that many objects match.
    """
    if fact.kind == "count":
        return fact.phrase.count_in(world) == fact.count
    if fact.kind == "relation":
        return _relation_holds(fact, world)
    if fact.kind == "place":
        return any(place_of(item, world) == fact.place for item in _matching(fact.phrase, world))
    index = best_match(fact.phrase, world)
    if index is None:
        return False
    return fact.kind == "object" or fact.adjective in fact.phrase.shared_with(world.objects[index])


def _relation_holds(fact: Fact, world: World) -> bool:
    assert fact.side is not None and fact.other is not None
    return any(  # an object is on no side of itself, so the two are distinct
        offset(fact.side, item, other) > 0
        for item in _matching(fact.phrase, world)
        for other in _matching(fact.other, world)
    )


def _matching(phrase: Phrase, world: World) -> list[SceneObject]:
    return [item for item in world.objects if phrase.matches(item)]
