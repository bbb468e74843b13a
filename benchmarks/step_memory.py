"""Peak memory of real optimiser steps against the plan: resident memory on a processor, allocated memory on a GPU.

    python -m benchmarks.step_memory --out benchmarks/results/step_memory.json
    python -m benchmarks.step_memory --device cuda --layers 12 --rows 8192 --out benchmarks/results/step_memory_gpu.json

Pretraining on synthetic images (36 regions x 2048, captions of 12 words, BERT's number of tokens), each variant in a
process of its own: two steps to make the optimiser's state, then the peak over a third. The plan is that of
`dimvl plan` for the same work, counted for the device; the figures are above those of the process before the model was
made. With `--device cuda` the peak is `torch.cuda.max_memory_allocated`, and DeepSpeed's stages on one GPU are measured
too where it is installed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

from benchmarks.epoch import write_real_regions
from dimvl.config import PretrainConfig
from dimvl.data.sampler import TrainingSteps
from dimvl.data.tokenizer import SPECIAL
from dimvl.files import write_json
from dimvl.planning.memory import (
    Numbers,
    arithmetic_of,
    batch_bytes,
    passing_bytes,
    saved_bytes,
    torch_state_bytes,
    zero_state_bytes,
)
from dimvl.planning.work import Work
from dimvl.regions.store import RegionStore
from dimvl.training.build import build_task, read_annotations
from dimvl.training.ranks import open_ranks
from dimvl.training.run import _engine

IMAGES, WORDS, VOCABULARY = 400, 12, 30_522


def write_data(folder: Path) -> None:
    """Write regions, captions and a tokenizer of `VOCABULARY` made-up words."""
    write_real_regions(folder / "regions", IMAGES)
    words = [f"w{number}" for number in range(VOCABULARY - len(SPECIAL))]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(list(SPECIAL))
    inner.save(str(folder / "tokenizer.json"))
    drawn = np.random.default_rng(0).integers(0, len(words), (IMAGES, WORDS))
    captions = [
        {"id": number, "image_id": f"{number:012}", "caption": " ".join(words[word] for word in row)}
        for number, row in enumerate(drawn)
    ]
    write_json(folder / "captions.json", {"annotations": captions}, indent=None)


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


def planned_bytes(model: Any, work: Work, config: PretrainConfig, gpu: bool) -> float:
    """Peak that the plan expects."""
    stage = 0 if config.deepspeed is None else config.deepspeed.stage
    arithmetic = arithmetic_of(config.training.precision, stage)
    total = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    if config.deepspeed is None:
        states = torch_state_bytes(total, total, 0)
    else:
        states = zero_state_bytes(total, total, 0, arithmetic=arithmetic, stage=stage, ranks=1)
    numbers = Numbers(arithmetic=arithmetic, gpu=gpu, dropout=True, recompute=config.training.checkpoint_activations)
    activations = sum(saved_bytes(model, work, numbers).values()) + passing_bytes(model, work, numbers)
    fixed = states.weights + states.gradients + states.optimizer + states.buffers
    return fixed + activations + batch_bytes(model, work, feature=2)


def resident() -> dict[str, int]:
    """Resident memory of this process, now and at its highest, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"now": values["VmRSS"], "peak": values["VmHWM"]}


def measure(folder: Path, variant: dict[str, Any]) -> dict[str, float]:
    """Run three steps and compare the third one's peak with the plan: GB."""
    config, gpu = make_config(folder, variant), variant["device"] == "cuda"
    store = RegionStore(config.regions)
    with open_ranks(config) as ranks:
        torch.zeros(1, device=variant["device"])
        before = torch.cuda.memory_allocated() if gpu else resident()["now"]
        torch.manual_seed(0)
        task, source = build_task(config, store, *read_annotations(config, store))
        engine = _engine(config, task, ranks)
        rows = config.training.rows_per_step
        steps = TrainingSteps(source, task.shape, seed=0, steps=3, rows_per_step=rows, rows_per_micro_batch=rows)
        for number in range(3):
            (batch,) = steps[number].micro_batches
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            loss = sum(loss / max(1, len(batch.sources)) for loss in engine.losses(batch).values())
            engine.backward(loss, is_last=True)
            engine.step()
            del loss
        peak = torch.cuda.max_memory_allocated() if gpu else resident()["peak"]
        work = replace(Work.of(batch, padded=not gpu or config.training.precision == "fp32"))
        planned = planned_bytes(engine.task.model, work, config, gpu)
        measured = float(peak - before)
        return {"planned_gb": planned / 1e9, "measured_gb": measured / 1e9, "planned_over_measured": planned / measured}


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


def main() -> None:
    """Measure every variant and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--variant", nargs=2, metavar=("FOLDER", "JSON"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(Path(options.variant[0]), json.loads(options.variant[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        results = {}
        for variant in variants(options.device, options.layers, options.rows):
            command = [sys.executable, "-m", "benchmarks.step_memory", "--variant", folder, json.dumps(variant)]
            # What is freed goes back at once, else resident memory also has what the C library keeps for later.
            own = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=own)
            results[variant["name"]] = json.loads(done.stdout.splitlines()[-1])
    hardware = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()}-core {platform.machine()}"
    )
    result = {
        "command": " ".join(["python -m benchmarks.step_memory", *sys.argv[1:]]),
        "date": str(date.today()),
        "hardware": hardware,
        "torch": torch.__version__,
        "model": f"{options.layers} layers x 768, {options.rows} rows",
        "variants": results,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
