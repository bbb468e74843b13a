"""Evaluation of a trained model over a region store and annotation files: predictions, scores and a manifest.

Nothing is random, and results do not depend on the order of texts and regions.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dimvl.callbacks import Progress
from dimvl.checkpoints import origin_of
from dimvl.config import validate
from dimvl.data.annotations import describe_file
from dimvl.errors import UserError
from dimvl.files import atomic_path, git_revision, sha256, write_json
from dimvl.metrics.evaluations import ITEMS, MANIFEST, PREDICTIONS, SCORES
from dimvl.metrics.measures import intervals
from dimvl.regions.store import RegionStore
from dimvl.tasks import all_tasks, task_of_model
from dimvl.tasks.task import Evaluation, Task
from dimvl.trained_model import TrainedModel

PACKAGES = ("dimvl", "torch", "tokenizers", "numpy", "pycocoevalcap")
SUBMISSIONS = ("submission.csv", "submission.json")
"""Files in the form that a data set's authors want, where that is not `predictions.json`."""
OPTIONS = frozenset(
    (
        *("questions", "annotations", "statements", "captions", "split", "worlds"),
        *("beams", "max_tokens", "length_penalty", "block_ngrams"),
    )
)
"""Files and settings that are options of `dimvl evaluate`; others are given as KEY=VALUE."""


def evaluate(
    model: Path,
    trained: TrainedModel,
    store: RegionStore,
    values: Mapping[str, Any],
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict for the annotation files of the model's task, score the predictions, and write everything to a folder.

    The scores have 95% `intervals` by the bootstrap over images, by name: see `dimvl.metrics.intervals`.

    Args:
        model: folder of the run or export.
        trained: the model loaded from it.
        store: regions of the images.
        values: annotation files and settings, by the keys of the task's `evaluation`.
        folder: folder to write.
        settings: further settings for the manifest.
        progress: called with (predictions made, predictions in total).

    Raises:
        UserError: no task of the model takes these files, or files, store and model do not fit together.

    """
    task = _task_for(trained, values)
    fields = task.evaluation.model_fields
    required = [name for name, field in fields.items() if field.is_required()]
    if unknown := [name for name in values if name not in fields]:
        given = _typed(unknown[0], values[unknown[0]])
        needed = "".join(f", and give {_typed(name, 'FILE')}" for name in required if name not in values)
        raise UserError(f"{given} does not apply to {model}, a model of task {task.name!r}; remove it{needed}")
    if missing := [name for name in required if name not in values]:
        raise UserError(f"{model} needs an annotation file to predict for; give {_typed(missing[0], 'FILE')}")
    options = validate(task.evaluation, dict(values), f"evaluation of {model}")
    found = task.evaluate(trained, store, options, progress)
    found = replace(found, files={**options.files(), **found.files})
    everything = {**options.settings(), **(settings or {})}
    return write_evaluation(model, trained, store, found, folder, everything, task.with_official_scores)


def write_evaluation(
    model: Path,
    trained: TrainedModel,
    store: RegionStore,
    found: Evaluation,
    folder: Path,
    settings: Mapping[str, Any],
    complete: Callable[[Evaluation], Evaluation] = lambda found: found,
) -> Evaluation:
    """Write predictions, submissions, items, scores with their intervals, and a manifest.

    Args:
        model: folder of the run or export.
        trained: the model loaded from it.
        store: regions of the images.
        found: the predictions and their scores.
        folder: folder to write.
        settings: what the predictions depend on besides files, for the manifest.
        complete: adds scores after the predictions are written.

    Returns:
        What was written.

    """
    write_json(folder / PREDICTIONS, found.predictions, indent=None)
    for name in (ITEMS, SCORES, MANIFEST, *SUBMISSIONS):  # of an earlier evaluation
        (folder / name).unlink(missing_ok=True)
    for name, content in found.submissions.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    found = complete(found)
    if found.scores and (known := intervals(found.items)):
        found = replace(found, scores={**found.scores, "intervals": known})
    with atomic_path(folder / ITEMS) as temporary:
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in found.items)
        temporary.write_text("".join(lines), encoding="utf-8")
    if found.scores:
        write_json(folder / SCORES, found.scores)
    manifest = _describe(model, trained, store, found.files, {**settings, "device": str(trained.device)})
    write_json(folder / MANIFEST, {**manifest, "predictions_sha256": sha256(folder / PREDICTIONS)})
    return found


def _typed(name: str, value: Any) -> str:
    """Write a file or setting as it is typed."""
    return f"--{name.replace('_', '-')} {value}" if name in OPTIONS else f"{name}={value}"


def check_folder(folder: Path) -> None:
    """Check that a folder is free for an evaluation, or holds one.

    Raises:
        UserError: it holds something else.

    """
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    others = sorted(found - {PREDICTIONS, ITEMS, SCORES, MANIFEST, *SUBMISSIONS})
    if others and not {PREDICTIONS, MANIFEST} <= found:
        raise UserError(f"{folder} holds {others[0]!r} and is not an evaluation; give another folder as --out")


def _task_for(trained: TrainedModel, values: Mapping[str, Any]) -> Task[Any]:
    """Return the model's own task or, where it does not take these values, another one that the model can do."""
    own = task_of_model(trained.processor)
    for task in (own, *all_tasks().values()):
        fields = task.evaluation.model_fields
        required = {name for name, field in fields.items() if field.is_required()}
        if required <= values.keys() <= fields.keys() and any(a.available(trained.processor) for a in task.abilities):
            return task
    return own


def _describe(
    model: Path, trained: TrainedModel, store: RegionStore, files: Mapping[str, Path], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what an evaluation depends on: model (with the seed of its run), regions, files, settings and code."""
    origin = origin_of(model)
    return {
        "model": {
            "folder": model.name,
            "weights": str(trained.weights.relative_to(model)),
            "sha256": trained.weights_sha256,
            "trained_by": origin.model_dump(mode="json", exclude={"seed"}, exclude_unset=True),
        },
        "seed": origin.seed,
        "regions": [
            {
                "store": folder.path.name,
                "manifest_sha256": sha256(folder.path / "manifest.json"),
                "images": len(folder),
                "extractor": folder.manifest.extractor.name,
                "fingerprint": folder.manifest.extractor.fingerprint,
            }
            for folder in store.folders
        ],
        "data": {name: describe_file(path) for name, path in files.items()},
        "settings": dict(settings),
        "versions": {name: version(name) for name in PACKAGES if find_spec(name)},
        "git_revision": git_revision(),
    }
