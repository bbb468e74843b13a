"""The files of a run and its checkpoints: their names, the newest and the best checkpoint, and their checksums."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from dimvl.errors import UserError
from dimvl.files import Strict, pinned, read_lines, read_sealed_as, sha256

logger = logging.getLogger(__name__)
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
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Result = TypeVar("Result")
REMEDY = "remove this checkpoint to continue from the one before it, or from the start if there is none"


class BestScore(Strict):
    """The best validation score so far, its step, and the number of validations since then."""

    score: float
    step: int = Field(ge=0)
    misses: int = Field(ge=0)


class CheckpointState(Strict):
    """The content of `state.json`: step, number of ranks, checksums by file, and the best score of a validated run."""

    step: int = Field(ge=0)
    ranks: int = Field(1, ge=1)
    checksums: dict[str, Sha256] = Field(min_length=2)
    best: BestScore | None = None


class DataFile(Strict):
    """An annotation file; see `describe_file`."""

    file: str
    sha256: Sha256
    description: str
    synthetic: bool


class Bert(Strict):
    """The BERT checkpoint that an encoder started from: name of its folder and checksum of its weights."""

    folder: str
    sha256: Sha256


class Initial(Strict):
    """The run or export that a run started from, with what that one was trained on; None where it is not known."""

    folder: str
    weights_sha256: Sha256 | None = None
    data: dict[str, DataFile] | None = None
    initial: "Initial | None" = None
    bert: Bert | None = None


class Origin(Strict):
    """The content of `training.json` in an export: how its model was trained."""

    seed: int | None = None
    git_revision: str | None = None
    data: dict[str, DataFile] | None = None
    initial: Initial | None = None
    bert: Bert | None = None


class RunDescription(Strict):
    """The content of `run.json`; `stores` are the checksums of the manifests of the region stores."""

    config: dict[str, Any]
    data: dict[str, DataFile] = Field(default_factory=dict)
    stores: list[str] | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    git_revision: str | None = None
    initial: Initial | None = None
    bert: Bert | None = None


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
    return read_best_checkpoint(run, lambda folder, weights: folder)


def read_best_checkpoint(run: Path, read: Callable[[Path, str], Result]) -> Result | None:
    """Read from the best checkpoint while the run may be training, which removes checkpoints.

    Args:
        run: folder of the run.
        read: called with the folder of the checkpoint and the SHA-256 of its weights; again with the next one if the
            run has removed the checkpoint meanwhile, which only happens on a file system without locks.

    Returns:
        What `read` returned; None if there is no checkpoint.

    Raises:
        UserError: as `best_checkpoint`, and what `read` raises.

    """
    while (newest := latest_checkpoint(run)) is not None:
        try:
            with pinned(newest):
                state = check_checkpoint(newest, [])
            best = checkpoint_folder(run, state["best"]["step"]) if "best" in state else newest
            with pinned(best):
                return read(best, check_checkpoint(best, [WEIGHTS])["checksums"][WEIGHTS])
        except (UserError, OSError):
            if latest_checkpoint(run) == newest:
                raise
    return None


def check_checkpoint(folder: Path, files: Sequence[str] = (WEIGHTS, OPTIMISER)) -> dict[str, Any]:
    """Return a checkpoint's `state.json` after verifying the checksums of `files`.

    Raises:
        UserError: a file is missing or damaged.

    """
    for name in (STATE, *files):
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}; {REMEDY}")
    state = read_sealed_as(folder / STATE, CheckpointState, REMEDY)
    if state.step != int(folder.name.rpartition("-")[2]):
        raise UserError(f"{folder / STATE} is damaged: it is of step {state.step}; {REMEDY}")
    for name in files:
        if sha256(folder / name) != state.checksums.get(name):
            raise UserError(f"{folder / name} is damaged; {REMEDY}")
    return state.model_dump(exclude_none=True)


def origin_of(folder: Path) -> dict[str, Any]:
    """Return how the model of a run or an export was trained, by the keys of `Origin`; empty if that is not recorded.

    Raises:
        UserError: the record is damaged.

    """
    if (folder / RUN).exists():
        run = run_arguments(folder)
        return {"seed": run["config"].get("seed"), **{name: run[name] for name in Origin.model_fields if name in run}}
    if not (folder / ORIGIN).exists():
        return {}
    return read_sealed_as(folder / ORIGIN, Origin, "copy the whole export again").model_dump()


def initial_of(folder: Path) -> dict[str, Any]:
    """Describe the model that a run starts from, by the keys of `Initial`.

    Raises:
        UserError: it has no weights, or a file is damaged.

    """
    weights = folder / WEIGHTS
    digest = sha256(weights) if weights.exists() else read_best_checkpoint(folder, lambda _, digest: digest)
    if digest is None:
        raise UserError(f"{folder} has neither {WEIGHTS} nor a checkpoint; give a trained run or an export")
    origin = origin_of(folder)
    known = {name: origin.get(name) for name in ("data", "initial", "bert")}
    return {"folder": folder.resolve().name, "weights_sha256": digest, **known}


def run_arguments(run: Path) -> dict[str, Any]:
    """Return the content of a run's `run.json` by the keys of `RunDescription`.

    Raises:
        UserError: the folder is not a run, or the file is damaged.

    """
    if not (run / RUN).exists():
        raise UserError(f"{run} is not a run of dimvl (it has no {RUN}); give the folder of a run")
    found = read_sealed_as(run / RUN, RunDescription, "restore it, or give another run").model_dump()
    if found["initial"] is None and (earlier := found["config"].get("initial")):  # by version 0.1
        found["initial"] = Initial(folder=Path(str(earlier)).name).model_dump()
    return found


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the log or the logged predictions of a run, also while it trains; each record has a `step`.

    A warning counts damaged lines, which are left out. A record of a validation has `validation`, others have `losses`.

    Raises:
        UserError: the file cannot be read, or has no whole line among damaged ones.

    """
    records, damaged = read_lines(path, "step")
    if damaged and not records:
        raise UserError(f"{path} is not the log of a run; check that it is the right file")
    if damaged:
        logger.warning("%s: %d of %d lines are damaged and left out", path, len(damaged), len(damaged) + len(records))
    return records
