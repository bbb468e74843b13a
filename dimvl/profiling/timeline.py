"""Time by part of the step, from the events of torch's profiler.

On a CPU every moment of the marked steps belongs to the innermost running event, so the parts sum to the steps by
construction. On CUDA the time of kernels counts, each for the operation that launched it; the rest of the steps is idle
time.

An event belongs to the part of the innermost mark around it. Backward operations run outside all marks. Autograd gives
each differentiable operation a sequence number, unique per thread, which its backward operation carries too; so the
latter belongs to the part of the former. Summing gradients, over micro-batches or for shared weights, belongs to none.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dimvl.profiling.scopes import BACKWARD, MARK, OPTIMISER, STEP, SUMS

NODE = "autograd::engine::evaluate_function: "
OWN_MARKS = ("Optimizer.step#", "Optimizer.zero_grad#")  # set by torch


@dataclass
class Seconds:
    """Seconds of a part; `backward` includes recomputation for the gradient."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


Place = tuple[str | None, bool]  # part (None outside all steps), and whether in the backward pass


def seconds_by_part(events: Iterable[Any], cuda: bool) -> dict[str, Seconds]:
    """Assign the time of the profiled steps to parts.

    Args:
        events: the result of `torch.profiler.profile.events()`.
        cuda: count GPU kernels instead of CPU time.

    """
    every = list(events)
    on_cpu = [event for event in every if event.device_type.name == "CPU"]
    parts: dict[str, Seconds] = defaultdict(Seconds)
    for event, (part, backward) in zip(on_cpu, _places(on_cpu), strict=True):
        if part is None:
            continue
        spent = _kernel_seconds(event) if cuda else event.self_cpu_time_total / 1e6
        if backward:
            parts[part].backward += spent
        else:
            parts[part].forward += spent
    if cuda:  # kernels that no operation launched, such as those of a graph
        known = sum(seconds.total for seconds in parts.values())
        kernels = [event for event in every if event.device_type.name == "CUDA" and not event.is_user_annotation]
        parts[STEP].forward += max(0.0, sum(event.time_range.elapsed_us() for event in kernels) / 1e6 - known)
    return dict(parts)


def _kernel_seconds(event: Any) -> float:
    """Seconds of the kernels that an operation launched; a mark lists kernels but launches none."""
    return 0.0 if event.is_user_annotation else sum(kernel.duration for kernel in event.kernels) / 1e6


def _places(events: list[Any]) -> list[Place]:
    """Place of each CPU event."""
    forward: dict[int, Place] = {}
    made: dict[tuple[int, int], str | None] = {}
    for event in sorted(events, key=lambda event: event.time_range.start):
        part, backward = _place(event, forward, {})
        if event.sequence_nr >= 0 and not event.name.startswith(NODE) and not backward:
            made[event.thread, event.sequence_nr] = part  # several events may see a number; the last one uses it
    places: dict[int, Place] = {}
    return [_place(event, places, made) for event in events]


def _place(event: Any, places: dict[int, Place], made: Mapping[tuple[int, int], str | None]) -> Place:
    if event.id in places:
        return places[event.id]
    part, backward = (None, False) if event.cpu_parent is None else _place(event.cpu_parent, places, made)
    if event.name.startswith(MARK):
        part = event.name.removeprefix(MARK)
    elif event.name.startswith(OWN_MARKS):
        part = OPTIMISER
    elif event.name.startswith(NODE):
        number = event.fwd_thread, event.sequence_nr
        part, backward = SUMS if "AccumulateGrad" in event.name else made.get(number) or BACKWARD, True
    places[event.id] = part, backward
    return places[event.id]
