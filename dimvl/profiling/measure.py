"""Runs a few real training steps under torch's profiler, and relates the time of each part to the device's peak."""

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from dimvl.callbacks import Progress
from dimvl.config import RunConfig
from dimvl.data.batch import Batch
from dimvl.errors import UserError
from dimvl.files import atomic_path
from dimvl.model.flops import products, total_flops
from dimvl.model.model import DimvlModel
from dimvl.model.work import Work
from dimvl.profiling import scopes
from dimvl.profiling.scopes import ScopedEngine, mark, part_of_product, scope
from dimvl.profiling.timeline import Seconds, seconds_by_part
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.training.build import build_task
from dimvl.training.loading import prefetch
from dimvl.training.loop import optimise
from dimvl.training.peak import copy_rate, matmul_rate
from dimvl.training.report import Meter, peak_memory_gb
from dimvl.training.run import prepare_encoder, training_steps

TRACE = "trace.json"
IDLE = "GPU idle"
MEMORY_BOUND = {
    *(scopes.EMBEDDINGS, scopes.ACTIVATION, scopes.NORMS, scopes.RESIDUALS, scopes.LOSSES, scopes.SUMS, scopes.CLIP)
}
"""Parts without matrix products that move more bytes than they compute."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the average step.

    Attributes:
        name: one of `scopes.parts()`, or `IDLE`.
        forward: seconds; all of them for parts without a gradient.
        backward: seconds, including recomputation for the gradient.
        flops: operations of its matrix products in both passes; 0 if it has none.
        roof: what bounds it: `compute` or `memory`, depending on whether its operations per byte exceed the device's;
            `data` for waiting for batches; empty if unknown.

    """

    name: str
    forward: float
    backward: float
    flops: float
    roof: str

    @property
    def seconds(self) -> float:
        """Seconds of both passes."""
        return self.forward + self.backward


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the time of an average training step goes. Numbers are per step unless stated otherwise.

    Attributes:
        device: `cpu` or the name of the GPU.
        threads: torch's CPU threads.
        precision: the run's precision.
        steps: number of profiled steps.
        examples: examples.
        rows: rows.
        seconds: wall-clock seconds.
        processor_seconds: CPU seconds of all threads of the process.
        data_wait: seconds spent waiting for batches.
        parts: in the order of a step; their seconds sum to `seconds`, apart from the profiler's work between steps.
        flops: operations of the model, without padding and recomputation.
        peak: operations per second of square matrix products.
        copy_rate: bytes per second of a large copy.
        memory_gb: peak memory in GB of the process or, on a GPU, of torch's allocations.

    """

    device: str
    threads: int
    precision: str
    steps: int
    examples: float
    rows: float
    seconds: float
    processor_seconds: float
    data_wait: float
    parts: tuple[Part, ...]
    flops: float
    peak: float
    copy_rate: float
    memory_gb: float

    @property
    def utilisation(self) -> float:
        """The model's operations per second as a share of the peak."""
        return self.flops / self.seconds / self.peak


def profile(
    config: RunConfig, out: Path, *, steps: int, warmup: int, progress: Progress = lambda done, total: None
) -> Profile:
    """Train a few steps of a configuration in a temporary folder, and measure where their time goes.

    Args:
        config: the run's configuration; its folder is neither read nor written.
        out: folder for the profiler's trace.
        steps: number of steps to profile.
        warmup: number of steps before them.
        progress: called with (steps done, steps in total).

    Raises:
        UserError: DeepSpeed, several processes, self-critical training, or anything that training refuses.

    """
    _check(config)
    settings = config.training
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory(prefix="dimvl-profile-") as folder:
        changed = settings.model_copy(update={"steps": max(settings.steps, warmup + steps)})
        config = config.model_copy(update={"output": Path(folder), "training": changed})
        run = _MarkedRun(config, warmup + steps, progress)
        with closing(run.batches):
            for _ in range(warmup):
                run.train()
            batches, seconds, totals = run.measure(steps, out / TRACE)
    engine, works = run.engine, [Work.of(batch, padded=False) for batch in batches]
    peak, copied = matmul_rate(engine.device, settings.precision), copy_rate(engine.device)
    return Profile(
        device=torch.cuda.get_device_name() if run.cuda else "cpu",
        threads=torch.get_num_threads(),
        precision=settings.precision,
        steps=steps,
        examples=sum(len(batch.sources) for batch in batches) / steps,
        rows=sum(work.rows for work in works) / steps,
        **{name: total / steps for name, total in totals.items()},
        parts=_parts(config, engine.task.model, works, seconds, steps, peak / copied),
        flops=sum(total_flops(engine.task.model, work) for work in works) / steps,
        peak=peak,
        copy_rate=copied,
        memory_gb=run.memory_gb,
    )


