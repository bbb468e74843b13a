"""Scores of classification as means over items, by the official programs of NLVR2, NLVR and GQA.

- `accuracy`: exactly the label. GQA also by `binary` and `open`, over balanced questions.
- `consistency`, NLVR2 and NLVR: the share of sentences that are right for all of their images. GQA: the accuracy on the
  questions that a question entails, averaged over the questions that are answered right and entail others.
- `validity`, `plausibility`, GQA: whether the answer makes sense at all, or is likely in its image set.
- `exact_match` and `f1`, where several labels may fit: all labels right; and 2 x right / (predicted + true), which is 1
  where nothing is predicted and nothing true.
"""

from collections.abc import Sequence

from dimvl.data.annotations import LabelledItem


def item_means(
    items: Sequence[LabelledItem], predicted: Sequence[Sequence[str]], several: bool
) -> list[dict[str, float]]:
    """Return the values of each item by the names of the scores, which are means of those that have them.

    Args:
        items: what was classified.
        predicted: labels of each; exactly one unless `several`.
        several: whether several labels may fit.

    """
    right = [
        item.labels is not None and set(item.labels) == set(own) for item, own in zip(items, predicted, strict=True)
    ]
    means = [
        _own(item, own, correct, several) if item.labels is not None and item.scored else {}
        for item, own, correct in zip(items, predicted, right, strict=True)
    ]
    places = {str(item.item_id): place for place, item in enumerate(items)}
    groups: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        if item.group and item.labels is not None:
            groups.setdefault(item.group, []).append(place)
        if means[place] and right[place] and item.entailed and set(item.entailed) <= places.keys():
            following = [right[places[one]] for one in item.entailed]
            means[place]["consistency"] = sum(following) / len(following)
    for group in groups.values():  # one value for each sentence, at its first item
        means[group[0]]["consistency"] = float(all(right[place] for place in group))
    return means


def _own(item: LabelledItem, predicted: Sequence[str], correct: bool, several: bool) -> dict[str, float]:
    assert item.labels is not None
    if several:
        total, both = len(item.labels) + len(predicted), len({*item.labels} & {*predicted})
        return {"f1": 2 * both / total if total else 1.0, "exact_match": float(correct)}
    found = {"accuracy": float(correct)} | ({item.kind: float(correct)} if item.kind else {})
    return found | {name: float(predicted[0] in labels) for name, labels in item.accepted}
