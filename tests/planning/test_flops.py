"""Counted operations against torch's own counter on real forward and backward passes."""

import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dimvl.config import FreezeConfig
from dimvl.data.documents import collate
from dimvl.model.model import DimvlModel
from dimvl.planning.flops import Flops, flops_by_part
from dimvl.planning.work import AttentionWork, Work
from dimvl.regions.store import RegionStore
from dimvl.training.optimiser import freeze
from dimvl.training.run import _build, _read_annotations
from tests.tiny_runs import make_config, make_data

SPLITS = [[], ["qkv"], ["qkv", "out", "norm", "ffn"]]
MIXES = {
    "all": {},
    "masked_lm": {"masked_lm": 1, "seq2seq_lm": 0, "masked_object": 0, "matching": 0},
    "language": {"masked_lm": 1, "seq2seq_lm": 3, "masked_object": 0, "matching": 0},
    "regions": {"masked_lm": 0, "seq2seq_lm": 0, "masked_object": 2, "matching": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 12, empty=3)


def build(data, output, task="pretrain", frozen=None, **changes):
    """A task and a batch of all its documents."""
    torch.manual_seed(0)
    config = make_config(data, output, task, model={"layers": 2, "dropout": 0, **changes.pop("model", {})}, **changes)
    task, source = _build(config, RegionStore(config.regions), *_read_annotations(config, RegionStore(config.regions)))
    if frozen is not None:
        freeze(task.model, frozen)
    batch = collate([source.build(0, index) for index in range(len(source))], task.shape)
    return task, batch


def counted(task, batch):
    """Operations that torch counts, forward and in all; attention as two plain products."""
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            losses = task(batch)
        with FlopCounterMode(display=False) as backward:
            sum(losses.values()).backward()
    return forward.get_total_flops(), backward.get_total_flops()


def total(parts):
    return sum(parts.values(), Flops())


def compare(task, batch):
    expected = total(flops_by_part(task.model, Work.of(batch, padded=True)))
    assert (expected.forward, expected.backward) == pytest.approx(counted(task, batch), rel=1e-12)
    return expected


@pytest.mark.parametrize(("split", "mix"), list(itertools.product(SPLITS, MIXES)))
def test_pretraining_takes_exactly_the_operations_that_torch_counts(data, tmp_path, split, mix):
    changes = {"objectives": {"shares": MIXES[mix]}} if MIXES[mix] else {}
    compare(*build(data, tmp_path, model={"split": split}, **changes))


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("vqa", {}),
        ("vqa", {"shared_prefix": True}),
        ("caption", {}),
        ("caption", {"seq2seq": {"captions": 2, "variant": "masked"}}),
        ("pretrain", {"objectives": {"shared_prefix": True}}),
    ],
)
def test_every_task_takes_exactly_the_operations_that_torch_counts(data, tmp_path, task, changes):
    compare(*build(data, tmp_path, task, **changes))


@pytest.mark.parametrize("frozen", [{"embeddings": True}, {"layers": 1}, {"embeddings": True, "layers": 1}])
def test_what_is_frozen_takes_no_gradient_and_is_not_counted(data, tmp_path, frozen):
    task, batch = build(data, tmp_path, frozen=FreezeConfig(**frozen))
    whole = total(flops_by_part(build(data, tmp_path)[0].model, Work.of(batch, padded=True)))
    assert compare(task, batch).total < whole.total
