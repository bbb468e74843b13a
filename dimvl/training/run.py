"""A run from its configuration: what the ranks must agree on, task, engine and loop.

RUN/run.json             the configuration, versions and the git revision
    texts.json           which tokenised texts it is trained on
    match.json           which images of the annotations are in the region store
    trained_on.npy       hashes of the images trained on, see `dimvl/data/trained_on.py`
    config.json          the model's arguments
    processor.json, tokenizer.json, tokenizer_config.json
    checkpoints/, log.jsonl, texts/
    .plans/              while it runs: which examples each step has, see `dimvl/data/epoch_plan.py`
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dimvl import cpu
from dimvl.callbacks import NamedProgress
from dimvl.config import AnyConfig, TrainingConfig
from dimvl.data.annotations import describe_file
from dimvl.data.epoch_plan import ExampleSource
from dimvl.data.sampler import TrainingSteps
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.errors import NotFiniteError, OtherRankError, UserError
from dimvl.files import git_revision, locked, sha256, write_json
from dimvl.pretrained import MODEL, RUN, choose_device, latest_checkpoint, run_arguments
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import Task
from dimvl.training.build import MATCH, TEXTS, build_task, known_texts, read_annotations
from dimvl.training.deepspeed_engine import DeepSpeedEngine, checked_options
from dimvl.training.early_stopping import Validation
from dimvl.training.engine import Engine, TorchEngine
from dimvl.training.loop import train
from dimvl.training.ranks import Ranks, check_same, fail_together, new_group_timeout, open_ranks
from dimvl.training.report import StepReport
from dimvl.training.validation import build_validation

logger = logging.getLogger(__name__)
PLANS = ".plans"  # as nobody calls a folder of his own, since it is removed
PATIENCE = 10.0
"""Seconds for which a run waits for the folder: loader processes of one that was killed hold it for a second or two."""
ANNOTATIONS = ("captions", "questions", "annotations")
OTHERS = {"scenes.json": "scenes", "manifest.json": "a region store", "demo.json": "a demo"}
# Each rank may have its own, and each call too: stores are compared by their manifests.
PATHS = {"regions", "cache"}
# What may change between two calls of one run: where and how it runs, not what comes out.
FREE = PATHS | {
    f"training.{name}" for name in ("threads", "workers", "device", "wandb", "keep", "save_every", "log_every")
}
FREE |= {"output", "training.check_reads", "training.checkpoint_activations", "training.compile", "deepspeed"}
FREE |= {"training.rows_per_micro_batch"}  # as the number of ranks: the same data in other parts


def run_training(
    config: AnyConfig,
    progress: Callable[[StepReport], None] | None = None,
    working: NamedProgress = lambda what, done, total: None,
) -> Path:
    """Train as configured, going on where the run stopped; return the run's folder.

    Args:
        config: of the run.
        progress: called with each logged step.
        working: called with what else takes time, how much of it is done and how much there is.

    Raises:
        UserError: anything in configuration, stores, annotations or checkpoints that does not fit.
        OtherRankError: another process of the run failed or is gone.

    """
    cpu.configure()
    with open_ranks(config) as ranks:
        return train_on(ranks, config, progress, working)


def train_on(
    ranks: Ranks,
    config: AnyConfig,
    progress: Callable[[StepReport], None] | None = None,
    working: NamedProgress = lambda what, done, total: None,
) -> Path:
    """Train on ranks that have met; as `run_training`."""
    settings, run = config.training, config.output
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else CUDA's products refuse
        torch.use_deterministic_algorithms(True)
    options: dict[str, Any] = {}
    with fail_together(ranks):
        choose_device(settings.device)  # before anything is written
        if config.deepspeed is not None:
            options = checked_options(settings, config.deepspeed, ranks.size)
        description = _describe(config)
    if ranks.size > 1:
        _check_ranks(ranks, config, description)
    with ExitStack() as held:
        prepared = None
        try:
            for turn in (True, False):  # rank 0 writes tokenizer, texts and so on, which the others then find there
                with fail_together(ranks):
                    if (ranks.rank == 0) is turn:
                        prepared = _prepare(config, description, ranks, working, held)
            assert prepared is not None
            _train(ranks, config, options, *prepared, progress)
        except (UserError, NotFiniteError, OtherRankError):
            if ranks.rank == 0 and prepared is not None and latest_checkpoint(run) is None:
                _free(run)
            raise
    return run


def _train(
    ranks: Ranks,
    config: AnyConfig,
    options: dict[str, Any],
    task: Task,
    source: ExampleSource,
    validation: Validation | None,
    progress: Callable[[StepReport], None] | None,
) -> None:
    """Train what was prepared."""
    settings, run = config.training, config.output
    engine = _engine(config, task, options, ranks)
    data = TrainingSteps(
        source,
        task.shape,
        seed=config.seed,
        steps=settings.steps,
        rows_per_step=settings.rows_per_step,
        rows_per_micro_batch=settings.rows_per_micro_batch,
        rank=ranks.rank,
        ranks=ranks.size,
        plans=run / PLANS,
    )
    train(engine, data, config, run, progress, validation)


def _free(run: Path) -> None:
    """Let the mended configuration have the folder of a run that has trained nothing."""
    for name in (RUN, TOKENIZER):
        (run / name).unlink(missing_ok=True)


def _check_ranks(ranks: Ranks, config: AnyConfig, description: dict[str, Any]) -> None:
    """Compare configuration, data, packages and code of all ranks before anything is written.

    Raises:
        UserError: something differs.

    """
    values = {key: value for key, value in description["config"].items() if key not in PATHS}
    facts = {"launched world size": ranks.size, "region store (checksum of manifest.json)": description["stores"]}
    facts |= {f"{name} in its configuration": value for name, value in flat(values)}
    facts |= {f"file of {name}": value for name, value in flat(description["data"])}
    facts |= {f"version of {name}": value for name, value in description["versions"].items()}
    facts |= {"git revision of dimvl": description["git_revision"]}
    # Its products may be other ones (`dimvl/cpu/linear.py`), whose gradients come in another order.
    check_same(ranks, facts | {"kind of processor (vector instructions)": torch.backends.cpu.get_cpu_capability()})


def flat(values: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Names of nested values, joined by dots, with the values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def _prepare(
    config: AnyConfig, description: dict[str, Any], ranks: Ranks, working: NamedProgress, held: ExitStack
) -> tuple[Task, ExampleSource, Validation | None]:
    """Build model, task, examples and validation; what they need is written into the run's folder, which is held."""
    run = config.output
    if ranks.rank == 0:  # first of all, as the process that is waited for may have made the folder its own
        held.enter_context(locked(run, f"another process trains in {run}; wait for it or end it", patience=PATIENCE))
    _check_claim(run, description)
    store = RegionStore(config.regions, config.training.check_reads)
    is_new = not (run / RUN).exists()
    known = None if is_new else known_texts(config)
    annotations = ([], []) if known is not None else read_annotations(config, store)
    if ranks.rank == 0:
        shutil.rmtree(run / PLANS, ignore_errors=True)  # of a run that was killed; other code may plan otherwise
        held.callback(shutil.rmtree, run / PLANS, ignore_errors=True)
    if is_new:
        (run / TEXTS).unlink(missing_ok=True)
        write_json(run / RUN, description)
    torch.manual_seed(config.seed)
    try:
        task, source = build_task(config, store, *annotations, known, working)
        return task, source, build_validation(config, task, store, ranks, working)
    except UserError:
        if is_new:
            _free(run)
        raise


