"""Bytes per weight that DeepSpeed holds, by stage, over all live tensors: what `dimvl/planning/memory.py` counts.

    python -m benchmarks zero_memory

Every stage and precision runs on two new ranks, with 16 linear layers of 256 x 256 without bias and two micro-batches
per step. DeepSpeed's JSON is what `dimvl` writes, except that buckets are an eighth of the weights and stage 3 leaves
no weight whole. Reported are bytes per weight right after the third step's last backward pass, which is the peak, and
after the step.
"""

import gc
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dimvl.config import DeepSpeedConfig, TrainingConfig
from dimvl.training.deepspeed_engine import _deepspeed
from dimvl.training.deepspeed_options import deepspeed_options

LAYERS, WIDTH, RANKS = 16, 256, 2
WEIGHTS = LAYERS * WIDTH * WIDTH


def alive() -> int:
    """Bytes of the storages of all tensors that Python knows, including gradients."""
    gc.collect()
    found = {}
    for item in gc.get_objects():
        if type(item) in (torch.Tensor, torch.nn.Parameter):
            for tensor in (item, item.grad if item.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Start two ranks for every stage and precision, once; `device` and `rounds` have no effect."""
    stages, precisions = ((2,), ("bf16",)) if small else (range(4), ("fp32", "bf16"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    found: dict[str, Any] = {}
    for stage, precision in [(stage, precision) for precision in precisions for stage in stages]:
        command = [*launch, "-m", "benchmarks.zero_memory", str(stage), precision]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        found[f"stage {stage} {precision}"] = json.loads(lines[-1])
    return {"ranks": RANKS, "bytes_a_weight": found}


def rank() -> None:
    """Take three steps as one rank; rank 0 prints the bytes per weight."""
    stage, precision = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo")
    deepspeed = _deepspeed()
    zero = {"reduce_bucket_size": WEIGHTS // 8} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    section = DeepSpeedConfig.model_validate({"stage": stage, "options": {"zero_optimization": zero}})
    training = TrainingConfig.model_validate({"steps": 3, "precision": precision, "device": "cpu"})
    options = deepspeed_options(training, section, dist.get_world_size())
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with redirect_stdout(io.StringIO()):
        engine = deepspeed.initialize(model=model, optimizer=optimiser, config=options, dist_init_required=False)[0]
    backward = 0
    for _ in range(3):
        for micro_batch in range(2):
            engine.set_gradient_accumulation_boundary(micro_batch == 1)
            rows = torch.randn(4, WIDTH)
            loss = engine(rows.bfloat16() if precision == "bf16" and stage else rows).float().square().mean()
            engine.backward(loss)
            del loss
            backward = alive()
        engine.step()
    if dist.get_rank() == 0:
        figures = {"after_backward": backward / WEIGHTS, "after_step": alive() / WEIGHTS}
        print(json.dumps(figures))
    dist.barrier()
    os._exit(0)  # without waiting for DeepSpeed's threads


if __name__ == "__main__":
    rank()
