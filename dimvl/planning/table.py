"""A plan as text for a terminal, and as plain values for JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from dimvl.planning.cpu import CpuEstimate
from dimvl.planning.plan import FREE_SHARE, Plan

GB = 1e9
FORMULAE = (
    "bytes per parameter, weights + gradients + optimiser: 4 + 4 + 8 in fp32 and under autocast (torch, stage 0). "
    "Stages 1 to 3 divide 12 (fp32 masters and states) by N; in bf16, weights take 2 and stage 1's gradients 6. "
    "Gradients take 4 / N at stages 2 and 3; stage 3 also divides weights by N. Buffers hold gradients to reduce, and "
    "at stage 3 gathered weights",
    "activations are those of one micro-batch",
    "operations: 2 x rows x inputs x outputs per matrix product, attention 4 x pairs x width per layer, backward twice "
    "as many if everything is trained; heads run on rows with a target; a shared prefix counts once",
)


def describe(plan: Plan, cpu: CpuEstimate | None = None) -> Iterator[str]:
    """Yield lines for a terminal; `cpu` is the estimate for this machine's CPU, if any."""
    yield from _parameters(plan)
    yield ""
    yield from _step(plan)
    yield ""
    yield from _memory(plan)
    yield ""
    yield from _rates(plan)
    if cpu is not None:
        yield (
            f"on this CPU instead: about {_duration(plan.steps * cpu.seconds)}, {cpu.seconds:,.2f} s per step "
            f"(threads: {cpu.threads}; {cpu.gflops:,.0f} GFLOP/s measured on one block of the encoder)"
        )
    yield ""
    for title, sentences in (("assumed", plan.facts.assumed), ("formulae", FORMULAE)):
        if sentences:
            yield f"{title}:"
            yield from (f"  {sentence}" for sentence in sentences)


def _parameters(plan: Plan) -> Iterator[str]:
    total = sum(plan.parameters.values())
    learning = "" if plan.trained == total else f", {plan.trained / 1e6:.2f} M of them trained"
    yield f"parameters: {total / 1e6:.1f} M{learning}"
    yield from _columns([(name, f"{count / 1e6:.2f} M") for name, count in plan.parameters.items()])


def _step(plan: Plan) -> Iterator[str]:
    step, flops = plan.step, plan.flops_per_step
    yield (
        f"step on {plan.cluster.gpus} GPUs: {step.examples:,.0f} examples, {step.work.rows:,.0f} rows "
        f"({step.work.vision:,.0f} of regions); per GPU {step.micro_batches} x {step.micro_batch.rows:,.0f} rows"
    )
    yield (
        f"compute: {flops / 1e12:,.1f} TFLOP per step, {flops / step.examples / 1e9:,.1f} GFLOP per example, forward "
        f"{sum(part.forward for part in plan.flops.values()) / flops:.0%}"
    )
    yield from _columns([(name, f"{part.total / flops:.1%}") for name, part in plan.flops.items()])


def _memory(plan: Plan) -> Iterator[str]:
    yield f"memory per GPU in GB, {plan.precision}:"
    parts = ("weights", "gradients", "optimiser", "buffers", "activations", "batch", "total")
    rows: list[tuple[str, ...]] = [("", *parts, "")]
    for memory in plan.memory:
        name = "torch" if memory.engine == "torch" else f"ZeRO {memory.stage}"
        numbers = [f"{getattr(memory, part) / GB:.2f}" for part in parts]
        rows.append((name, *numbers, "fits" if memory.fits else "does not fit"))
    yield from _columns(rows)
    room = f"{plan.cluster.gpu_memory:g} GB, minus {FREE_SHARE:.0%} for CUDA and fragmentation"
    best = plan.fitting
    if best is None:
        yield f"nothing fits in {room}; lower training.rows_per_micro_batch, or offload"
    elif best.engine == "torch":
        yield f"fits in {room}, without DeepSpeed"
    else:
        yield f"ZeRO {best.stage} is the lowest stage that fits in {room}"
    if plan.configured is not None:
        fits = next(m.fits for m in plan.memory if m.engine == "deepspeed" and m.stage == plan.configured)
        yield f"the configured deepspeed.stage {plan.configured} {'fits' if fits else 'does not fit'}"
    elif plan.cluster.gpus > 1:
        yield f"the configuration has no deepspeed section, which {plan.cluster.gpus} GPUs need"


def _rates(plan: Plan) -> Iterator[str]:
    cluster, seconds = plan.cluster, plan.seconds
    yield (
        f"time: {seconds * 1e3:,.1f} ms of compute per step at {cluster.utilisation:.0%} of "
        f"{plan.peak:g} TFLOP/s per GPU (assumed), {plan.examples_per_second:,.0f} examples/s; "
        f"{plan.steps:,} steps take {_duration(plan.steps * seconds)}"
        + ("" if plan.epochs is None else f", {plan.epochs:,.1f} epochs of {plan.facts.images:,} images")
    )
    for dtype, size in plan.image_bytes.items():
        rate = size * plan.images_per_second
        disk = "" if plan.store_bytes is None else f"; {plan.store_bytes[dtype] / GB:,.0f} GB on disk"
        yield (
            f"regions as {dtype}: {size / 1e3:,.0f} kB per image, {rate / cluster.gpus / GB:,.2f} GB/s per GPU, "
            f"{rate / GB:,.1f} GB/s in total{disk}"
        )


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:,.1f} minutes"
    return f"{seconds / 3600:,.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} days"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join(["  " + f"{first:<{widths[0]}}", *cells]).rstrip()


def as_values(plan: Plan, cpu: CpuEstimate | None = None) -> dict[str, Any]:
    """Convert a plan to plain values in bytes, operations and seconds; `cpu` as in `describe`."""
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
        "peak_tflops": plan.peak,
        "store_bytes_per_second": {dtype: size * plan.images_per_second for dtype, size in plan.image_bytes.items()},
        "remarks": plan.remarks,
        "cpu": None if cpu is None else asdict(cpu),
        "fits": None if best is None else {"engine": best.engine, "stage": best.stage},
    }