def prepare_encoder(task: Task, config: TrainingConfig) -> None:
    """Set how the encoder computes what it computes anyway."""
    task.model.encoder.checkpoint_activations = config.checkpoint_activations
    if config.compile:
        task.model.encoder.compile_blocks()


def _engine(config: AnyConfig, task: Task, options: dict[str, Any], ranks: Ranks) -> Engine:
    prepare_encoder(task, config.training)
    if config.deepspeed is None:
        return TorchEngine(task, config.training)
    with new_group_timeout(config.deepspeed.timeout):
        return DeepSpeedEngine(task, config.training, options, ranks)


def _describe(config: AnyConfig) -> dict[str, Any]:
    """What `run.json` says."""
    data = {}
    for name in ANNOTATIONS:
        files = [file for file in getattr(config, name, []) if file is not None]
        for number, file in enumerate(files, start=1):
            data[name if len(files) == 1 else f"{name} {number}"] = describe_file(file)
        if (file := getattr(getattr(config, "validation", None), name, None)) is not None:
            data[f"validation {name}"] = describe_file(file)
    names = ("dimvl", "torch", "tokenizers", "numpy", *(() if config.deepspeed is None else ("deepspeed",)))
    packages = {name: version(name) for name in names}
    values = config.model_dump(mode="json")
    stores = [sha256(folder.path / "manifest.json") for folder in RegionStore(config.regions).folders]
    return {"config": values, "data": data, "stores": stores, "versions": packages, "git_revision": git_revision()}


def _check_claim(run: Path, description: dict[str, Any]) -> None:
    """Compare with the `run.json` that is there.

    Raises:
        UserError: the folder holds a run of another configuration, a model that is no run, or something else of dimvl.

    """
    if not (run / RUN).exists():
        if (run / MODEL).exists() and not (run / MATCH).exists():  # of a run that did not start both may be there
            raise UserError(
                f"{run} holds an export or another model, which a run would write over; give another output"
            )
        if other := next((what for name, what in OTHERS.items() if (run / name).exists()), None):
            raise UserError(f"{run} holds {other}, which a run would be mixed into; give another output")
        return
    old = run_arguments(run)
    changed = [
        *_differences(old["config"], description["config"]),
        *_differences(old.get("data", {}), description["data"]),
        *(["content of the region store"] if old.get("stores") != description["stores"] else []),
    ]
    if changed:
        raise UserError(
            f"{run} holds a run with another {changed[0]}; give another output folder, or remove this one to start anew"
        )


def _differences(old: dict[str, Any], new: dict[str, Any], place: str = "") -> list[str]:
    """Names of values that differ, with both values."""
    result = []
    for key in sorted(old.keys() | new.keys()):
        name = f"{place}{key}"
        if name in FREE or old.get(key) == new.get(key):
            continue
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            result += _differences(before, now, f"{name}.")
        else:
            result.append(f"{name} ({before!r}, not {now!r})")
    return result
