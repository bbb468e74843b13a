"""Folders that `dimvl evaluate` wrote, read back, and checked to be about the same items.

A group is one setting with one or more seeds: an evaluation of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.errors import UserError
from dimvl.fields import mapping
from dimvl.files import open_regular, parse_json, read_json, reading
from dimvl.metrics.measures import Measure, Place, measures, score_name, scores_of
from dimvl.metrics.predictions import images_of
from dimvl.showing import counted, some

PREDICTIONS, ITEMS, SCORES, MANIFEST = "predictions.json", "items.jsonl", "scores.json", "manifest.json"
QUERY = "query"
"""The text of an item of retrieval. One model may be evaluated with texts of several captioners, to compare these."""
ASKED = (
    *("question", "text", "caption", "foil", "candidates", "answer", "answers", "labels", "references"),
    *("phrase", "boxes", QUERY, "image_id", "images", "times"),
)
"""Fields of an item that come from the annotations."""
AGAIN = "run `dimvl evaluate` again"
_CLOSE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One evaluation.

    Attributes:
        folder: what `dimvl evaluate` wrote.
        task: kind of the scores.
        weights: SHA-256 of the model's weights.
        items: by their id, in one order for all evaluations of a comparison.
        measures: the scores that the items have, by their place in `scores.json`.

    """

    folder: Path
    task: str
    weights: str
    items: Mapping[str, Mapping[str, Any]]
    measures: Mapping[Place, Measure]


@dataclass(frozen=True, kw_only=True)
class Group:
    """One setting, evaluated with one or more seeds."""

    name: str
    seeds: Sequence[Evaluated]


def read_evaluation(folder: Path, order: Mapping[str, Any] | None = None) -> Evaluated:
    """Read an evaluation.

    Args:
        folder: what `dimvl evaluate` wrote.
        order: ids of the items in the order to have them; those that it lacks come last.

    Raises:
        UserError: a file is missing, damaged, or does not belong to the others.

    """
    if not (folder / ITEMS).exists() or not (folder / MANIFEST).exists():
        inner = folder / "evaluation"
        where = f"give {inner}" if (inner / ITEMS).exists() else "give a folder that `dimvl evaluate` wrote"
        raise UserError(f"{folder} is not an evaluation; {where}")
    if not (folder / SCORES).exists():
        raise UserError(f"{folder} has no scores; evaluate the model with captions or answers to compare with")
    remedy = f"{folder} is damaged; {AGAIN}"
    scores = mapping(read_json(folder / SCORES), ("task",), str(folder / SCORES), remedy)
    model = mapping(read_json(folder / MANIFEST), ("model",), str(folder / MANIFEST), remedy)["model"]
    weights = str(mapping(model, ("sha256",), str(folder / MANIFEST), remedy)["sha256"])
    items = _read_items(folder)
    if order is not None:
        items = {key: items[key] for key in [*filter(items.__contains__, order), *(items.keys() - order.keys())]}
    try:
        found = measures(list(items.values()))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{folder / ITEMS} is damaged ({error!r}); {AGAIN}") from None
    _check(folder, found, scores)
    return Evaluated(folder=folder, task=str(scores["task"]), weights=weights, items=items, measures=found)


def read_groups(groups: Mapping[str, Sequence[Path]]) -> list[Group]:
    """Read the evaluations of groups, by name, and check that they can be compared.

    Raises:
        UserError: as `read_evaluation`; an evaluation or the same weights twice in a group; or two evaluations of other
            items, other annotations or other kinds.

    """
    first, found = None, []
    for name, folders in groups.items():
        seeds: list[Evaluated] = []
        for folder in folders:
            evaluated = read_evaluation(folder, None if first is None else first.items)
            first = first or evaluated
            _check_same(first, evaluated)
            for other in seeds:
                if evaluated.weights == other.weights and not _other_queries(evaluated, other):
                    raise UserError(
                        f"{other.folder} and {folder} are evaluations of the same model; give evaluations of models "
                        f"trained with different seeds as {name}"
                    )
            seeds.append(evaluated)
        found.append(Group(name=name, seeds=seeds))
    return found


