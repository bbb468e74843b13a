"""Precision and recall of the facts in captions of scenes."""

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


class CaptionFacts(NamedTuple):
    """The facts of one caption.

    Attributes:
        stated: kind of fact -> how many are true, and how many are stated; one that cannot be parsed states one false
            fact of each kind.
        means: the other scores of this caption; those of all captions are their means.

    """

    stated: dict[str, tuple[int, int]]
    means: dict[str, float]


def caption_facts(caption: str, world: World) -> CaptionFacts:
    """Judge the facts of a caption of a scene."""
    facts = parse_caption(caption) or []
    judged: dict[str, list[bool]] = {kind: [] if facts else [False] for kind in get_args(FactKind)}
    for fact in facts:
        judged[fact.kind].append(judge(fact, world))
    means = {**recalls(facts, world), "facts_per_caption": len(facts), "parsed": float(bool(facts))}
    return CaptionFacts({kind: (sum(truths), len(truths)) for kind, truths in judged.items()}, means)


def score_captions(
    captions: Mapping[int, str], worlds: Mapping[int, World], references: Mapping[int, Sequence[str]]
) -> CaptionScores:
    """Score one caption per image against the scenes and reference captions of these images; keys are image ids."""
    found = [caption_facts(caption, worlds[image]) for image, caption in captions.items()]
    written = [(parse_caption(text) or [], worlds[image]) for image in captions for text in references[image]]
    of_references = [recalls(facts, world) for facts, world in written]
    return CaptionScores(
        fact_precision=_precision(found, get_args(FactKind)),
        attribute_precision=_precision(found, ("attribute",)),
        place_precision=_precision(found, ("place",)),
        relation_precision=_precision(found, ("relation",)),
        reference_recall=_mean([each["fact_recall"] for each in of_references]),
        reference_place_recall=_mean([each["place_recall"] for each in of_references]),
        reference_relation_recall=_mean([each["relation_recall"] for each in of_references]),
        distinct=len(set(captions.values())) / len(captions),
        **{name: _mean([facts.means[name] for facts in found]) for name in found[0].means},
    )


def recalls(facts: Sequence[Fact], world: World) -> dict[str, float]:
    """Return the shares of a scene's facts, places and relations that `facts` state correctly."""
    return {
        "fact_recall": fact_recall(facts, world),
        "place_recall": place_recall(facts, world),
        "relation_recall": relation_recall(facts, world),
    }


def _precision(found: Sequence[CaptionFacts], kinds: Sequence[str]) -> float:
    """Return the share of the stated facts of some kinds that are true."""
    counts = [facts.stated[kind] for facts in found for kind in kinds]
    return sum(true for true, _ in counts) / max(sum(count for _, count in counts), 1)


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
