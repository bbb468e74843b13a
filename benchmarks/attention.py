"""What attention, the products around it and a whole step cost here: which kernel, at which length, in which dtype.

`rates` are those of matrix products at base size, GFLOP/s: fp32 by torch's own choice of library and by
`dimvl.cpu.linear.product`, and bf16. `kernels` are forward and backward of the two ways of attending, of about 900
rows in sequences of one length, with and without a mask; `matmul_over_sdpa` is the ratio within a round (median, 10th
and 90th percentile). `cores` are forward and backward of `attend` on mixed lengths, with sequences of similar lengths
in padded cores of their own: over one padded core for all, by `GROWTH`. `steps` are forward and backward of masked
language modelling at base size over about 900 rows of mixed lengths, without and with the optimiser: GFLOP/s as torch
counts operations, and their share of the rate of products in that dtype.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import interleaved, ratio
from benchmarks.samples import draw_lengths, make_batch
from benchmarks.variants import MaskedWords, Size
from dimvl.config import TrainingConfig
from dimvl.cpu.linear import FLOP_FORMULAS, product
from dimvl.data.layout import Layout
from dimvl.model import plan as plans
from dimvl.model.attention import attend, matmul_attention, sdpa
from dimvl.training.engine import TorchEngine

ROWS, LENGTHS, GROWTHS = 900, (8, 16, 36, 64, 100, 136, 256, 512), (1.25, 1.5, 2.0)
HEADS = {"base": (12, 64), "demo": (12, 16)}
DTYPES = (torch.float32, torch.bfloat16)


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Measure all of it; `small` takes seconds."""
    lengths, rows = (LENGTHS[:2], 64) if small else (LENGTHS, ROWS)
    kernels = [
        _kernels(device, rounds, rows, length, size, dtype, masked)
        for size in HEADS
        for dtype in DTYPES
        for length in lengths
        for masked in (False, True)
    ]
    cores = [_cores(device, rounds, rows, size, dtype) for size in HEADS for dtype in DTYPES]
    found = rates(device, rounds, rows)
    size = Size(layers=1, width=32, heads=2, budget=0, batches=1) if small else Size(layers=12, budget=0, batches=1)
    steps = {
        "fp32": _step(device, rounds, rows, size, "fp32", found["float32, product"]),
        "bf16": _step(device, rounds, rows, size, "bf16", found["bfloat16"]),
    }
    return {"device": device, "rates": found, "kernels": kernels, "cores": cores, "steps": steps}


def rates(device: str, rounds: int, rows: int = ROWS, width: int = 768, inner: int = 3072) -> dict[str, float]:
    """GFLOP/s of (rows, width) x (width, inner): the best round of each kind."""
    variants: dict[str, Callable[[], object]] = {}
    for dtype in DTYPES:
        left, right = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((rows, width), (inner, width)))
        variants[_name(dtype)] = lambda left=left, right=right: left @ right.t()
        if dtype == torch.float32:
            variants["float32, product"] = lambda left=left, right=right: product(left, right.t())
    seconds = interleaved(variants, rounds, device)
    return {name: round(2e-9 * rows * width * inner / float(found.min()), 1) for name, found in seconds.items()}


