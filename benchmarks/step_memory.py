"""Optimiser steps of each engine: peak memory against the plan, and on a GPU examples a second.

    python -m benchmarks step_memory
    python -m benchmarks step_memory --device cuda

Pretraining on synthetic images (36 regions x 2048, captions of 12 words, BERT's number of tokens), each variant in a
process of its own: two steps to make the optimiser's state, then the peak over a third. The plan is that of
`dimvl plan` for the same work, counted for the device; the figures are above those of the process before the model was
made. On a processor 4 layers and 2,048 rows, and resident memory; with `--device cuda` 12 layers and 16,384 rows, the
peak is `torch.cuda.max_memory_allocated`, DeepSpeed's stages on one GPU are measured too where it is installed, and
ten further steps are timed between events, each from the batch in page-locked memory to the update.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

from benchmarks.epoch import write_real_regions
from benchmarks.harness import in_fresh_process, interleaved, memory
from dimvl.data.batch import Batch
from dimvl.data.sampler import TrainingSteps
from dimvl.data.tokenizer import SPECIAL
from dimvl.files import write_json
from dimvl.model.work import Work
from dimvl.planning.data import DataOverrides, gather
from dimvl.planning.plan import meta_model, stage_memory
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.tasks.pretraining import PretrainConfig
from dimvl.training import engine as engines
from dimvl.training.build import build_task
from dimvl.training.deepspeed_engine import checked_options
from dimvl.training.engine import Engine
from dimvl.training.ranks import open_ranks
from dimvl.training.run import _engine

REGIONS, WORDS, VOCABULARY, STEPS = 36, 12, 30_522, 10


def write_data(folder: Path, images: int, regions: int = REGIONS, captions: int = 1, length: int = WORDS) -> None:
    """Write regions, captions of a length and a tokenizer of `VOCABULARY` made-up words."""
    write_real_regions(folder / "regions", images, regions)
    words = [f"w{number}" for number in range(VOCABULARY - len(SPECIAL))]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(list(SPECIAL))
    inner.save(str(folder / "tokenizer.json"))
    drawn = np.random.default_rng(0).integers(0, len(words), (images * captions, length))
    texts = [
        {"id": number, "image_id": f"{number // captions:012}", "caption": " ".join(words[word] for word in row)}
        for number, row in enumerate(drawn)
    ]
    write_json(folder / "captions.json", {"annotations": texts}, indent=None)


def make_config(folder: Path, variant: dict[str, Any]) -> PretrainConfig:
    """Make the configuration of one variant."""
    return PretrainConfig.model_validate(
        {
            "output": folder / variant["name"],
            "regions": folder / "regions",
            "captions": folder / "captions.json",
            "inputs": {"tokenizer": folder / "tokenizer.json"},
            "model": {"layers": variant["layers"], "dropout": 0.1},
            "training": {
                "steps": 3,
                "rows_per_step": variant["rows"],
                "rows_per_micro_batch": variant["rows"],
                "precision": variant["precision"],
                "device": variant["device"],
                "checkpoint_activations": variant.get("recompute", False),
            },
            "deepspeed": None if variant["stage"] is None else {"stage": variant["stage"]},
        }
    )


def measure(folder: Path, variant: dict[str, Any]) -> dict[str, float]:
    """Run three steps and compare the third one's peak with the plan: GB. On a GPU time further ones."""
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
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            train(engine, batch)
        peak = torch.cuda.max_memory_allocated() if gpu else memory()["peak"]
        work = Work.of(batch, padded=not gpu or training.precision == "fp32")
        kind, stage = ("torch", 0) if section is None else ("deepspeed", section.stage)
        model = meta_model(config, gather(config, DataOverrides()))
        planned = stage_memory(model, config, work, engine=kind, stage=stage, gpu=gpu).total
        measured = float(peak - before)
        found = {
            "planned_gb": planned / 1e9,
            "measured_gb": measured / 1e9,
            "planned_over_measured": planned / measured,
        }
        if gpu:
            batch = batch.pin_memory()
            seconds = interleaved({"step": lambda: train(engine, batch)}, STEPS, "cuda")["step"]
            found["examples_per_second"] = len(batch.sources) / float(np.median(seconds))
        return found


def train(engine: Engine, batch: Batch) -> None:
    """Do one optimiser step."""
    loss = sum(loss / max(1, len(batch.sources)) for loss in engine.losses(batch).values())
    engine.backward(loss, is_last=True)
    engine.step()


def variants(device: str, layers: int, rows: int) -> Sequence[dict[str, Any]]:
    """All variants of a device."""
    common = {"device": device, "layers": layers, "rows": rows, "stage": None}
    found = [
        {**common, "name": "torch fp32", "precision": "fp32"},
        {**common, "name": "torch bf16", "precision": "bf16"},
        {**common, "name": "torch bf16, activations checkpointed", "precision": "bf16", "recompute": True},
    ]
    if device == "cuda" and find_spec("deepspeed"):
        for stage in range(4):
            found.append({**common, "name": f"ZeRO {stage} bf16", "precision": "bf16", "stage": stage})
    return found


@contextmanager
def freed_at_once() -> Iterator[None]:
    """What processes started now free goes back; else resident memory also has what the C library keeps for later.

    With `measure`, which leaves out that training tells it to keep everything.
    """
    before, names = dict(os.environ), ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    os.environ.update(dict.fromkeys(names, "65536"))
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name)
        os.environ.update(before)


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Measure every variant, once; `rounds` changes nothing here."""
    layers, rows = (1, 256) if small else (12, 16_384) if device == "cuda" else (4, 2048)
    with tempfile.TemporaryDirectory() as folder, freed_at_once():
        write_data(Path(folder), images=3 * rows // REGIONS)
        results = {}
        for variant in variants(device, layers, rows):
            results[variant["name"]] = found = in_fresh_process(measure, Path(folder), variant)
            print(variant["name"], found, file=sys.stderr, flush=True)
    return {"model": f"{layers} layers x 768, {rows} rows", "variants": results}