def common_measures(groups: Sequence[Group]) -> tuple[list[Place], list[Place]]:
    """Return the scores that all evaluations have, and those that only some have.

    Raises:
        UserError: they have none in common.

    """
    every = [evaluated.measures for group in groups for evaluated in group.seeds]
    names = list(dict.fromkeys(place for found in every for place in found))
    common = [place for place in names if all(place in found for found in every)]
    if not common:
        folders = some([str(evaluated.folder) for group in groups for evaluated in group.seeds])
        raise UserError(f"{folders} have no score in common that is a sum over items; {AGAIN} for each of them")
    return common, [place for place in names if place not in common]


def _read_items(folder: Path) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    with open_regular(folder / ITEMS) as file, reading(folder / ITEMS):
        for number, line in enumerate(file, start=1):
            place = f"{folder / ITEMS}, line {number}"
            item = mapping(parse_json(line, place, AGAIN), (), place, AGAIN)
            key = _key(item, place)
            if key in found:
                raise UserError(f"{place} has {key} again; {AGAIN}")
            found[key] = item
    if not found:
        raise UserError(f"{folder / ITEMS} is empty; {AGAIN}")
    return found


def _key(item: Mapping[str, Any], place: str) -> str:
    """Return the id of an item: of its phrase, question or text, else of its images."""
    if "phrase" in item and "id" in item:
        return f"phrase {item['id']}"
    if "text_id" in item:
        return f"text {item['text_id']}"
    if "question_id" in item:
        return f"question {item['question_id']}"
    if "image_id" not in item and "images" not in item:
        raise UserError(f"{place} has neither a question_id nor an image_id; {AGAIN}")
    ids, times = images_of(item, place)
    return f"image {', '.join(ids)}" + (f" at {', '.join(map(str, times))} s" if times else "")


def _check(folder: Path, found: Mapping[Place, Measure], scores: Mapping[str, Any]) -> None:
    """Check that the items give the scores that were written beside them."""
    values = scores_of(found, np.hstack([measure.numbers for measure in found.values()]).sum(axis=0)) if found else {}
    for place, value in values.items():
        written: Any = scores
        for name in place:
            written = written.get(name) if isinstance(written, dict) else None
        if not isinstance(written, int | float) or abs(written - value) > _CLOSE:
            raise UserError(
                f"{folder / SCORES} has {score_name(place)} {written} and {ITEMS} gives {value:.6f}, so they do not "
                f"belong together; {AGAIN}"
            )


def _check_same(first: Evaluated, other: Evaluated) -> None:
    """Check that two evaluations are of the same kind, of the same items and of the same annotations."""
    if first.task != other.task:
        raise UserError(
            f"{first.folder} has scores of task {first.task!r} and {other.folder} of {other.task!r}; compare "
            "evaluations of one kind"
        )
    lacking, added = (
        [key for key in one if key not in two] for one, two in ((first.items, other.items), (other.items, first.items))
    )
    if lacking or added:
        parts = [
            f"{counted(len(keys), 'item')} of {one.folder} {'is' if len(keys) == 1 else 'are'} not in {two.folder} "
            f"({some(keys)})"
            for keys, one, two in ((lacking, first, other), (added, other, first))
            if keys
        ]
        raise UserError(f"{' and '.join(parts)}; evaluate both on the same annotations and images")
    asked = [name for name in ASKED if name != QUERY or first.weights != other.weights]
    for key, item in first.items.items():
        if changed := [name for name in asked if item.get(name) != other.items[key].get(name)]:
            raise UserError(
                f"{key} differs in {changed[0]} between {other.folder} and {first.folder}; evaluate both with the same "
                "annotations"
            )


def _other_queries(one: Evaluated, two: Evaluated) -> bool:
    return any(item.get(QUERY) != two.items[key].get(QUERY) for key, item in one.items.items())
