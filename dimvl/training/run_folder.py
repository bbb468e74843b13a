"""The folder of a run: claimed for one configuration, locked by one process, released if nothing was trained.

RUN/run.json             the configuration, versions and the git revision
    texts.json           which tokenised texts it is trained on
    match.json           which images of the annotations are in the region store
    trained_on.npy       hashes of the images trained on, see `dimvl/data/trained_on.py`
    config.json          the model's arguments
    processor.json, tokenizer.json, tokenizer_config.json
    checkpoints/, log.jsonl, texts/
    .plans/              while it runs: which examples each step has, see `dimvl/data/epoch_plan.py`
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from dimvl.checkpoints import MATCH, MODEL, RUN, TEXTS, run_arguments
from dimvl.config import RunConfig
from dimvl.data.annotations import describe_file
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.errors import UserError
from dimvl.files import git_revision, locked, sha256, write_json
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.training.ranks import Ranks, check_same

PLANS = ".plans"  # a name that users do not give to folders of their own, since it is removed
PATIENCE = 10.0
"""Seconds to wait for the folder's lock: loader processes of a killed run hold it for a second or two."""
OTHERS = {"scenes.json": "scenes", "manifest.json": "a region store", "demo.json": "a demo"}
PATHS = {"regions", "cache"}
"""Keys that may differ between ranks and between starts: region stores are compared by their manifests."""
FREE = PATHS | {
    *("output", "deepspeed", "training.threads", "training.workers", "training.device", "training.wandb"),
    *("training.keep", "training.save_every", "training.log_every", "training.check_reads", "training.compile"),
    *("training.checkpoint_activations", "training.rows_per_micro_batch"),
}
"""Keys that may change when a run resumes: where and how it runs, not what it computes but for rounding."""


def describe(config: RunConfig) -> dict[str, Any]:
    """Return the content of `run.json`: configuration, checksums of the data, versions and git revision.

    Raises:
        UserError: an annotation file or a region store is missing or damaged.

    """
    data = {}
    for name, files in task_of(config).annotation_files(config).items():
        for number, file in enumerate(files, start=1):
            data[name if len(files) == 1 else f"{name} {number}"] = describe_file(file)
    names = ("dimvl", "torch", "tokenizers", "numpy", *(() if config.deepspeed is None else ("deepspeed",)))
    packages = {name: version(name) for name in names}
    values = config.model_dump(mode="json")
    stores = [sha256(folder.path / "manifest.json") for folder in RegionStore(config.regions).folders]
    return {"config": values, "data": data, "stores": stores, "versions": packages, "git_revision": git_revision()}


def check_ranks(ranks: Ranks, config: RunConfig, description: dict[str, Any]) -> None:
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
    # Other instructions choose other kernels (`dimvl/cpu/linear.py`), whose gradients round differently.
    check_same(ranks, facts | {"kind of CPU (vector instructions)": torch.backends.cpu.get_cpu_capability()})


def flat(values: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names of nested values, joined by dots, with the values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def claim(config: RunConfig, description: dict[str, Any], held: ExitStack | None) -> bool:
    """Make sure that the folder is free or holds this run; return whether it is new.

    Args:
        config: of the run.
        description: as `describe` returns it.
        held: on rank 0, keeps the folder locked and removes plans at the end; None on other ranks.

    Raises:
        UserError: another process trains in it, or it holds a run of another configuration, a model that is not a run,
            or something else of dimvl.

    """
    run = config.output
    if held is not None:  # before all else: a process that is waited for may have claimed the folder meanwhile
        held.enter_context(locked(run, f"another process trains in {run}; wait for it or end it", patience=PATIENCE))
    _check_claim(run, config, description)
    is_new = not (run / RUN).exists()
    if held is not None:
        shutil.rmtree(run / PLANS, ignore_errors=True)  # of a run that was killed; other code may plan differently
        held.callback(shutil.rmtree, run / PLANS, ignore_errors=True)
    return is_new


def record(run: Path, description: dict[str, Any]) -> None:
    """Write `run.json` of a new run: from now on the folder is claimed."""
    (run / TEXTS).unlink(missing_ok=True)
    write_json(run / RUN, description)


def release(run: Path) -> None:
    """Free the folder of a run that has trained nothing for a corrected configuration."""
    for name in (RUN, TOKENIZER):
        (run / name).unlink(missing_ok=True)


def _check_claim(run: Path, config: RunConfig, description: dict[str, Any]) -> None:
    if not (run / RUN).exists():
        if (run / MODEL).exists() and not (run / MATCH).exists():  # a run that failed to start may have both
            raise UserError(f"{run} holds an export or another model, which a run would overwrite; give another output")
        if other := next((what for name, what in OTHERS.items() if (run / name).exists()), None):
            raise UserError(f"{run} holds {other}, which a run would be mixed into; give another output")
        return
    old = run_arguments(run)
    changed = [
        *_differences(_with_defaults(old["config"], type(config)), description["config"]),
        *_differences(old.get("data", {}), description["data"]),
        *(["content of the region store"] if old.get("stores") != description["stores"] else []),
    ]
    if changed:
        raise UserError(
            f"{run} holds a run with another {changed[0]}; give another output, or remove this folder to start again"
        )


def _with_defaults(values: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Add the defaults of keys that did not exist when a run was started."""
    try:
        return model.model_validate(values).model_dump(mode="json")
    except ValidationError:  # of another task, or of rules that did not hold then
        return values


def _differences(old: dict[str, Any], new: dict[str, Any], place: str = "") -> list[str]:
    """Return the names of values that differ, with both values."""
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
