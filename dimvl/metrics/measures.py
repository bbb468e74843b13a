"""The scores of an evaluation as sums over its items, for intervals and comparisons.

`items.jsonl` has what a score needs of each item: its accuracy, the statistics of BLEU and METEOR, the facts that a
caption states, the rank of the right answer of a search, and as `means` the values of any score that is a mean over
items. `measures` finds it there, so a task whose items have such fields needs nothing else.

Letters: N items, S numbers of an item.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from dimvl.metrics.intervals import Interval, Score, mean, percentiles, resampled, unit_sums
from dimvl.metrics.predictions import images_of
from dimvl.metrics.recall import DIRECTIONS, RECALLS

Place = tuple[str, ...]
"""Where `scores.json` has a score, such as ("official", "CIDEr")."""
GROUPS = {"by_answer_type": "answer_type", "by_kind": "kind"}
"""Means over a part of the questions, and the field of an item that says which."""
RANKS: Mapping[str, Place] = {"rank": (), "embedding_rank": ("embedding_only",)}
"""Fields of an item that are ranks, 0 without a right answer, and where their scores are: see `recall.py`."""
SMALL, TINY = 1e-9, 1e-15  # of pycocoevalcap's BLEU
METEOR = {"alpha": 0.85, "beta": 0.2, "gamma": 0.6, "delta": 0.75}
METEOR_WEIGHTS = (1.0, 0.6, 0.8, 0.6)
"""METEOR 1.5 for English (Denkowski and Lavie, WMT 2014): exact words, stems, synonyms, paraphrases."""


class Measure(NamedTuple):
    """A score as a function of sums over items.

    Attributes:
        numbers: (N, S) of the items.
        score: from their sums to the score.

    """

    numbers: np.ndarray
    score: Score


def measures(items: Sequence[Mapping[str, Any]]) -> dict[Place, Measure]:
    """Return the scores that items have, by their place in `scores.json`.

    Raises:
        KeyError, TypeError, ValueError: the items are not as `dimvl evaluate` writes them.

    """
    return {**_accuracies(items), **_official(items), **_facts(items), **_recalls(items), **_means(items)}


def intervals(items: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the 95% interval of each score, [low, high], by its name: its place, joined by ` / `.

    By the bootstrap over images, as `dimvl.metrics.intervals` describes.
    """
    found = measures(items)
    if not found:
        return {}
    sums = unit_sums(np.hstack([measure.numbers for measure in found.values()]), units_of(items))
    samples = scores_of(found, resampled(sums))
    known = {score_name(place): percentiles(values) for place, values in samples.items()}
    return {name: _rounded(interval) for name, interval in known.items() if interval is not None}


