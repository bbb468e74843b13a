"""The speed of this machine's CPU: one block of the run's encoder, forward and backward, on rows like the run's.

It takes about a second. Embeddings, heads and the optimiser are taken to compute as fast as a block.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from dimvl import cpu
from dimvl.config import RunConfig
from dimvl.cpu.memory import keep_freed_memory
from dimvl.data.layout import Layout
from dimvl.model.encoder import Encoder
from dimvl.model.plan import plan_attention
from dimvl.planning.plan import Plan

ROWS = 2048
"""Maximum number of rows to measure with; more are not faster."""
WIDEST = 4096
"""A wider block takes minutes on a CPU; none is measured."""
SECONDS = 0.5
"""Time to measure, after a pass that is not counted."""


@dataclass(frozen=True, kw_only=True)
class CpuEstimate:
    """The estimated speed of a run on this CPU.

    Attributes:
        threads: threads of torch.
        gflops: 10^9 operations per second, measured.
        seconds: seconds of an optimiser step.

    """

    threads: int
    gflops: float
    seconds: float


def estimate_cpu(config: RunConfig, plan: Plan) -> CpuEstimate | None:
    """Measure this CPU on a block of the run's encoder; None for a block that is too wide."""
    if max(config.model.width, config.model.inner_width) > WIDEST:
        return None
    cpu.configure()
    keep_freed_memory()
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    examples = plan.step.examples / plan.step.micro_batches
    work = plan.step.micro_batch
    vision, language = round(work.vision / examples), round(work.language / examples)
    number = max(1, min(round(examples), ROWS // max(1, vision + language)))
    model = config.model
    encoder = Encoder(
        1, model.width, model.heads, model.inner_width, model.split, model.dropout, model.activation, norm_eps=1e-12
    )
    precision = torch.bfloat16 if config.training.precision == "bf16" else None
    rows = number * (vision + language)
    products = 2 * rows * (4 * model.width**2 + 2 * model.width * model.inner_width)
    products += 4 * rows * (vision + language) * model.width
    seconds = _seconds(encoder, precision, model.width, number, vision, language)
    rate = 3 * products / seconds  # forward, and twice as many backward
    flops = plan.flops_per_step + (model.layers * _muon_flops(encoder) if config.training.muon_rate else 0)
    return CpuEstimate(threads=torch.get_num_threads(), gflops=rate / 1e9, seconds=flops / rate)


def _muon_flops(encoder: Encoder) -> float:
    """Operations of `dimvl.training.optimiser.orthogonalise`, which for Muon cost as much as a small step."""
    shapes = (sorted(parameter.shape) for parameter in encoder.parameters() if parameter.ndim > 1)
    return sum(34.0 * short**3 + 4 * short**2 * long for short, long in shapes)


def _seconds(
    encoder: Encoder, precision: torch.dtype | None, width: int, number: int, vision: int, language: int
) -> float:
    """Return the seconds of both passes on `number` examples of so many rows of each modality."""
    each = np.full(number, 1)
    layout = Layout(
        num_regions=vision * each,
        num_context=0 * each,
        text_lengths=language * each,
        text_prefix=np.arange(number),
        seq2seq=each == 0,
    )
    rows = torch.randn(layout.num_rows, width, requires_grad=True)
    attention = plan_attention(layout)
    passes, start = 0, 0.0
    while not passes or time.perf_counter() - start < SECONDS:
        with torch.autocast("cpu", precision, enabled=precision is not None):
            encoder(rows, attention).sum().backward()
        if not start:
            start = time.perf_counter()
        else:
            passes += 1
    return (time.perf_counter() - start) / passes
