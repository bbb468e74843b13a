"""Committed loss curves of every task: what a change that should not change results must not change.

    python -m tests.golden_curves      # after an intended change of results: rewrites the file

A curve holds data order, masks, negatives, dropout, forward pass, losses, optimiser and schedule together. The first
weights are drawn here, so that tuning their initialisation does not move it.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from dimvl.data.sampler import TrainingSteps
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.training.build import build_task
from dimvl.training.engine import TorchEngine
from dimvl.training.loop import train
from tests.tiny_runs import TinyData, make_config, make_data

FILE = Path(__file__).parent / "golden_curves.json"
MODEL = {"layers": 2, "split": ["qkv", "ffn"]}
CURVES = {  # name -> task, what is changed in its configuration
    "pretrain": ("pretrain", {"training": {"steps": 30}}),
    "pretrain, Muon": ("pretrain", {"training": {"steps": 10, "muon_rate": 1e-3}}),
    "pretrain, shared prefix": ("pretrain", {"training": {"steps": 10}, "objectives": {"shared_prefix": True}}),
    "vqa": ("vqa", {"training": {"steps": 10}}),
    "caption": ("caption", {"training": {"steps": 10}}),
    "concepts in regions": (
        "pretrain",
        {"training": {"steps": 10}, "inputs": {"concepts": "both", "concept_dropout": 0.3}},
    ),
}


def curve(name: str, data: TinyData, folder: Path, precision: str = "fp32") -> list[float]:
    """Loss of each step."""
    task_name, changes = CURVES[name]
    training = {"warmup_steps": 4, "learning_rate": 1e-3, "precision": precision, **changes["training"]}
    config = make_config(data, folder, task_name, model=MODEL, **{**changes, "training": training})
    store = RegionStore(config.regions)
    task, source = build_task(config, store, task_of(config).read(config, store))
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in task.parameters():
            drawn = generator.normal(scale=0.25, size=parameter.shape)
            parameter.copy_(torch.from_numpy(drawn) + (parameter.ndim == 1))
    settings = config.training
    budgets = {"rows_per_step": settings.rows_per_step, "rows_per_micro_batch": settings.rows_per_micro_batch}
    steps = TrainingSteps(source, task.shape, seed=config.seed, steps=settings.steps, **budgets)
    train(TorchEngine(task, settings), steps, config, folder)
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def main() -> None:
    """Rewrite the file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", 8, empty=3)
        curves = {name: curve(name, data, Path(folder) / str(place)) for place, name in enumerate(CURVES)}
    lines = [f'"{name}": {[round(loss, 6) for loss in losses]}' for name, losses in curves.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