def mean_scores(means: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each score over the items that have it, from the field `means` of items."""
    names = dict.fromkeys(name for own in means for name in own)
    return {name: float(np.mean([own[name] for own in means if name in own])) for name in names}


def score_name(place: Place) -> str:
    """Return the name of a score, such as `official / CIDEr`."""
    return " / ".join(place)


def units_of(items: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    """Return what is independent: the image or images of each item, or the item itself if it names none."""
    return [images_of(item)[0] if "image_id" in item or "images" in item else place for place, item in enumerate(items)]


def scores_of(found: Mapping[Place, Measure], sums: np.ndarray) -> dict[Place, np.ndarray]:
    """Return scores (...) from the sums (..., S) of the numbers of all measures, side by side."""
    ends = np.cumsum([measure.numbers.shape[1] for measure in found.values()])
    parts = np.split(sums, ends[:-1], axis=-1)
    return {place: measure.score(part) for (place, measure), part in zip(found.items(), parts, strict=True)}


def _rounded(interval: Interval) -> list[float]:
    return [round(end, 6) for end in interval]


def _mean_of(values: Sequence[float], chosen: Sequence[bool] | None = None) -> Measure:
    """Return the mean of values, or of the chosen ones."""
    counted = np.ones(len(values)) if chosen is None else np.array(chosen, np.float64)
    return Measure(np.stack([np.array(values, np.float64) * counted, counted], axis=1), mean)


def _accuracies(items: Sequence[Mapping[str, Any]]) -> dict[Place, Measure]:
    scored = ["accuracy" in item for item in items]
    if not any(scored):
        return {}
    values = [item.get("accuracy", 0.0) for item in items]
    found: dict[Place, Measure] = {("overall",): _mean_of(values, scored)}
    for group, field in GROUPS.items():
        names = [item.get(field) if has else None for item, has in zip(items, scored, strict=True)]
        for name in sorted({name for name in names if name is not None}):
            found[group, name] = _mean_of(values, [own == name for own in names])
    return found


def _official(items: Sequence[Mapping[str, Any]]) -> dict[Place, Measure]:
    """Return the scores of the COCO protocol, of the items that have them."""
    scored = ["official" in item for item in items]
    if not any(scored):
        return {}
    names = dict.fromkeys(name for item in items for name in item.get("official", ()))
    found: dict[Place, Measure] = {}
    for name in names:
        statistics = name.partition("_")[0].lower()
        if statistics in ("bleu", "meteor"):  # of the corpus, which is no mean over images
            rows = [item["statistics"][statistics] for item in items if "statistics" in item]
            if len(rows) == sum(scored):
                numbers = np.zeros((len(items), len(rows[0])))
                numbers[scored] = rows
                order = int(name[-1]) if statistics == "bleu" else 0
                found["official", name] = Measure(numbers, _bleu(order) if order else meteor)
            continue
        found["official", name] = _mean_of(
            [item["official"][name] if "official" in item else 0 for item in items], scored
        )
    return found


def _bleu(order: int) -> Score:
    return lambda sums: bleu(sums, order)


def bleu(sums: np.ndarray, order: int) -> np.ndarray:
    """Return corpus BLEU as pycocoevalcap does, (...), for n-grams of up to `order` words.

    Args:
        sums: (..., 9): words of the nearest references, n-grams of 1 to 4 words in the captions, and those of them
            that are in a reference.
        order: 1 to 4.

    """
    length, count, right = sums[..., 0], sums[..., 1:5], sums[..., 5:9]
    precision = np.prod((right[..., :order] + TINY) / (count[..., :order] + SMALL), axis=-1) ** (1 / order)
    ratio = (count[..., 0] + TINY) / (length + SMALL)
    return np.asarray(precision * np.exp(np.minimum(1 - 1 / ratio, 0)))


def meteor(sums: np.ndarray) -> np.ndarray:
    """Return METEOR of a corpus, (...), from the sums (..., 23) of the statistics that its program gives of each text.

    These are words of text and reference, function words of both; for each kind of match the content words matched in
    both and the function words matched in both; chunks (0 for a text that equals its reference), and all words matched
    in both.
    """
    alpha, beta, gamma, delta = METEOR.values()
    matched = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    with np.errstate(invalid="ignore", divide="ignore"):

        def weighted(side: int) -> np.ndarray:
            """Weighted share of the words of the texts (0) or references (1) that are matched."""
            right = delta * matched[..., side] + (1 - delta) * matched[..., side + 2]
            content = sums[..., side] - sums[..., side + 2]
            return np.asarray(right @ np.array(METEOR_WEIGHTS) / (delta * content + (1 - delta) * sums[..., side + 2]))

        precision, recall = weighted(0), weighted(1)
        mean_of_both = precision * recall / (alpha * precision + (1 - alpha) * recall)
        pieces = sums[..., 20] / ((sums[..., 21] + sums[..., 22]) / 2)
        score = mean_of_both * (1 - gamma * pieces**beta)
    return np.asarray(np.nan_to_num(score))


def _facts(items: Sequence[Mapping[str, Any]]) -> dict[Place, Measure]:
    """Return the precisions of facts that captions of scenes state; see `dimvl.data.scenes.scores`."""
    facts = [item["facts"] for item in items if "facts" in item]
    if not facts or len(facts) < len(items):
        return {}
    kinds = {kind: np.array([own[kind] for own in facts], np.float64) for kind in facts[0]}
    found: dict[Place, Measure] = {("fact_precision",): Measure(np.sum([*kinds.values()], axis=0), _share)}
    for kind in ("attribute", "place", "relation"):
        found[f"{kind}_precision",] = Measure(kinds[kind], _share)
    return found


def _recalls(items: Sequence[Mapping[str, Any]]) -> dict[Place, Measure]:
    """Return recalls and mean rank of searches, by the `direction` of the items; a median is no sum over items."""
    found: dict[Place, Measure] = {}
    for (field, group), direction in product(RANKS.items(), DIRECTIONS):
        ranks = [item.get(field, 0) if item.get("direction") == direction else 0 for item in items]
        chosen = [rank > 0 for rank in ranks]
        if not any(chosen):
            continue
        hits = {f"r{k}": [float(rank <= k) for rank in ranks] for k in RECALLS}
        means = [sum(each) / len(RECALLS) for each in zip(*hits.values(), strict=True)]
        for name, values in {**hits, "mean_recall": means, "mean_rank": ranks}.items():
            found[*group, direction, name] = _mean_of(values, chosen)
    return found


def _means(items: Sequence[Mapping[str, Any]]) -> dict[Place, Measure]:
    """Return the scores that are means of what `means` of each item has under their names, which may be nested."""
    means = [dict(_flat(item.get("means", {}))) for item in items]
    places = dict.fromkeys(place for own in means for place in own)
    return {place: _mean_of([own.get(place, 0) for own in means], [place in own for own in means]) for place in places}


def _flat(values: Mapping[str, Any], above: Place = ()) -> Iterator[tuple[Place, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, (*above, name))
        else:
            yield (*above, name), value


def _share(sums: np.ndarray) -> np.ndarray:
    """Return true over stated, (..., 2) -> (...); 0 if nothing is stated."""
    return np.asarray(np.nan_to_num(mean(sums)))
