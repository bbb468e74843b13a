"""Real tasks and batches to compare plans with."""

import numpy as np
import torch

from dimvl.data.epoch_plan import plan_epoch
from dimvl.data.examples import collate
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.training.build import build_task
from dimvl.training.optimiser import freeze
from tests.tiny_runs import make_config

SPLITS = [[], ["qkv"], ["qkv", "out", "norm", "ffn"]]


def build(data, output, task="pretrain", frozen=None, **changes):
    """Make a task and a batch of all its examples."""
    torch.manual_seed(0)
    config = make_config(data, output, task, model={"layers": 2, "dropout": 0, **changes.pop("model", {})}, **changes)
    store = RegionStore(config.regions)
    task, source = build_task(config, store, task_of(config).read(config, store))
    if frozen is not None:
        freeze(task.model, frozen)
    batch = collate(source.build_all(0, np.arange(len(source))), task.shape)
    return task, batch


def all_batches(config, epochs, in_steps=False):
    """Make the batches of some epochs of a started run, one per epoch or full step, and count their examples."""
    store = RegionStore(config.regions)
    task, source = build_task(config, store, task_of(config).read(config, store))
    batches, examples = [], 0
    for epoch in range(epochs):
        steps = [range(len(source))]
        if in_steps:
            plan = plan_epoch(source, epoch, config.seed, config.training.rows_per_step)
            steps = [plan.step(number)[0] for number in range(len(plan) - 1)]
        for step in steps:
            batches.append(collate(source.build_all(epoch, np.array(step)), task.shape))
        examples += len(source)
    return batches, examples
