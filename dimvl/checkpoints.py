"""The files of a run and its checkpoints: names, forms and checksums, the newest and the best checkpoint."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from dimvl.data.processor import FILE as PROCESSOR
from dimvl.data.tokenizer import CONFIG as TOKENIZER_CONFIG
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.data.trained_on import FILE as TRAINED_ON
from dimvl.errors import UserError
from dimvl.files import (
    CHECKSUMS,
    RESTORE,
    Sha256,
    Strict,
    check_folder,
    check_values,
    folder_checksums,
    pinned,
    read_lines,
    read_sealed_as,
    seal_folder,
    sha256,
)

logger = logging.getLogger(__name__)
MODEL = "config.json"
RUN = "run.json"
ADAPTER = "adapter.json"
VALIDATION = "validation "  # begins the names of annotation files that are not trained on
MATCH = "match.json"
TEXTS = "texts.json"
ORIGIN = "training.json"
LOG = "log.jsonl"
PREDICTIONS = "predictions.jsonl"
ENDED = "ended.json"
STATE = "state.json"
WEIGHTS = "model.safetensors"
OPTIMISER = "optimiser.safetensors"
CARD = "README.md"
REMEDY = "remove this checkpoint to continue from the one before it, or from the start if there is none"
SEALED = (MODEL, ADAPTER, PROCESSOR, TOKENIZER, TOKENIZER_CONFIG, TRAINED_ON)
"""The files that training writes at its start and nothing changes later; `checksums.json` has their checksums."""
Result = TypeVar("Result")
Count = Annotated[int, Field(ge=0)]


class BestState(Strict):
    """The best validation so far."""

    score: float
    step: Count
    misses: Count


class CheckpointState(Strict):
    """The form of `state.json`."""

    step: Count
    checksums: dict[str, Sha256] = Field(min_length=2)
    ranks: Annotated[int, Field(ge=1)] = 1
    best: BestState | None = None


class DataFile(Strict):
    """An annotation file that a model was trained on."""

    file: str
    sha256: Sha256
    description: str
    synthetic: bool


class Start(Strict):
    """What a run started from: a model of dimvl, or an encoder, by name and the SHA-256 of its weights.

    `data` and `start` are those of the model, as in `Origin`. Of the start of runs before 0.2 only the name is known.
    """

    name: str
    sha256: Sha256 | None = None
    encoder: bool = False
    data: dict[str, DataFile] = Field(default_factory=dict)
    start: "Start | None" = None


class Origin(Strict):
    """The form of an export's `training.json`: how its model was trained."""

    seed: int | None = None
    git_revision: str | None = None
    data: dict[str, DataFile] = Field(default_factory=dict)
    start: Start | None = None
    judges: dict[str, Start] = Field(default_factory=dict)

    @property
    def synthetic(self) -> bool:
        """Whether all images of the training, the initial models' included, were synthetic scenes."""
        files, start = trained_files(self.data), self.start
        while start is not None:
            files, start = [*files, *trained_files(start.data)], start.start
        return bool(files) and all(file.synthetic for file in files)


class RunDescription(Strict):
    """The form of a run's `run.json`.

    Those of versions before 0.2 have no `start`, no `rows` and no `files`, the checksums of files besides the data;
    only runs that depend on another model have `judges`.
    """

    config: dict[str, Any]
    data: dict[str, DataFile]
    files: dict[str, str] = Field(default_factory=dict)
    judges: dict[str, Start] = Field(default_factory=dict)
    stores: list[str] = Field(default_factory=list)
    versions: dict[str, str]
    git_revision: str | None
    start: Start | None = None
    rows: Literal["exact"] | None = None


def trained_files(data: Mapping[str, DataFile]) -> list[DataFile]:
    """Return the files that are not only for validation."""
    return [file for name, file in data.items() if not name.startswith(VALIDATION)]


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


def best_checkpoint(run: Path) -> Path:
    """Return the checkpoint with the best validation score; for a run without validation, the newest complete one.

    It is the one to evaluate, export and fine-tune; training resumes from the newest. Only its weights are checked.

    Raises:
        UserError: there is no checkpoint, or its weights or a description are damaged.

    """
    return read_best_checkpoint(run, lambda folder, weights: folder)


def read_best_checkpoint(run: Path, read: Callable[[Path, str], Result]) -> Result:
    """Read from the best checkpoint while the run may be training, which removes checkpoints.

    Args:
        run: folder of the run.
        read: called with the folder of the checkpoint and the SHA-256 of its weights; again with the next one if the
            run has removed the checkpoint meanwhile, which only happens on a file system without locks.

    Returns:
        What `read` returned.

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
    raise UserError(f"{run} has neither {WEIGHTS} nor a checkpoint; give a trained run or an export")


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


def seal_run(run: Path) -> None:
    """Write the checksums of the files of a run that stay as they are; call it once they are written."""
    seal_folder(run, [name for name in SEALED if (run / name).exists()])


def check_seal(folder: Path, but: str = CARD) -> None:
    """Compare the files of a run or an export, except `but`, with its checksums.

    Versions before 0.2 wrote none, which a warning says. The model card may be edited.

    Raises:
        UserError: a file is missing or damaged.

    """
    if not (folder / CHECKSUMS).exists():
        logger.warning("%s has no %s, as before version 0.2: damage to its files cannot be noticed", folder, CHECKSUMS)
        return
    check_folder(folder, RESTORE, [name for name in folder_checksums(folder, RESTORE) if name != but])


def origin_of(folder: Path) -> Origin:
    """Return how the model of a run or an export was trained; an empty record if the export does not say.

    Raises:
        UserError: the description is damaged.

    """
    if (folder / RUN).exists():
        run = run_arguments(folder)
        known = {name: run[name] for name in ("git_revision", "data", "start", "judges") if name in run}
        return check_values({"seed": run["config"].get("seed"), **known}, Origin, folder / RUN, RESTORE)
    path = folder / ORIGIN
    return read_sealed_as(path, Origin, RESTORE) if path.exists() else Origin()


def start_of(folder: Path) -> Start:
    """Describe a model that a run starts from.

    Raises:
        UserError: it has no weights, or those of an adapter alone, or a file is damaged.

    """
    if (folder / ADAPTER).exists():
        raise UserError(
            f"{folder} is an adapter, not a whole model; give what `dimvl export RUN OUT --merge` wrote of its run"
        )
    weights = folder / WEIGHTS
    digest = sha256(weights) if weights.exists() else read_best_checkpoint(folder, lambda _, digest: digest)
    origin = origin_of(folder)
    return Start(name=folder.resolve().name, sha256=digest, data=origin.data, start=origin.start)


def run_arguments(run: Path) -> dict[str, Any]:
    """Return the content of a run's `run.json`: configuration, data, versions and git revision.

    Raises:
        UserError: the folder is not a run, or the file is damaged.

    """
    path = run / RUN
    if not path.exists():
        raise UserError(f"{run} is not a run of dimvl (it has no {RUN}); give the folder of a run")
    found = read_sealed_as(path, RunDescription, RESTORE).model_dump(exclude_unset=True)
    if "start" not in found:  # by version 0.1, if it had one
        initial, model = found["config"].get("initial"), found["config"].get("model")
        if name := initial or (model.get("bert") if isinstance(model, dict) else None):
            found["start"] = {"name": Path(str(name)).name, "encoder": not initial}
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
