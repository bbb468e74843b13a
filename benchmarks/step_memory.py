"""Optimiser steps of each engine: peak memory against the plan, and on a GPU examples per second.

    python -m benchmarks step_memory
    python -m benchmarks step_memory --device cuda

Pretraining on synthetic images (captions of 12 words, BERT's number of tokens), each variant in its own process: two
steps create the optimiser's state, then the peak over a third is measured, above the process before the model was made.
The plan is that of `dimvl plan` for the same work and device. On a CPU, 4 layers and 2,048 rows, and resident memory.
With `--device cuda`, 12 layers and 16,384 rows, and `torch.cuda.max_memory_allocated`; DeepSpeed's stages on one GPU
are measured too where it is installed, and ten further steps are timed, each from the batch in pinned memory to the
update.
"""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.data import REGIONS, run_config, write_run_data
from benchmarks.harness import in_fresh_process, interleaved, memory
from dimvl.data.batch import Batch
from dimvl.data.sampler import TrainingSteps
from dimvl.model.work import Work
from dimvl.planning.data import DataOverrides, gather
from dimvl.planning.plan import meta_model, stage_memory
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.tasks.pretraining.config import PretrainConfig
from dimvl.training import engine as engines
from dimvl.training.build import build_task
from dimvl.training.deepspeed_engine import checked_options
from dimvl.training.engine import Engine
from dimvl.training.ranks import open_ranks
from dimvl.training.run import _engine

STEPS = 10


def make_config(folder: Path, variant: dict[str, Any]) -> PretrainConfig:
    """Make the configuration of one variant."""
    training = {name: variant[name] for name in ("precision", "device", "checkpoint_activations")}
    training |= {"steps": 3, "rows_per_step": variant["rows"], "rows_per_micro_batch": variant["rows"]}
    deepspeed = None if variant["stage"] is None else {"stage": variant["stage"]}
    sections = {"model": {"layers": variant["layers"], "dropout": 0.1}, "training": training, "deepspeed": deepspeed}
    return PretrainConfig.model_validate(run_config(folder, variant["name"], **sections))


def measure(folder: Path, variant: dict[str, Any]) -> dict[str, float]:
    """Run three steps and compare the third one's peak with the plan, in GB; on a GPU, time further steps."""
    config, gpu = make_config(folder, variant), variant["device"] == "cuda"
    store = RegionStore(config.regions)
    with open_ranks(config) as ranks:
        torch.zeros(1, device=variant["device"])
        before = torch.cuda.memory_allocated() if gpu else memory()["resident"]
        torch.manual_seed(0)
        engines.keep_freed_memory = lambda: None
        task, source = build_task(config, store, task_of(config).read(config, store))
        section, training = config.deepspeed, config.training
        options = {} if section is None else checked_options(training, section, ranks.size)
        engine = _engine(config, task, options, ranks)
        rows = training.rows_per_step
        steps = TrainingSteps(source, task.shape, seed=0, steps=3, rows_per_step=rows, rows_per_micro_batch=rows)
        for number in range(3):
            (batch,) = steps[number].micro_batches
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            train(engine, batch)
        measured = float((torch.cuda.max_memory_allocated() if gpu else memory()["peak"]) - before)
        work = Work.of(batch, padded=not gpu or training.precision == "fp32")
        kind, stage = ("torch", 0) if section is None else ("deepspeed", section.stage)
        model = meta_model(config, gather(config, DataOverrides()))
        planned = stage_memory(model, config, work, engine=kind, stage=stage, gpu=gpu).total
        found = {"planned_gb": planned / 1e9, "measured_gb": measured / 1e9}
        found["planned_over_measured"] = planned / measured
        if gpu:
            batch = batch.pin_memory()
            seconds = interleaved({"step": lambda: train(engine, batch)}, STEPS, "cuda")["step"]
            found["examples_per_second"] = len(batch.sources) / float(np.median(seconds))
        return found


def train(engine: Engine, batch: Batch) -> None:
    """Do one optimiser step."""
    engine.backward(sum(loss / max(1, len(batch.sources)) for loss in engine.losses(batch).values()), is_last=True)
    engine.step()


def variants(device: str, layers: int, rows: int) -> Sequence[dict[str, Any]]:
    """All variants of a device."""
    common = {"device": device, "layers": layers, "rows": rows, "stage": None, "precision": "bf16"}
    common["checkpoint_activations"] = False
    found = [
        {**common, "name": "torch fp32", "precision": "fp32"},
        {**common, "name": "torch bf16"},
        {**common, "name": "torch bf16, activations checkpointed", "checkpoint_activations": True},
    ]
    if device == "cuda" and find_spec("deepspeed"):
        found += [{**common, "name": f"ZeRO {stage} bf16", "stage": stage} for stage in range(4)]
    return found


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Measure every variant once; `rounds` has no effect."""
    layers, rows = (1, 256) if small else (12, 16_384) if device == "cuda" else (4, 2048)
    write_run_data(folder, images=3 * rows // REGIONS)
    # New processes return freed memory at once: otherwise resident memory includes what the C library keeps for later.
    # `measure` therefore also skips the setting with which training keeps it.
    returned = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
    results = {}
    with patch.dict(os.environ, returned):
        for variant in variants(device, layers, rows):
            results[variant["name"]] = found = in_fresh_process(measure, folder, variant)
            print(variant["name"], found, file=sys.stderr, flush=True)
    return {"model": f"{layers} layers x 768, {rows} rows", "variants": results}
