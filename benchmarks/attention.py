"""What attention, the products around it and a whole step cost here, by kernel, length and dtype.

- `rates`: GFLOP/s of matrix products at base size: fp32 by torch's own choice of library and by
  `dimvl.cpu.linear.product`, and bf16.
- `libraries`: forward and backward of the linear layers of a block in fp32, with another number of rows each time, as
  ragged batches have: the time of oneDNN over that of torch's own choice, MKL.
- `kernels`: forward and backward of the two ways to attend, over about 900 rows in sequences of one length, with and
  without a mask; `matmul_over_sdpa` is the ratio within a round.
- `cores`: forward and backward of `attend` on mixed lengths, by `GROWTH`, which decides when sequences of similar
  lengths get a padded core of their own: the time over that with one padded core for all.
- `steps`: forward and backward of masked language modelling at base size over about 900 rows of mixed lengths, without
  and with the optimiser: GFLOP/s as torch counts operations, and their share of the rate of products in that dtype.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import interleaved, ratio
from benchmarks.samples import draw_lengths, layout_of, make_batch
from benchmarks.train import Size, engine_of
from dimvl.cpu import linear
from dimvl.cpu.linear import product
from dimvl.model import plan as plans
from dimvl.model.attention import attend, matmul_attention, sdpa

ROWS, LENGTHS, GROWTHS = 900, (8, 16, 36, 64, 100, 136, 256, 512), (1.25, 1.5, 2.0)
HEADS = {"base": (12, 64), "demo": (12, 16)}
WIDTHS = {"base": (768, 3072), "demo": (192, 384)}
DTYPES = (torch.float32, torch.bfloat16)


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
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
    libraries = {name: _libraries(device, rounds, rows, *widths) for name, widths in WIDTHS.items()}
    found = rates(device, rounds, rows)
    size = Size(layers=1, width=32, heads=2) if small else Size(layers=12)
    peaks = {"fp32": found["float32, product"], "bf16": found["bfloat16"]}
    steps = {precision: _step(device, rounds, rows, size, precision, peak) for precision, peak in peaks.items()}
    return {"rates": found, "libraries": libraries, "kernels": kernels, "cores": cores, "steps": steps}


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


def _libraries(device: str, rounds: int, rows: int, width: int, inner: int) -> dict[str, Any]:
    """Time both libraries where torch has oneDNN's layers and the CPU AVX-512."""
    if device != "cpu" or not linear.has_onednn():
        return {}
    shapes = ((width, 3 * width), (width, width), (width, inner), (inner, width))
    layers = [linear.Linear(*shape) for shape in shapes]
    inputs = [torch.randn(rows, shape[0], requires_grad=True) for shape in shapes]
    counts = {name: np.random.default_rng(0) for name in ("oneDNN", "MKL")}

    def variant(name: str) -> Callable[[], object]:
        def forward_and_backward() -> None:
            count = int(counts[name].integers(rows // 2, rows + 1))
            with patch.object(linear, "ONEDNN_IS_FASTER", name == "oneDNN"):
                for layer, given in zip(layers, inputs, strict=True):
                    layer(given[:count]).sum().backward()

        return forward_and_backward

    seconds = interleaved({name: variant(name) for name in counts}, rounds, device)
    return {
        **{f"{name}_ms": round(1000 * float(np.median(found)), 2) for name, found in seconds.items()},
        "onednn_over_mkl": ratio(seconds["oneDNN"], seconds["MKL"]),
    }


def _kernels(
    device: str, rounds: int, rows: int, length: int, size: str, dtype: torch.dtype, masked: bool
) -> dict[str, Any]:
    heads, width = HEADS[size]
    sequences = max(1, rows // length)
    *parts, gradient = torch.randn(4, sequences, length, heads, width, device=device, dtype=dtype).transpose(2, 3)
    parts = [part.detach().requires_grad_() for part in parts]
    kept = torch.linspace(0.8, 1, sequences, device=device) * length
    mask = (torch.arange(length, device=device) < kept[:, None])[:, None, None] if masked else None
    kernels = {"sdpa": sdpa, "matmul": matmul_attention}
    runs = {name: lambda k=k: torch.autograd.grad(k(*parts, mask), parts, gradient) for name, k in kernels.items()}
    seconds = interleaved(runs, rounds, device)
    return {
        **{"heads": size, "dtype": _name(dtype), "length": length, "mask": masked},
        **{f"{name}_ms": round(1000 * float(np.median(found)), 2) for name, found in seconds.items()},
        "matmul_over_sdpa": ratio(seconds["matmul"], seconds["sdpa"]),
    }


def _cores(device: str, rounds: int, rows: int, size: str, dtype: torch.dtype) -> dict[str, Any]:
    lengths = first_rows(draw_lengths("mixed", rows).clip(max=(100 if size == "base" else 10, 36)), rows)
    layout, (heads, width) = layout_of(lengths), HEADS[size]
    *parts, gradient = torch.randn(4, layout.num_rows, heads, width, device=device, dtype=dtype)
    parts = [part.requires_grad_() for part in parts]
    named = {}
    for growth in (*GROWTHS, float("inf")):
        with patch.object(plans, "GROWTH", growth):
            named[str(growth)] = plan = plans.plan_attention(layout, device)
            assert plan.padded_places.numel() == layout.num_rows  # computes what is computed once per batch

    def variant(plan: plans.AttentionPlan) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(plan, *parts, "padded"), parts, gradient)

    seconds = interleaved({name: variant(plan) for name, plan in named.items()}, rounds, device)
    return {
        **{"heads": size, "dtype": _name(dtype), "rows": layout.num_rows},
        "cores": {name: len(plan.cores) for name, plan in named.items()},
        "one_core_ms": round(1000 * float(np.median(seconds["inf"])), 2),
        "over_one_core": {name: ratio(found, seconds["inf"]) for name, found in seconds.items() if name != "inf"},
    }


def _step(device: str, rounds: int, rows: int, size: Size, precision: str, rate: float) -> dict[str, Any]:
    lengths = first_rows(draw_lengths("mixed", rows), rows)
    batch, engine = make_batch(lengths, np.arange(len(lengths))), engine_of(size.model(("qkv",)), device, precision)

    def forward_and_backward() -> None:
        engine.backward(engine.losses(batch)["words"] / len(lengths), is_last=True)

    def without_optimiser() -> None:
        forward_and_backward()
        engine.optimiser.zero_grad(set_to_none=True)

    def whole() -> None:
        forward_and_backward()
        engine.step()

    with FlopCounterMode(display=False) as counter:
        without_optimiser()
    operations = 1e-9 * counter.get_total_flops()
    seconds = interleaved({"forward and backward": without_optimiser, "whole step": whole}, rounds, device)
    found: dict[str, Any] = {"rows": batch.layout.num_rows, "gflop": round(operations, 1)}
    for name, spent in seconds.items():
        median = float(np.median(spent))
        found[name] = {"seconds": round(median, 4), "gflop_per_second": round(operations / median, 1)}
        found[name]["share_of_rate"] = round(operations / median / rate, 3)
    return found


def first_rows(lengths: np.ndarray, rows: int) -> np.ndarray:
    """Lengths of the first samples that have this many rows together."""
    return lengths[: np.searchsorted(lengths.sum(axis=1).cumsum(), rows) + 1]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
