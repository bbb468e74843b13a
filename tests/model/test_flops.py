"""Counted operations against torch's own counter on real forward and backward passes."""

import itertools

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dimvl.config import FreezeConfig
from dimvl.cpu.linear import FLOP_FORMULAS, Linear
from dimvl.model.embeddings import TIME
from dimvl.model.flops import Flops, flops_by_part
from dimvl.model.work import Work
from tests.planning.runs import SPLITS, build
from tests.tiny_runs import make_data

MIXES = {
    "all": {},
    "masked_lm": {"masked_lm": 1, "seq2seq_lm": 0, "masked_object": 0, "matching": 0},
    "language": {"masked_lm": 1, "seq2seq_lm": 3, "masked_object": 0, "matching": 0},
    "regions": {"masked_lm": 0, "seq2seq_lm": 0, "masked_object": 2, "matching": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 12, empty=3)


def counted(task, batch):
    """Operations that torch counts, forward and in all; attention as two plain products."""
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as forward:
            losses = task(batch)
        with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as backward:
            sum(losses.values()).backward()
    return forward.get_total_flops(), backward.get_total_flops()


def total(parts):
    return sum(parts.values(), Flops())


def compare(task, batch):
    expected = total(flops_by_part(task.model, Work.of(batch, padded=True)))
    assert (expected.forward, expected.backward) == pytest.approx(counted(task, batch), rel=1e-12)
    return expected


@pytest.mark.parametrize(("split", "mix"), list(itertools.product(SPLITS, MIXES)))
def test_counted_operations_of_pretraining_equal_torchs_count(data, tmp_path, split, mix):
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
        ("pretrain", {"inputs": {"concepts": "both"}}),
        ("pretrain", {"objectives": {"shares": {"contrastive": 2}, "contrastive": {"group": 4}}}),
        ("retrieve", {}),
    ],
)
def test_counted_operations_of_every_task_equal_torchs_count(data, tmp_path, task, changes):
    compare(*build(data, tmp_path, task, **changes))


def test_the_projection_of_times_is_counted_too(data, tmp_path):
    task, batch = build(data, tmp_path)
    task.model.regions.time = Linear(TIME, 16, bias=False)
    compare(task, batch)


@pytest.mark.parametrize("frozen", [{"embeddings": True}, {"layers": 1}, {"embeddings": True, "layers": 1}])
def test_gradients_of_frozen_weights_are_not_counted(data, tmp_path, frozen):
    inputs = {"concepts": "region"}
    task, batch = build(data, tmp_path, frozen=FreezeConfig(**frozen), inputs=inputs)
    whole = total(flops_by_part(build(data, tmp_path, inputs=inputs)[0].model, Work.of(batch, padded=True)))
    assert compare(task, batch).total < whole.total
