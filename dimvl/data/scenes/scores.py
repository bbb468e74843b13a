"""Precision and recall of the facts in captions of scenes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np

from dimvl.data.scenes.facts import Fact, FactKind, best_match, judge
from dimvl.data.scenes.language import parse_caption
from dimvl.data.scenes.world import World


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores of one caption per image, fractions in [0, 1] except `facts_per_caption`.

    A caption that cannot be parsed states no facts and counts as one false fact of each kind. A precision over no facts
    is 0. The scene's facts are each object's shape, size, colour, and texture unless plain.

    Attributes:
        fact_precision: share of stated facts that are true; the other precisions count one kind of fact.
        fact_recall: share of the scene's facts that a caption states correctly, mean over captions.
        reference_recall: mean `fact_recall` of the individual reference captions.
        facts_per_caption: mean number of stated facts.
        distinct: number of different captions over the number of captions.
        parsed: share of captions that can be parsed.

    """

    fact_precision: float
    attribute_precision: float
    place_precision: float
    relation_precision: float
    fact_recall: float
    reference_recall: float
    facts_per_caption: float
    distinct: float
    parsed: float


class CaptionFacts(NamedTuple):
    """The facts of one caption.

    Attributes:
        stated: kind of fact -> how many are true, and how many are stated; one that cannot be parsed states one false
            fact of each kind.
        recall: share of the scene's facts that it states correctly.
        parsed: whether it can be parsed.

    """

    stated: dict[str, tuple[int, int]]
    recall: float
    parsed: bool

    @property
    def count(self) -> int:
        """Number of facts that it states."""
        return sum(count for _, count in self.stated.values()) if self.parsed else 0


def caption_facts(caption: str, world: World) -> CaptionFacts:
    """Judge the facts of a caption of a scene."""
    facts = parse_caption(caption) or []
    judged: dict[str, list[bool]] = {kind: [] if facts else [False] for kind in get_args(FactKind)}
    for fact in facts:
        judged[fact.kind].append(judge(fact, world))
    stated = {kind: (sum(truths), len(truths)) for kind, truths in judged.items()}
    return CaptionFacts(stated, fact_recall(facts, world), bool(facts))


def score_captions(
    captions: Mapping[int, str], worlds: Mapping[int, World], references: Mapping[int, Sequence[str]]
) -> CaptionScores:
    """Score one caption per image against the scenes and reference captions of these images; keys are image ids."""
    found = [caption_facts(caption, worlds[image]) for image, caption in captions.items()]
    written = [(reference, worlds[image]) for image in captions for reference in references[image]]
    return CaptionScores(
        fact_precision=_precision(found, get_args(FactKind)),
        attribute_precision=_precision(found, ("attribute",)),
        place_precision=_precision(found, ("place",)),
        relation_precision=_precision(found, ("relation",)),
        fact_recall=_mean([facts.recall for facts in found]),
        reference_recall=_mean([fact_recall(parse_caption(text) or [], world) for text, world in written]),
        facts_per_caption=_mean([facts.count for facts in found]),
        distinct=len(set(captions.values())) / len(captions),
        parsed=_mean([facts.parsed for facts in found]),
    )


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


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
