"""Time by part, computed from events made by hand that look like a GPU's profile."""

from collections import namedtuple
from types import SimpleNamespace

import pytest

from dimvl.profiling.scopes import BACKWARD, MARK, OPTIMISER, SUMS
from dimvl.profiling.timeline import NODE, seconds_by_part

Kernel = namedtuple("Kernel", "duration")


class Events:
    """Collects events; their start times are their order."""

    def __init__(self):
        self.all = []

    def add(self, name, parent=None, *, spent=0, kernels=(), sequence=-1, thread=1, forward_thread=0, kind="CPU"):
        event = SimpleNamespace(
            id=len(self.all),
            name=name,
            cpu_parent=parent,
            self_cpu_time_total=spent,
            kernels=[Kernel(duration) for duration in kernels],
            sequence_nr=sequence,
            thread=thread,
            fwd_thread=forward_thread,
            device_type=SimpleNamespace(name=kind),
            is_user_annotation=name.startswith(MARK),
            time_range=SimpleNamespace(start=len(self.all), elapsed_us=lambda: spent),
        )
        self.all.append(event)
        return event


def mixed():
    events = Events()
    step = events.add(MARK + "other", spent=1)
    data = events.add(MARK + "data wait", step, spent=2)
    events.add("aten::stack", data, spent=3)
    qkv = events.add(MARK + "QKV", step, spent=4, kernels=[999])  # a mark lists what others launched
    events.add("aten::t", qkv, spent=5, sequence=70)
    linear = events.add("aten::linear", qkv, spent=6, sequence=71)
    events.add("aten::addmm", linear, spent=7, sequence=71, kernels=[100, 10])
    ffn = events.add(MARK + "FFN products", step, spent=8)
    events.add("aten::detach", ffn, spent=9, sequence=72)  # makes no node; the next one with this number does
    head = events.add(MARK + "head: words", step, spent=10)
    events.add("aten::addmm", head, spent=11, sequence=72, kernels=[20])
    other_thread = {"thread": 2, "forward_thread": 1}  # a GPU's backward pass has its own
    node = events.add(NODE + "AddmmBackward0", sequence=71, **other_thread, spent=12)
    events.add("aten::mm", node, spent=13, thread=2, kernels=[200, 30])
    events.add("aten::mm", events.add(NODE + "AddmmBackward0", sequence=72, **other_thread), kernels=[40], thread=2)
    sums = events.add(NODE + "torch::autograd::AccumulateGrad", **other_thread)
    events.add("aten::add_", sums, kernels=[50], thread=2)
    unknown = events.add(NODE + "Something", sequence=99, **other_thread)
    events.add("aten::mul", unknown, kernels=[60], thread=2)
    optimiser = events.add("Optimizer.step#AdamW.step", step, spent=14)
    events.add("aten::_fused_adamw_", optimiser, kernels=[70])
    events.add("aten::outside", spent=1000)  # outside any step
    return events


def microseconds(parts):
    return {name: (round(part.forward * 1e6), round(part.backward * 1e6)) for name, part in parts.items()}


def test_gpu_kernels_count_for_the_part_that_launched_them_or_is_differentiated():
    found = microseconds(seconds_by_part(mixed().all, cuda=True))
    assert {name: spent for name, spent in found.items() if any(spent)} == {
        "QKV": (110, 230),
        "head: words": (20, 40),
        SUMS: (0, 50),
        BACKWARD: (0, 60),
        OPTIMISER: (70, 0),
    }


def test_kernels_that_no_operation_launched_count_as_other():
    events = mixed()
    known = 110 + 230 + 20 + 40 + 50 + 60 + 70
    events.add("kernel", spent=known + 500, kind="CUDA")
    assert microseconds(seconds_by_part(events.all, cuda=True))["other"] == (500, 0)


def test_on_a_cpu_each_moment_counts_for_the_innermost_mark():
    found = microseconds(seconds_by_part(mixed().all, cuda=False))
    assert found["data wait"] == (5, 0) and found["QKV"] == (4 + 5 + 6 + 7, 12 + 13)
    assert found["FFN products"] == (17, 0) and found["head: words"] == (21, 0) and found["other"] == (1, 0)


def test_recomputation_inside_a_backward_node_is_backward_time_of_its_own_part():
    events = Events()
    step = events.add(MARK + "other")
    first = events.add(MARK + "norms", step)
    events.add("aten::layer_norm", first, sequence=5, spent=1)
    node = events.add(NODE + "NativeLayerNormBackward0", step, sequence=5, forward_thread=1, spent=10)
    again = events.add(MARK + "FFN products", node, spent=100)
    events.add("aten::addmm", again, sequence=5, spent=1000)  # numbered in backward: not what the node differentiates
    found = microseconds(seconds_by_part(events.all, cuda=False))
    assert found["norms"] == (1, 10) and found["FFN products"] == (0, 1100)


@pytest.mark.parametrize("cuda", [False, True])
def test_no_events_give_no_time(cuda):
    assert sum(part.total for part in seconds_by_part([], cuda).values()) == 0
