"""Counted bytes against what autograd really keeps: unique storages that are saved for the backward pass."""

import dataclasses
import itertools

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from dimvl.config import TrainingConfig
from dimvl.planning.memory import Numbers, arithmetic_of, batch_bytes, saved_bytes, state_bytes
from dimvl.planning.work import Work
from dimvl.training.optimiser import build_optimiser
from tests.planning.runs import SPLITS, build
from tests.tiny_runs import make_data

# Beside what is counted, autograd keeps indices, labels and a few numbers per loss: under half a percent here.
TOLERANCE = 0.01
MODEL = {"layers": 3, "width": 64, "inner_width": 256, "heads": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 24, empty=3)


def tensors_of(batch):
    own = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    return own + [part for target in batch.targets.values() for part in target]


def kept_by_autograd(task, batch, autocast):
    """Bytes of all storages that are saved in a forward pass, but for weights and the batch, which are there anyway."""
    there = {tensor.untyped_storage().data_ptr() for tensor in [*task.parameters(), *tensors_of(batch)]}
    kept, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # else its place may be given away and be counted as another's
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = task(batch)
        total = sum(losses.values())
    assert total.requires_grad
    return sum(kept.values())


def cast(batch):
    """Inputs as an engine with bf16 weights takes them."""
    features, geometry = batch.region_features.bfloat16(), batch.region_geometry.bfloat16()
    return dataclasses.replace(batch, region_features=features, region_geometry=geometry)


@pytest.mark.parametrize("arithmetic", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize(("name", "split"), list(itertools.product(["pretrain", "vqa", "caption"], SPLITS)))
@pytest.mark.parametrize("dropout", [0, 0.1])
def test_activations_are_what_autograd_keeps(data, tmp_path, arithmetic, name, split, dropout):
    task, batch = build(data, tmp_path, name, model={**MODEL, "split": split, "dropout": dropout})
    if arithmetic == "bf16":
        task, batch = task.bfloat16(), cast(batch)
    numbers = Numbers(arithmetic=arithmetic, gpu=False, dropout=dropout > 0)
    counted = sum(saved_bytes(task.model, Work.of(batch, padded=True), numbers).values())
    assert counted == pytest.approx(kept_by_autograd(task, batch, arithmetic == "autocast"), rel=TOLERANCE)


@pytest.mark.parametrize("name", ["pretrain", "vqa"])
def test_a_batch_takes_the_bytes_of_its_tensors(data, tmp_path, name):
    task, batch = build(data, tmp_path, name)
    held = sum(tensor.nbytes for tensor in tensors_of(batch))
    assert batch_bytes(task.model, Work.of(batch, padded=True)) == pytest.approx(held, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("precision", "stage", "weights", "gradients", "optimizer"),
    [
        ("fp32", 0, 4 * 100, 4 * 80, 8 * 80),
        ("fp32", 1, 4 * 100, 4 * 80, 8 * 80 / 4),
        ("fp32", 2, 4 * 100, 4 * 80 / 4, 8 * 80 / 4),
        ("fp32", 3, 4 * 100 / 4, 4 * 80 / 4, 8 * 80 / 4),
        ("bf16", 0, 4 * 100, 4 * 80, 8 * 80),
        ("bf16", 1, 2 * 100, 2 * 80, 12 * 80 / 4),
        ("bf16", 2, 2 * 100, 2 * 80 / 4, 12 * 80 / 4),
        ("bf16", 3, 2 * 100 / 4, 2 * 80 / 4, 12 * 80 / 4),
    ],
)
def test_what_each_stage_divides_by_four_ranks(precision, stage, weights, gradients, optimizer):
    states = state_bytes(100, 80, 0, arithmetic=arithmetic_of(precision, stage), stage=stage, ranks=4)
    assert (states.weights, states.gradients, states.optimizer) == (weights, gradients, optimizer)


def test_what_muon_trains_has_one_moment(data, tmp_path):
    task, batch = build(data, tmp_path)
    muon = [p for name, p in task.model.named_parameters() if name.startswith("encoder.") and p.ndim > 1]
    total = sum(p.numel() for p in task.model.parameters())
    optimiser = build_optimiser(task.model, TrainingConfig(steps=1, muon_rate=0.01))
    sum(task(batch).values()).backward()
    optimiser.step()
    held = sum(v.nbytes for state in optimiser.state.values() for v in state.values() if v.ndim)
    states = state_bytes(total, total, sum(p.numel() for p in muon), arithmetic="fp32", stage=0, ranks=1)
    assert states.optimizer == held
