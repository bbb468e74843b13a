"""Evaluation of a trained model over a region store and annotation files: predictions, scores and a manifest.

The same texts and regions give the same results whatever their order; nothing is random.
"""

import json
from collections.abc import Mapping
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
from dimvl.regions.store import RegionStore
from dimvl.tasks import TASKS, Task, task_of_model
from dimvl.tasks.task import Evaluation
from dimvl.trained_model import TrainedModel

PACKAGES = ("dimvl", "torch", "tokenizers", "numpy", "pycocoevalcap")
PREDICTIONS, ITEMS, SCORES, MANIFEST = "predictions.json", "items.jsonl", "scores.json", "manifest.json"


def evaluate(
    model: Path,
    trained: TrainedModel,
    store: RegionStore,
    given: Mapping[str, Any],
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict for the annotation files of the model's task, score the predictions, and write everything to a folder.

    Args:
        model: folder of the run or export.
        trained: what was loaded from it.
        store: regions of the images.
        given: annotation files and settings, by the keys of the task's `evaluation`.
        folder: to write.
        settings: further settings for the manifest.
        progress: called with (predictions made, predictions in total).

    Raises:
        UserError: no task of the model takes these files, or files, store and model do not fit together.

    """
    task = _task_for(trained, given)
    fields = task.evaluation.model_fields
    required = [name for name, field in fields.items() if field.is_required()]
    if unknown := [name for name in given if name not in fields]:
        raise UserError(
            f"--{unknown[0]} {given[unknown[0]]} is not for a model of task {task.name!r}, such as {model}; "
            f"give --{' and --'.join(required)}"
        )
    if missing := [name for name in required if name not in given]:
        raise UserError(f"nothing says what to predict for; give --{missing[0]}")
    options = validate(task.evaluation, dict(given), f"evaluation of {model}")
    found = task.evaluate(trained, store, options, progress)
    write_predictions(folder, found)
    found = task.with_official_scores(found)
    files = {**options.files(), **found.files}
    everything = {**options.settings(), **(settings or {}), "device": str(trained.device)}
    write_evaluation(folder, found, describe_evaluation(model, trained, store, files, everything))
    return found


def _task_for(trained: TrainedModel, given: Mapping[str, Any]) -> Task[Any]:
    """Return the model's own task or, where that does not take what is given, another one that the model can do."""
    own = task_of_model(trained.processor)
    for task in (own, *TASKS.values()):
        fields = task.evaluation.model_fields
        required = {name for name, field in fields.items() if field.is_required()}
        if required <= given.keys() <= fields.keys() and any(a.available(trained.processor) for a in task.abilities):
            return task
    return own


def describe_evaluation(
    model: Path, trained: TrainedModel, store: RegionStore, files: Mapping[str, Path], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what an evaluation depends on: model, regions, annotation files, settings and code.

    Nothing is random in an evaluation; the seed is the one that a run was trained with.

    Args:
        model: the folder that was given.
        trained: what was loaded from it.
        store: the regions.
        files: name -> annotation file.
        settings: everything else that the predictions depend on.

    """
    origin = origin_of(model)
    return {
        "model": {
            "folder": model.name,
            "weights": str(trained.weights.relative_to(model)),
            "sha256": sha256(trained.weights),
            "trained_by": {name: origin.get(name) for name in ("git_revision", "data")},
        },
        "seed": origin.get("seed"),
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


def write_evaluation(folder: Path, evaluation: Evaluation, manifest: Mapping[str, Any]) -> None:
    """Write items, scores and, last, the manifest with the checksum of the predictions."""
    with atomic_path(folder / ITEMS) as temporary:
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in evaluation.items)
        temporary.write_text("".join(lines), encoding="utf-8")
    if evaluation.scores:
        write_json(folder / SCORES, evaluation.scores)
    write_json(folder / MANIFEST, {**manifest, "predictions_sha256": sha256(folder / PREDICTIONS)})


def write_predictions(folder: Path, evaluation: Evaluation) -> None:
    """Write the predictions, and remove what an earlier evaluation wrote about others."""
    write_json(folder / PREDICTIONS, evaluation.predictions, indent=None)
    for name in (ITEMS, SCORES, MANIFEST):
        (folder / name).unlink(missing_ok=True)
