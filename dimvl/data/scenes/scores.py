"""Precision and recall of the facts in captions of scenes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, permutations
from typing import NamedTuple, get_args

import numpy as np

from dimvl.data.scenes.facts import Fact, FactKind, best_match, judge
from dimvl.data.scenes.language import parse_caption
from dimvl.data.scenes.phrases import offset, place_of
from dimvl.data.scenes.world import World


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores of one caption per image, fractions in [0, 1] except `facts_per_caption`.

    A caption that cannot be parsed states no facts and counts as one false fact of each kind. A precision over no facts
    is 0. The scene's facts are each object's shape, size, colour, and texture unless plain; it has one place for each
    object and one relation for each pair of objects.

    Attributes:
        fact_precision: share of stated facts that are true; the other precisions count one kind of fact.
        fact_recall: share of the scene's facts that a caption states correctly, mean over captions.
        place_recall: the same of places.
        relation_recall: the same of relations.
        reference_recall: mean `fact_recall` of the individual reference captions.
        reference_place_recall: the same of places.
        reference_relation_recall: the same of relations.
        facts_per_caption: mean number of stated facts.
        distinct: number of different captions over the number of captions.
        parsed: share of captions that can be parsed.

    """

    fact_precision: float
    attribute_precision: float
    place_precision: float
    relation_precision: float
    fact_recall: float
    place_recall: float
    relation_recall: float
    reference_recall: float
    reference_place_recall: float
    reference_relation_recall: float
    facts_per_caption: float
    distinct: float
    parsed: float


def score_captions(
    captions: Mapping[int, str], worlds: Mapping[int, World], references: Mapping[int, Sequence[str]]
) -> CaptionScores:
    """Score one caption per image against the scenes and reference captions of these images; keys are image ids."""
    judged: dict[str, list[bool]] = defaultdict(list)
    stated, recalls = [], list[Recalls]()
    for image, caption in captions.items():
        facts = parse_caption(caption) or []
        for fact in facts:
            judged[fact.kind].append(judge(fact, worlds[image]))
        if not facts:  # the caption cannot be parsed
            for kind in get_args(FactKind):
                judged[kind].append(False)
        stated.append(len(facts))
        recalls.append(recalls_of(facts, worlds[image]))
    written = [(parse_caption(text) or [], worlds[image]) for image in captions for text in references[image]]
    reference_recalls = [recalls_of(facts, world) for facts, world in written]
    return CaptionScores(
        fact_precision=_mean([truth for truths in judged.values() for truth in truths]),
        attribute_precision=_mean(judged["attribute"]),
        place_precision=_mean(judged["place"]),
        relation_precision=_mean(judged["relation"]),
        fact_recall=_mean([each.facts for each in recalls]),
        place_recall=_mean([each.places for each in recalls]),
        relation_recall=_mean([each.relations for each in recalls]),
        reference_recall=_mean([each.facts for each in reference_recalls]),
        reference_place_recall=_mean([each.places for each in reference_recalls]),
        reference_relation_recall=_mean([each.relations for each in reference_recalls]),
        facts_per_caption=_mean(stated),
        distinct=len(set(captions.values())) / len(captions),
        parsed=_mean([count > 0 for count in stated]),
    )


class Recalls(NamedTuple):
    """Shares of a scene's facts, places and relations."""

    facts: float
    places: float
    relations: float


def recalls_of(facts: Sequence[Fact], world: World) -> Recalls:
    """Return what `facts` state correctly of a scene; see `fact_recall`, `place_recall` and `relation_recall`."""
    return Recalls(fact_recall(facts, world), place_recall(facts, world), relation_recall(facts, world))


def fact_recall(facts: Sequence[Fact], world: World) -> float:
    """Return the share of the scene's facts that `facts` state correctly.

    Each phrase refers to the object that it matches best, preferably one that no earlier phrase refers to; a true count
    refers to all objects that it counts.
    """
    stated: set[tuple[int, str]] = set()
    taken: set[int] = set()
    for fact in facts:
        phrase = fact.phrase
        referents: list[int] = []
        if fact.kind == "object" and (index := best_match(phrase, world, taken)) is not None:
            referents = [index]
            taken.add(index)
        elif fact.kind == "count" and judge(fact, world):
            referents = [index for index, item in enumerate(world.objects) if phrase.matches(item)]
        for index in referents:
            words = phrase.shared_with(world.objects[index]) + ((phrase.shape,) if phrase.shape else ())
            stated.update((index, word) for word in words)
    return len(stated) / sum(3 + (item.texture != "plain") for item in world.objects)


def place_recall(facts: Sequence[Fact], world: World) -> float:
    """Return the share of the objects whose place `facts` state correctly; a statement counts for one object."""
    placed: set[int] = set()
    for fact in facts:
        if fact.kind == "place":
            true = (
                index
                for index, item in enumerate(world.objects)
                if index not in placed and fact.phrase.matches(item) and place_of(item, world) == fact.place
            )
            placed.update(islice(true, 1))
    return len(placed) / len(world.objects)


def relation_recall(facts: Sequence[Fact], world: World) -> float:
    """Return the share of the pairs of objects of which `facts` state a true relation; a statement counts for one."""
    pairs = list(permutations(range(len(world.objects)), 2))
    related: set[frozenset[int]] = set()
    for fact in facts:
        if fact.kind == "relation" and fact.side is not None and fact.other is not None:
            true = (
                frozenset((one, other))
                for one, other in pairs
                if frozenset((one, other)) not in related
                and fact.phrase.matches(world.objects[one])
                and fact.other.matches(world.objects[other])
                and offset(fact.side, world.objects[one], world.objects[other]) > 0
            )
            related.update(islice(true, 1))
    return len(related) / max(1, len(pairs) // 2)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
