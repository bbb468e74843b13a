"""The files of a run and its checkpoints: their names, the newest and the best checkpoint, and their checksums."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.files import read_json, read_text, sha256

MODEL = "config.json"
RUN = "run.json"
MATCH = "match.json"
TEXTS = "texts.json"
ORIGIN = "training.json"
LOG = "log.jsonl"
PREDICTIONS = "predictions.jsonl"
STATE = "state.json"
WEIGHTS = "model.safetensors"
OPTIMISER = "optimiser.safetensors"
REMEDY = "remove this checkpoint to continue from the one before it, or from the start if there is none"


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoint_folders(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-????????"))


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run."""
    folders = checkpoint_folders(run)
    return folders[-1] if folders else None


def best_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint with the best validation score; for a run without validation, the newest complete one.

    It is the one to evaluate, export and fine-tune; training resumes from the newest. Only its weights are checked.

    Raises:
        UserError: a checkpoint is missing, or its weights or a description are damaged.

    """
    if (newest := latest_checkpoint(run)) is None:
        return None
    state = check_checkpoint(newest, [])
    best = checkpoint_folder(run, state["best"]["step"]) if "best" in state else newest
    check_checkpoint(best, [WEIGHTS])
    return best


def check_checkpoint(folder: Path, files: Sequence[str] = (WEIGHTS, OPTIMISER)) -> dict[str, Any]:
    """Return a checkpoint's `state.json` after verifying the checksums of `files`.

    Raises:
        UserError: a file is missing or damaged.

    """
    for name in (STATE, *files):
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}; {REMEDY}")
    state = read_json(folder / STATE)
    try:
        step, checksums = int(state["step"]), {name: str(state["checksums"][name]) for name in (WEIGHTS, OPTIMISER)}
        if "best" in state:
            _ = float(state["best"]["score"]), int(state["best"]["step"]), int(state["best"]["misses"])
    except (KeyError, TypeError, ValueError):
        step, checksums = -1, {}
    if step != int(folder.name.rpartition("-")[2]):
        raise UserError(f"{folder / STATE} is damaged; {REMEDY}")
    for name in files:
        if sha256(folder / name) != checksums[name]:
            raise UserError(f"{folder / name} is damaged; {REMEDY}")
    return dict(state)


def origin_of(folder: Path) -> dict[str, Any]:
    """Return how the model of a run or an export was trained: seed, git revision and data files."""
    if not (folder / RUN).exists():
        return dict(read_json(folder / ORIGIN)) if (folder / ORIGIN).exists() else {}
    run = run_arguments(folder)
    return {"seed": run["config"].get("seed"), "git_revision": run.get("git_revision"), "data": run.get("data")}


def run_arguments(run: Path) -> dict[str, Any]:
    """Return the content of a run's `run.json`: configuration, data, versions and git revision.

    Raises:
        UserError: the folder is not a run, or the file is damaged.

    """
    if not (run / RUN).exists():
        raise UserError(f"{run} is not a run of dimvl (it has no {RUN}); give the folder of a run")
    described = read_json(run / RUN)
    if not isinstance(described, dict) or not isinstance(described.get("config"), dict):
        raise UserError(f"{run / RUN} is damaged; restore it, or give another run")
    return described


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the log or the logged predictions of a run, also while it trains; each record has a `step`.

    A record of a validation has `validation`, others have `losses`.

    Raises:
        UserError: the file cannot be read.

    """
    records = []
    for line in read_text(path).splitlines():
        with suppress(json.JSONDecodeError):  # a kill or a full disk truncates the last line
            records.append(json.loads(line))
    return records
