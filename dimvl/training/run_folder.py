"""The folder of a run: claimed for one configuration, locked by one process, released if nothing was trained.

RUN/run.json             configuration, data, what it starts from, versions and git revision
    texts.json           name of the tokenised texts
    match.json           images of the annotations that are in the region store
    trained_on.npy       hashes of the training images, see `dimvl/data/trained_on.py`
    config.json          the model's arguments
    processor.json, tokenizer.json, tokenizer_config.json
    checksums.json       of the three lines above, which stay as they are
    checkpoints/, log.jsonl, texts/
    ended.json           how the last training ended; absent while it trains, and after a kill
    .plans/              during training: the examples of each step, see `dimvl/data/epoch_plan.py`
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from dimvl.checkpoints import (
    ADAPTER,
    ENDED,
    MATCH,
    MODEL,
    RUN,
    TEXTS,
    Start,
    latest_checkpoint,
    run_arguments,
    start_of,
)
from dimvl.config import RunConfig
from dimvl.data.annotations import describe_file
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.errors import Interrupted, UserError
from dimvl.files import CHECKSUMS, git_revision, locked, sha256, write_json, write_sealed
from dimvl.model.convert import BERT_WEIGHTS
from dimvl.regions.store import RegionStore
from dimvl.showing import reason
from dimvl.tasks import task_of
from dimvl.training.ranks import Ranks, check_same

PLANS = ".plans"  # hidden, since this folder is removed at the end
PATIENCE = 10.0
"""Seconds to wait for the folder's lock, which loader processes of a killed run hold for a second or two."""
OTHERS = {"scenes.json": "scenes", "manifest.json": "a region store", "demo.json": "a demo"}
EXACT_ROWS = "exact"
"""Value of `rows` in `run.json`: the row budget counts the tags that an image has. Absent: it counts their budget."""
PATHS = {"regions", "cache"}
"""Keys that may differ between ranks and starts; region stores are compared by their manifests instead."""
FREE = PATHS | {
    *("output", "deepspeed", "training.threads", "training.workers", "training.device", "training.wandb"),
    "training.tensorboard",
    *("training.keep", "training.save_every", "training.log_every", "training.check_reads", "training.compile"),
    *("training.checkpoint_activations", "training.rows_per_micro_batch"),
}
"""Keys that may change when a run resumes, since they change results by rounding at most."""


def describe(config: RunConfig) -> dict[str, Any]:
    """Return the content of `run.json`: configuration, checksums of data and other files, versions and git revision.

    Raises:
        UserError: an annotation file or a region store is missing or damaged.

    """
    data = {}
    for name, files in task_of(config).annotation_files(config).items():
        for number, file in enumerate(files, start=1):
            data[name if len(files) == 1 else f"{name} {number}"] = describe_file(file)
    lora = config.adapter is not None and config.adapter.lora is not None
    more = [name for name, used in (("deepspeed", config.deepspeed is not None), ("peft", lora)) if used]
    packages = {name: version(name) for name in ("dimvl", "torch", "tokenizers", "numpy", *filter(find_spec, more))}
    values = config.model_dump(mode="json")
    stores = [sha256(folder.path / "manifest.json") for folder in RegionStore(config.regions).folders]
    known = {file for files in task_of(config).annotation_files(config).values() for file in files}
    others = {key: sha256(path) for key, path in config.paths() if path.is_file() and path not in known}
    described = {"config": values, "data": data, "stores": stores, "versions": packages, "rows": EXACT_ROWS}
    described["files"] = others
    start = _start(config)
    started = {} if start is None else {"start": start.model_dump(mode="json", exclude_defaults=True)}
    judges = {key: start_of(path).model_dump(mode="json") for key, path in task_of(config).judges(config).items()}
    return {**described, "git_revision": git_revision(), **started, **({"judges": judges} if judges else {})}


def _start(config: RunConfig) -> Start | None:
    if config.initial is not None:
        return start_of(config.initial)
    if (bert := config.model.bert) is not None:
        return Start(name=bert.resolve().name, sha256=sha256(bert / BERT_WEIGHTS), encoder=True)
    return None


def check_ranks(ranks: Ranks, config: RunConfig, description: dict[str, Any]) -> None:
    """Compare configuration, data, packages and code of all ranks before anything is written.

    Raises:
        UserError: one of them differs.

    """
    values = {key: value for key, value in description["config"].items() if key not in PATHS}
    facts = {"launched world size": ranks.size, "region store (checksum of manifest.json)": description["stores"]}
    facts |= {f"{name} in its configuration": value for name, value in flat(values)}
    facts |= {f"file of {name}": value for name, value in flat(description["data"])}
    facts |= {f"version of {name}": value for name, value in description["versions"].items()}
    facts |= {"git revision of dimvl": description["git_revision"]}
    facts |= {"initial model (checksum of its weights)": _start_checksum(description)}
    facts |= {f"{key} (checksum of its weights)": digest for key, digest in _judge_checksums(description).items()}
    # Other instructions select other kernels (`dimvl/cpu/linear.py`), whose gradients round differently.
    check_same(ranks, facts | {"kind of CPU (vector instructions)": torch.backends.cpu.get_cpu_capability()})


