"""The peak speed of this device at matrix products and memory copies, as a yardstick for the speed of training.

Measured once per process, within half a second, as the best of several rounds, since another program may disturb any of
them. The data are random, because a GPU multiplies zeros faster, and come from a generator of their own.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from dimvl.cpu.linear import product

SECONDS, ROUNDS = 0.2, 10  # limits of measuring, after one warm-up round
SIDE = {"cpu": 1024, "cuda": 8192}
COPIED = {"cpu": 2**27, "cuda": 2**30}  # bytes, far more than any cache holds


def matmul_rate(device: torch.device, precision: Literal["fp32", "bf16"]) -> float:
    """Operations per second of a square product as the model computes it, with torch's current number of threads."""
    return _matmul_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32, torch.get_num_threads())


def copy_rate(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes, with torch's current number of threads."""
    return _copy_rate(device, torch.get_num_threads())


@cache
def _matmul_rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    side = SIDE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _least_seconds(lambda: product(left, right.t()), device)


@cache
def _copy_rate(device: torch.device, threads: int) -> float:
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    out = torch.empty_like(source)
    return 2 * len(source) / _least_seconds(lambda: out.copy_(source), device)


def _least_seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    best, started = float("inf"), time.perf_counter()
    for turn in range(ROUNDS + 1):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - begin
        best = min(best, seconds) if turn else best
        if turn and time.perf_counter() - started > SECONDS:
            break
    return best