def _kernels(
    device: str, rounds: int, rows: int, length: int, size: str, dtype: torch.dtype, masked: bool
) -> dict[str, Any]:
    heads, width = HEADS[size]
    sequences = max(1, rows // length)
    *parts, gradient = torch.randn(4, sequences, length, heads, width, device=device, dtype=dtype).transpose(2, 3)
    parts = [part.detach().requires_grad_() for part in parts]
    kept = torch.linspace(0.8, 1, sequences, device=device) * length
    mask = (torch.arange(length, device=device) < kept[:, None])[:, None, None] if masked else None

    def variant(kernel: Callable[..., torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(kernel(*parts, mask), parts, gradient)

    seconds = interleaved({"sdpa": variant(sdpa), "matmul": variant(matmul_attention)}, rounds, device)
    return {
        "heads": size,
        "dtype": _name(dtype),
        "length": length,
        "mask": masked,
        **{f"{name}_ms": round(1000 * float(np.median(found)), 2) for name, found in seconds.items()},
        "matmul_over_sdpa": ratio(seconds["matmul"], seconds["sdpa"]),
    }


def _cores(device: str, rounds: int, rows: int, size: str, dtype: torch.dtype) -> dict[str, Any]:
    layout = mixed_layout(rows, most_regions=100 if size == "base" else 10)
    heads, width = HEADS[size]
    *parts, gradient = torch.randn(4, layout.num_rows, heads, width, device=device, dtype=dtype)
    parts = [part.requires_grad_() for part in parts]
    named = {f"{growth}": plan for growth, plan in _plans(layout, device)}

    def variant(plan: plans.AttentionPlan) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(plan, *parts, "padded"), parts, gradient)

    seconds = interleaved({name: variant(plan) for name, plan in named.items()}, rounds, device)
    return {
        "heads": size,
        "dtype": _name(dtype),
        "rows": layout.num_rows,
        "cores": {name: len(plan.cores) for name, plan in named.items()},
        "one_core_ms": round(1000 * float(np.median(seconds["inf"])), 2),
        "over_one_core": {name: ratio(found, seconds["inf"]) for name, found in seconds.items() if name != "inf"},
    }


def _step(device: str, rounds: int, rows: int, size: Size, precision: str, rate: float) -> dict[str, Any]:
    lengths = draw_lengths("mixed", rows)
    samples = np.arange(np.searchsorted(lengths.sum(axis=1).cumsum(), rows) + 1)
    batch, model = make_batch(lengths, samples), size.model(("qkv",))
    settings = TrainingConfig.model_validate({"steps": 10**6, "precision": precision, "device": device})
    engine = TorchEngine(MaskedWords(model), settings)

    def forward_and_backward() -> None:
        engine.backward(engine.losses(batch)["words"] / len(samples), is_last=True)

    def without_optimiser() -> None:
        forward_and_backward()
        engine.optimiser.zero_grad(set_to_none=True)

    def whole() -> None:
        forward_and_backward()
        engine.step()

    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        without_optimiser()
    operations = 1e-9 * counter.get_total_flops()
    seconds = interleaved({"forward and backward": without_optimiser, "whole step": whole}, rounds, device)
    found: dict[str, Any] = {"rows": batch.layout.num_rows, "gflop": round(operations, 1)}
    for name, spent in seconds.items():
        reached = operations / float(np.median(spent))
        found[name] = {
            "seconds": round(float(np.median(spent)), 4),
            "gflop_per_second": round(reached, 1),
            "share_of_rate": round(reached / rate, 3),
        }
    return found


def _plans(layout: Layout, device: str) -> Iterator[tuple[float, plans.AttentionPlan]]:
    """Plans of a layout whose padded cores are cut at other growths."""
    shipped = plans.GROWTH
    try:
        for growth in (*GROWTHS, float("inf")):
            plans.GROWTH = growth
            plan = plans.plan_attention(layout, device)
            assert plan.padded_places.numel() == layout.num_rows  # builds all that is built once a batch
            yield growth, plan
    finally:
        plans.GROWTH = shipped


def mixed_layout(rows: int, most_regions: int, seed: int = 0) -> Layout:
    """Bidirectional examples of 10 to 100 regions (lognormal) and 8 to 36 words, until there are so many rows."""
    generator = np.random.default_rng(seed)
    regions, words = [], []
    while sum(regions) + sum(words) < rows:
        regions.append(int(np.clip(generator.lognormal(3.5, 0.5), 10, 100).clip(max=most_regions)))
        words.append(int(generator.integers(8, 37)))
    count = len(regions)
    return Layout(
        num_regions=np.array(regions),
        num_context=np.full(count, 2),
        text_lengths=np.array(words),
        text_prefix=np.arange(count),
        seq2seq=np.zeros(count, dtype=bool),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