def _check(config: RunConfig) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("only one process can be profiled; start it without a launcher")
    if config.deepspeed is not None:
        raise UserError(
            "the configuration uses DeepSpeed, which is not profiled; add deepspeed=null to profile plain torch in one "
            "process"
        )
    if task_of(config).draws_in_steps:
        raise UserError(
            "self_critical draws captions in every step, which the profile cannot separate; profile without "
            "drawing, by self_critical=null"
        )


class _MarkedRun:
    """The first steps of a run, with their parts marked for the profiler."""

    def __init__(self, config: RunConfig, steps: int, progress: Progress) -> None:
        settings, self.seed, self.steps, self.progress = config.training, config.seed, steps, progress
        store = RegionStore(config.regions, settings.check_reads)
        torch.manual_seed(config.seed)
        task, source = build_task(config, store, task_of(config).read(config, store))
        prepare_encoder(task, settings)
        mark(task, settings.compile)
        self.engine = ScopedEngine(task, settings)
        self.cuda = self.engine.device.type == "cuda"
        data = training_steps(config, task, source, self.engine.ranks, steps)
        self.meter = Meter(self.engine.ranks)
        self.batches = prefetch(data, 0, settings.workers, self.engine.device, self.meter, self.engine.ranks)
        self._done, self.memory_gb = 0, 0.0

    def train(self) -> Sequence[Batch]:
        """Train one step; return its micro-batches."""
        with scope(scopes.STEP):
            with scope(scopes.DATA):
                step = next(self.batches)
            optimise(self.engine, step, self.seed, self._done)
        self._done += 1
        self.progress(self._done, self.steps)
        return step.micro_batches

    def measure(self, steps: int, trace: Path) -> tuple[list[Batch], dict[str, Seconds], dict[str, float]]:
        """Train steps under the profiler, and write its trace.

        Returns:
            The micro-batches, seconds by part (with `IDLE` on a GPU), and totals of the fields of `Profile`.

        """
        self.memory_gb = peak_memory_gb(self.engine.device)
        micro_batches, self.meter.wait = list[Batch](), 0.0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        with torch_profile(activities=activities) as profiler:
            self._wait_for_device()
            started, before = time.perf_counter(), time.process_time()
            for _ in range(steps):
                micro_batches += self.train()
            self._wait_for_device()
            seconds, processor = time.perf_counter() - started, time.process_time() - before
        with atomic_path(trace) as temporary:
            profiler.export_chrome_trace(str(temporary))
        parts = seconds_by_part(profiler.events() or (), self.cuda)
        if self.cuda:
            parts[IDLE] = Seconds(max(0.0, seconds - sum(part.total for part in parts.values())))
        totals = {"seconds": seconds, "processor_seconds": processor, "data_wait": self.meter.wait}
        return micro_batches, parts, totals

    def _wait_for_device(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def _parts(
    config: RunConfig,
    model: DimvlModel,
    works: Sequence[Work],
    measured: Mapping[str, Seconds],
    steps: int,
    balance: float,
) -> tuple[Part, ...]:
    """Relate times to operations; `balance` is the device's peak in operations per byte that it copies."""
    settings = config.training
    size = 2 if settings.precision == "bf16" else 4
    names = [name for name in (*scopes.parts(), IDLE) if name in measured]
    flops, moved = defaultdict[str, float](float), defaultdict[str, float](float)
    for work in works:
        for product in products(model, work, settings.checkpoint_activations):
            owner = part_of_product(product.name, settings.compile)
            flops[owner] += product.flops.total
            if product.flops.forward:
                moved[owner] += size * product.elements * product.flops.total / product.flops.forward

    def roof(name: str) -> str:
        if flops[name]:
            return "compute" if flops[name] > balance * moved[name] else "memory"
        is_memory_bound = name in MEMORY_BOUND or (name == scopes.OPTIMISER and settings.muon_rate is None)
        return "data" if name == scopes.DATA else "memory" if is_memory_bound else ""

    def part(name: str) -> Part:
        forward, backward = measured[name].forward / steps, measured[name].backward / steps
        return Part(name=name, forward=forward, backward=backward, flops=flops[name] / steps, roof=roof(name))

    return tuple(map(part, names))
