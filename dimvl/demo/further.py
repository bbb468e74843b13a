"""Tasks that a demo may have beside questions and captions: statements about several images, grounding, stories.

Each is trained from another run of the demo and scored on the held-out scenes; `FURTHER` has what it needs. The key
`further` of the demo's configuration says which there are, and how they are trained.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.callbacks import Progress
from dimvl.config import RunConfig
from dimvl.data.scenes import judge_story, read_worlds
from dimvl.demo.config import DemoConfig, DemoPaths, Further
from dimvl.files import read_text, write_json
from dimvl.metrics.intervals import mean_interval
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of_model
from dimvl.tasks.captioning.config import CaptionConfig
from dimvl.tasks.classification.config import ClassifyConfig
from dimvl.tasks.grounding.config import GroundConfig
from dimvl.trained_model import load_model

Lines = Sequence[Mapping[str, Any]]
"""The records of a file of scenes (docs/scenes.md), or the items of an evaluation."""


@dataclass(frozen=True)
class FurtherTask:
    """A task of the demo.

    Attributes:
        about: a few words for the table of stages.
        kind: class of the run's configuration.
        data: key of the annotations, in that configuration and in an evaluation.
        file: the annotations, in the folder of a split.
        text: key of the texts in them.
        keys: what else the configuration has.
        score: (items of the evaluation, records of the file, folder of the split) -> scores.
        start: name of the run that it starts from.
        images: folder of its own images in the folder of a split, with a region store of their own.

    """

    about: str
    kind: type[RunConfig]
    data: str
    file: str
    text: str
    keys: Callable[[DemoConfig], dict[str, Any]]
    score: Callable[[Lines, Lines, Path], dict[str, Any]]
    start: Callable[[DemoConfig], str] = lambda config: config.last_pretraining
    images: str = ""

    def part(self, split: str) -> str:
        """Return the part of the scenes with the images of a split."""
        return f"{split}/{self.images}" if self.images else split

    def texts(self, folder: Path) -> list[str]:
        """Return the texts of a split, from its folder."""
        return [record[self.text] for record in _read(folder / self.file)]


def further_config(task: Further, config: DemoConfig, paths: DemoPaths, common: Mapping[str, Any]) -> RunConfig:
    """Make the configuration of the run of a task from what all runs of the demo have."""
    own = FURTHER[task]
    return own.kind(
        **{**common, "regions": paths.regions(own.part("train")), own.data: paths.scenes / "train" / own.file},
        **own.keys(config),
        training=config.further[task],
        initial=paths.run(own.start(config)),
    )


def score_further(task: Further, config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    """Score a task on the held-out scenes."""
    own, folder = FURTHER[task], paths.scenes / "heldout"
    trained = load_model(paths.run(task))
    kind = task_of_model(trained.processor)
    options = kind.evaluation(**{own.data: folder / own.file})
    found = kind.evaluate(trained, RegionStore(paths.regions(own.part("heldout"))), options, progress)
    write_json(paths.scores / f"{task}.json", own.score(found.items, _read(folder / own.file), folder))


def _read(path: Path) -> Lines:
    return [json.loads(line) for line in read_text(path).splitlines()]


def _share(values: Sequence[float] | np.ndarray, units: Sequence[Any]) -> dict[str, Any]:
    """Return a mean as `accuracy`, its interval over units, and the number of values."""
    return {"accuracy": float(np.mean(values)), "interval": list(mean_interval(values, units)), "count": len(values)}


def _by_kind(items: Lines, records: Lines) -> dict[str, Any]:
    """Return the accuracy, and that of each kind; the unit is the image that a record was written about."""
    right = [item["means"]["accuracy"] for item in items]
    kinds = [record["kind"] for record in records]
    of_kinds = {
        kind: float(np.mean([value for value, own in zip(right, kinds, strict=True) if own == kind]))
        for kind in sorted(set(kinds))
    }
    return {**_share(right, [record["id"] // 1000 for record in records]), "by_kind": of_kinds}


def _score_statements(items: Lines, records: Lines, folder: Path) -> dict[str, Any]:
    labels = Counter(record["label"] for record in records)
    return {**_by_kind(items, records), "majority": max(labels.values()) / len(records)}


def _score_grounding(items: Lines, records: Lines, folder: Path) -> dict[str, Any]:
    means = {name: float(np.mean([item["means"][name] for item in items])) for name in ("upper_bound", "baseline")}
    return {**_by_kind(items, records), "upper_bound": means["upper_bound"], "largest_region": means["baseline"]}


def _score_stories(items: Lines, records: Lines, folder: Path) -> dict[str, Any]:
    """Return the share of true sentences, beside that of the next story of as many images; the unit is the story."""
    worlds = read_worlds(folder / "stories" / "worlds.jsonl")
    shown = [[worlds[int(image)] for image in record["images"]] for record in records]
    judged = [judge_story(item["prediction"], own) for item, own in zip(items, shown, strict=True)]
    places = [place for place, own in enumerate(judged) for _ in own]
    others = [record["caption"] for record in records]
    order = sorted(range(len(records)), key=lambda place: len(shown[place]))
    other = dict(zip(order, [*order[1:], order[0]], strict=True))
    return {
        **_share(np.concatenate(judged).astype(float), places),
        "changes": float(np.mean(np.concatenate([own[1:] for own in judged]))),
        "whole_stories": float(np.mean([all(own) for own in judged])),
        "another_story": float(np.mean(np.concatenate([judge_story(others[other[p]], shown[p]) for p in order]))),
        "stories": len(records),
    }


FURTHER: Mapping[Further, FurtherTask] = {
    "statements": FurtherTask(
        "true or false of several images",
        ClassifyConfig,
        "items",
        "statements.jsonl",
        "text",
        lambda config: {"task": "classify", "shared_prefix": config.shared_prefix},
        _score_statements,
        start=lambda config: config.answerer,  # its questions teach counting
    ),
    "grounding": FurtherTask(
        "find the region of a phrase",
        GroundConfig,
        "phrases",
        "phrases.jsonl",
        "phrase",
        lambda config: {"task": "ground", "shared_prefix": config.shared_prefix},
        _score_grounding,
    ),
    "stories": FurtherTask(
        "tell what changes from image to image",
        CaptionConfig,
        "captions",
        "stories.jsonl",
        "caption",
        lambda config: {"task": "caption", "seq2seq": config.seq2seq},
        _score_stories,
        images="stories",
    ),
}
"""The tasks by name, which is that of the run and of the group of its scores."""