def flat(values: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values with their names, joined by dots."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def claim(config: RunConfig, description: dict[str, Any], held: ExitStack | None) -> bool:
    """Check that the folder is free or holds this run; return whether the run is new.

    `description` is the result of `describe`. On rank 0, `held` keeps the folder locked and removes plans at the end.

    Raises:
        UserError: another process trains in the folder, or it holds another run, another model or other data of dimvl.

    """
    run = config.output
    if held is not None:  # first, since the process that holds the lock may claim the folder
        held.enter_context(locked(run, f"another process trains in {run}; wait for it or stop it", patience=PATIENCE))
    _check_claim(run, config, description)
    is_new = not (run / RUN).exists()
    if held is not None:
        if (run / PLANS).is_symlink():
            (run / PLANS).unlink()
        shutil.rmtree(run / PLANS, ignore_errors=True)  # left by a killed run, perhaps of another version
        held.callback(shutil.rmtree, run / PLANS, ignore_errors=True)
    return is_new


def record(run: Path, description: dict[str, Any]) -> None:
    """Write `run.json` of a new run, which claims the folder."""
    for name in (TEXTS, CHECKSUMS):
        (run / name).unlink(missing_ok=True)
    write_sealed(run / RUN, description)


def release(run: Path) -> None:
    """Free the folder of a run that has trained nothing, so that a corrected configuration can use it."""
    for name in (RUN, TOKENIZER, CHECKSUMS, ADAPTER):
        (run / name).unlink(missing_ok=True)


@contextmanager
def noting_end(run: Path) -> Iterator[None]:
    """Write `ended.json` when training ends in any other way than by a kill, for those who watch the run."""
    (run / ENDED).unlink(missing_ok=True)
    how, said = "finished", ""
    try:
        yield
    except BaseException as error:
        how, said = "stopped" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed", reason(error)
        raise
    finally:
        with suppress(UserError, OSError):  # the disk may be full
            write_json(run / ENDED, {"how": how, "reason": said})


def counts_whole_budget(run: Path) -> bool:
    """Return whether a run was begun by version 0.1, which counted the whole budget of tags as rows of each example.

    Such a run goes on so, since its steps depend on these rows.
    """
    return (run / RUN).exists() and run_arguments(run).get("rows") != EXACT_ROWS


def _check_claim(run: Path, config: RunConfig, description: dict[str, Any]) -> None:
    if not (run / RUN).exists():
        if (run / MODEL).exists() and not (run / MATCH).exists():  # a run that failed to start has both
            raise UserError(
                f"{run} holds an export or another model, which training would overwrite; give another output"
            )
        if other := next((what for name, what in OTHERS.items() if (run / name).exists()), None):
            raise UserError(f"{run} holds {other}, where training must not write; give another output")
        return
    old = run_arguments(run)
    changed = [
        *_differences(_with_defaults(old["config"], type(config)), description["config"]),
        *_differences(old.get("data", {}), description["data"]),
        *(["region store (its content differs)"] if old.get("stores") != description["stores"] else []),
    ]
    from_start = latest_checkpoint(run) is None or config.adapter is not None  # checkpoints of adapters lack the base
    if from_start and _start_checksum(old) != _start_checksum(description):
        changed += ["initial model (its weights differ)"]
    if "files" in old:
        files = old["files"].keys() | description["files"].keys()
        changed += [
            f"{key} (the file differs)"
            for key in sorted(files)
            if old["files"].get(key) != description["files"].get(key)
        ]
    before, now = _judge_checksums(old), _judge_checksums(description)
    changed += [f"{key} (its weights differ)" for key in now if before.get(key) != now[key]]
    if changed:
        raise UserError(
            f"{run} holds a run with another {changed[0]}; give another output, or remove this folder to start again"
        )


def _start_checksum(description: Mapping[str, Any]) -> str | None:
    return description.get("start", {}).get("sha256")


def _judge_checksums(description: Mapping[str, Any]) -> dict[str, str | None]:
    return {key: judge.get("sha256") for key, judge in description.get("judges", {}).items()}


def _with_defaults(values: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Add the defaults of keys that did not exist when the run was started."""
    try:
        return model.model_validate(values).model_dump(mode="json")
    except ValidationError:  # another task, or a value that was valid then
        return values


def _differences(old: dict[str, Any], new: dict[str, Any], place: str = "") -> list[str]:
    """Return the names of the values that differ, with both values."""
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
