"""How true and how complete captions of scenes are: precision and recall of facts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from dimvl.data.scenes.facts import Fact, FactKind, best_match, judge
from dimvl.data.scenes.language import parse_caption
from dimvl.data.scenes.world import World


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores of one caption per image, fractions in [0, 1] but for `facts_per_caption`.

    A caption that cannot be parsed counts as wrong: it states nothing of the scene and adds one false fact of each
    kind. A precision over no facts is 0.

    Attributes:
        fact_precision: share of all stated facts that are true.
        attribute_precision: the same for attribute facts.
        place_precision: the same for place facts.
        relation_precision: the same for relation facts.
        fact_recall: share of the scene's facts that the caption states truly, mean over captions. The scene's facts
            are each object's shape, size, colour, and texture unless plain.
        reference_recall: `fact_recall` of the single reference captions.
        facts_per_caption: mean number of facts that the captions state (0 for one that cannot be parsed).
        distinct: share of different strings among the captions.
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


def score_captions(
    captions: Mapping[int, str], worlds: Mapping[int, World], references: Mapping[int, Sequence[str]]
) -> CaptionScores:
    """Score one caption per image; the keys are image ids.

    Args:
        captions: the captions to score, at least one.
        worlds: the ground truth of (at least) these images.
        references: the written captions of (at least) these images.

    """
    judged: dict[str, list[bool]] = defaultdict(list)
    stated, recalls = [], []
    for image, caption in captions.items():
        facts = parse_caption(caption)
        if facts is None:
            for kind in get_args(FactKind):
                judged[kind].append(False)
        for fact in facts or []:
            judged[fact.kind].append(judge(fact, worlds[image]))
        stated.append(len(facts or []))
        recalls.append(fact_recall(facts or [], worlds[image]))
    reference_recalls = [
        fact_recall(parse_caption(reference) or [], worlds[image])
        for image in captions
        for reference in references[image]
    ]
    return CaptionScores(
        fact_precision=_mean([truth for truths in judged.values() for truth in truths]),
        attribute_precision=_mean(judged["attribute"]),
        place_precision=_mean(judged["place"]),
        relation_precision=_mean(judged["relation"]),
        fact_recall=_mean(recalls),
        reference_recall=_mean(reference_recalls),
        facts_per_caption=_mean(stated),
        distinct=len(set(captions.values())) / len(captions),
        parsed=_mean([count > 0 for count in stated]),
    )


def fact_recall(facts: Sequence[Fact], world: World) -> float:
    """Share of the scene's facts that `facts` state truly.

    Each phrase speaks of the object that it matches best, if possible one that no earlier phrase spoke of; a true
    count speaks of all objects that it counts.
    """
    told: set[tuple[int, str]] = set()
    taken: set[int] = set()
    for fact in facts:
        phrase = fact.phrase
        if fact.kind == "object":
            index = best_match(phrase, world, taken)
            spoken_of = [] if index is None else [index]
            taken.update(spoken_of)
        elif fact.kind == "count" and judge(fact, world):
            spoken_of = [index for index, item in enumerate(world.objects) if phrase.matches(item)]
        else:
            continue
        for index in spoken_of:
            words = phrase.shared_with(world.objects[index]) + ((phrase.shape,) if phrase.shape else ())
            told.update((index, word) for word in words)
    total = sum(3 + (item.texture != "plain") for item in world.objects)
    return len(told) / total


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
