"""Real tasks and batches to compare plans with."""

import torch

from dimvl.data.documents import collate, keyed_generator
from dimvl.data.sampler import global_steps
from dimvl.regions.store import RegionStore
from dimvl.training.build import build_task, read_annotations
from dimvl.training.optimiser import freeze
from tests.tiny_runs import make_config

SPLITS = [[], ["qkv"], ["qkv", "out", "norm", "ffn"]]


def build(data, output, task="pretrain", frozen=None, **changes):
    """Make a task and a batch of all its documents."""
    torch.manual_seed(0)
    config = make_config(data, output, task, model={"layers": 2, "dropout": 0, **changes.pop("model", {})}, **changes)
    store = RegionStore(config.regions)
    task, source = build_task(config, store, *read_annotations(config, store))
    if frozen is not None:
        freeze(task.model, frozen)
    batch = collate([source.build(0, index) for index in range(len(source))], task.shape)
    return task, batch


def all_batches(config, epochs, in_steps=False):
    """Make the batches of some epochs of a run that was begun, one an epoch or full step, and count their documents."""
    store = RegionStore(config.regions)
    task, source = build_task(config, store, *read_annotations(config, store))
    batches, documents = [], 0
    for epoch in range(epochs):
        costs = source.costs(epoch)
        order = keyed_generator(config.seed, "order", epoch)
        steps = global_steps(costs, config.training.rows_per_step, order)[:-1] if in_steps else [range(len(costs))]
        for step in steps:
            batches.append(collate([source.build(epoch, int(index)) for index in step], task.shape))
        documents += len(costs)
    return batches, documents
