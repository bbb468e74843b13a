"""A plan in words and columns, and as plain values for JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from dimvl.planning.plan import FREE_SHARE, Plan

GB = 1e9
FORMULAE = (
    "bytes a parameter, weights + gradients + optimizer: 4 + 4 + 8 in fp32 and by autocast (torch, stage 0); stages 1 "
    "to 3 have fp32 masters, 12 over the GPUs, and in bf16 weights of 2, with gradients of 6 at stage 1; gradients are "
    "4 over the GPUs at stages 2 and 3, weights over the GPUs at 3; buffers hold gradients to reduce, at 3 gathered "
    "weights too",
    "activations are those of one micro-batch; see dimvl/planning/memory.py for what a block keeps",
    "sent: 2 x 4 P at stage 0, + w P at 1, 2 m x 4 P + w P at 2, m x 4 P + 2 m w P at 3, times (N - 1) / N; P trained "
    "parameters, weights of w bytes, m micro-batches, N GPUs",
    "arithmetic: 2 x rows x inputs x outputs of every product, attention 4 x pairs x width a layer, backward twice "
    "that where all learns; heads on rows with a target; a shared prefix counts once",
)


def describe(plan: Plan) -> Iterator[str]:
    """Lines for a terminal."""
    yield from _parameters(plan)
    yield ""
    yield from _step(plan)
    yield ""
    yield from _memory(plan)
    yield ""
    yield from _rates(plan)
    yield ""
    for title, sentences in (("assumed", plan.facts.assumed), ("formulae", FORMULAE)):
        if sentences:
            yield f"{title}:"
            yield from (f"  {sentence}" for sentence in sentences)


def _parameters(plan: Plan) -> Iterator[str]:
    total = sum(plan.parameters.values())
    learning = "" if plan.trained == total else f", {plan.trained / 1e6:.1f} M of them trained"
    yield f"parameters: {total / 1e6:.1f} M{learning}"
    yield from _columns([(name, f"{count / 1e6:.2f} M") for name, count in plan.parameters.items()])


def _step(plan: Plan) -> Iterator[str]:
    step, flops = plan.step, plan.flops_per_step
    yield (
        f"a step of {plan.cluster.gpus} GPUs: {step.examples:,.0f} examples, {step.work.rows:,.0f} rows "
        f"({step.work.vision:,.0f} of regions); on each GPU {step.micro_batches} x {step.micro_batch.rows:,.0f} rows"
    )
    yield (
        f"arithmetic: {flops / 1e12:,.1f} TFLOP a step, {flops / step.examples / 1e9:,.1f} GFLOP an example, forward "
        f"{sum(part.forward for part in plan.flops.values()) / flops:.0%}"
    )
    yield from _columns([(name, f"{part.total / flops:.1%}") for name, part in plan.flops.items()])


def _memory(plan: Plan) -> Iterator[str]:
    yield f"memory of one GPU in GB, {plan.precision}:"
    parts = ("weights", "gradients", "optimizer", "buffers", "activations", "batch", "total", "sent")
    rows: list[tuple[str, ...]] = [("", *parts[:-1], "sent a step", "")]
    for memory in plan.memory:
        name = "torch" if memory.engine == "torch" else f"ZeRO {memory.stage}"
        numbers = [f"{getattr(memory, part) / GB:.2f}" for part in parts]
        rows.append((name, *numbers, "fits" if memory.fits else "does not fit"))
    yield from _columns(rows)
    room = f"{plan.cluster.gpu_memory:g} GB less {FREE_SHARE:.0%} for CUDA and gaps"
    best = plan.fitting
    if best is None:
        yield f"nothing fits in {room}: lower training.rows_per_micro_batch, or offload"
    elif best.engine == "torch":
        yield f"fits in {room} without DeepSpeed"
    else:
        yield f"fits in {room} from stage {best.stage} on, where it says so; lower stages send less"
    if plan.configured is not None:
        fits = next(m.fits for m in plan.memory if m.engine == "deepspeed" and m.stage == plan.configured)
        yield f"the configuration has deepspeed.stage {plan.configured}, which {'fits' if fits else 'does not fit'}"
    elif plan.cluster.gpus > 1:
        yield f"the configuration has no section deepspeed; {plan.cluster.gpus} GPUs need one"


def _rates(plan: Plan) -> Iterator[str]:
    cluster, seconds = plan.cluster, plan.seconds
    yield (
        f"time: {seconds * 1e3:,.1f} ms of arithmetic a step at {cluster.utilisation:.0%} of "
        f"{plan.peak:g} TFLOP/s a GPU (assumed), {plan.examples_per_second:,.0f} examples/s; "
        f"{plan.steps:,} steps {plan.steps * seconds / 3600:,.1f} hours"
        + ("" if plan.epochs is None else f", {plan.epochs:,.1f} epochs of {plan.facts.images:,} images")
    )
    if cluster.gpus > 1:
        ways = [memory for memory in plan.memory if memory.engine == "deepspeed"]
        times = ", ".join(f"stage {m.stage} {m.sent / plan.network * 1e3:,.1f} ms" for m in ways)
        yield f"network: {times} a step at {plan.network / GB:g} GB/s (assumed), partly beside the arithmetic"
    for dtype, size in plan.image_bytes.items():
        rate = size * plan.examples_per_second
        disk = "" if plan.store_bytes is None else f"; on disk {plan.store_bytes[dtype] / GB:,.0f} GB"
        yield (
            f"regions as {dtype}: {size / 1e3:,.0f} kB an image, {rate / cluster.gpus / GB:,.2f} GB/s a GPU, "
            f"{rate / GB:,.1f} GB/s in all{disk}"
        )


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of right-aligned columns, the first one left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join(["  " + f"{first:<{widths[0]}}", *cells]).rstrip()


def as_values(plan: Plan) -> dict[str, Any]:
    """Everything in a plan as plain values: bytes, operations, seconds."""
    values = asdict(plan)
    for name in ("memory", "flops"):
        own = getattr(plan, name)
        parts = own if name == "memory" else own.values()
        places = values[name] if name == "memory" else values[name].values()
        for part, place in zip(parts, places, strict=True):
            place["total"] = part.total
    best = plan.fitting
    return values | {
        "flops_per_step": plan.flops_per_step,
        "examples_per_second": plan.examples_per_second,
        "network_bytes_per_second": plan.network,
        "peak_tflops": plan.peak,
        "store_bytes_per_second": {dtype: size * plan.examples_per_second for dtype, size in plan.image_bytes.items()},
        "fits": None if best is None else {"engine": best.engine, "stage": best.stage},
    }
