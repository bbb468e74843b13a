"""The one training loop. It knows steps, an engine and a task, and nothing of what the task is."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dimvl.config import RunConfig
from dimvl.data.documents import keyed_generator
from dimvl.data.sampler import Step, TrainingSteps
from dimvl.errors import Interrupted, NotFiniteError
from dimvl.objectives import normalise
from dimvl.pretrained import check_checkpoint, latest_checkpoint
from dimvl.training.checkpoint import save_checkpoint
from dimvl.training.engine import Engine
from dimvl.training.report import Meter, RunLog, StepReport, peak_memory_gb


def train(
    engine: Engine,
    data: TrainingSteps,
    config: RunConfig,
    run: Path,
    progress: Callable[[StepReport], None] | None = None,
) -> None:
    """Train to the last step, going on from the newest checkpoint of the run.

    Args:
        engine: holds the task.
        data: optimiser steps by number.
        config: of the run.
        run: its folder.
        progress: called with each logged step.

    Raises:
        NotFiniteError: a loss or gradient is not finite; nothing is saved.
        Interrupted: SIGTERM or SIGINT came; a checkpoint is saved.

    """
    settings = config.training
    first = 0
    if (folder := latest_checkpoint(run)) is not None:
        first = int(check_checkpoint(folder)["step"])
        engine.load(folder)
    with RunLog(run, config, first) as log, _asked_to_stop() as asked:
        meter = Meter()
        for number, step in zip(
            range(first, settings.steps), _prefetch(data, first, settings.workers, meter), strict=True
        ):
            rate = engine.learning_rate
            losses, counts, norm = _optimise(engine, step, config.seed, number)
            done = number + 1
            meter.steps, meter.documents, meter.rows = (
                meter.steps + 1,
                meter.documents + step.documents,
                meter.rows + step.rows,
            )
            if done % settings.log_every == 0 or done == settings.steps:
                rates = meter.rates()
                left = rates.pop("seconds_per_step") * (settings.steps - done)
                weights = engine.task.weights
                report = StepReport(
                    step=done,
                    steps=settings.steps,
                    epoch=step.epoch,
                    loss=sum(weights[name] * value for name, value in losses.items()),
                    losses=losses,
                    counts=counts,
                    gradient_norm=norm,
                    learning_rate=rate,
                    memory_gb=peak_memory_gb(),
                    seconds_left=left,
                    **rates,
                )
                log.write(report)
                if progress is not None:
                    progress(report)
            if done % settings.save_every == 0 or done == settings.steps or asked:
                save_checkpoint(run, engine, done, settings.keep)
            if asked and done < settings.steps:
                message = f"stopped at step {done} of {settings.steps}; run the same command to go on"
                raise Interrupted(message, asked[0])


def _optimise(engine: Engine, step: Step, seed: int, number: int) -> tuple[dict[str, float], dict[str, int], float]:
    """One optimiser step: losses per target by name, targets by objective, norm of the gradient."""
    counts: dict[str, int] = {}
    for batch in step.micro_batches:
        for name, count in batch.counts().items():
            counts[name] = counts.get(name, 0) + count
    counts = engine.sum_over_ranks(counts)
    sums: dict[str, Tensor] = {}
    for place, batch in enumerate(step.micro_batches):
        seed_dropout(seed, number, place, engine.rank)
        losses = engine.losses(batch)
        _check_finite(losses, number, batch.sources)
        engine.backward(normalise(losses, counts, engine.task.weights))
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros(())) + loss.detach().cpu()
    norm = engine.step()
    if not norm < float("inf"):
        images = [source for batch in step.micro_batches for source in batch.sources]
        raise NotFiniteError(
            f"the gradient is not finite at step {number + 1}, in {_shorten(images)}; nothing was saved"
        )
    return {name: float(total) / max(1, counts[name.partition("/")[0]]) for name, total in sums.items()}, counts, norm


def seed_dropout(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Key dropout by step: a resumed run draws what an undisturbed one draws, without any saved random state."""
    torch.manual_seed(int(keyed_generator(seed, "dropout", step, micro_batch, rank).integers(2**63)))


def _check_finite(losses: dict[str, Tensor], step: int, sources: Sequence[str]) -> None:
    for name, loss in losses.items():
        if not loss.isfinite():
            raise NotFiniteError(
                f"the loss {name} is not finite at step {step + 1}, in {_shorten(sources)}; nothing was saved"
            )


def _shorten(sources: Sequence[str], most: int = 8) -> str:
    return ", ".join(sources[:most]) + (f" and {len(sources) - most} more" if len(sources) > most else "")


def _prefetch(data: TrainingSteps, first: int, workers: int, meter: Meter) -> Iterator[Step]:
    """Steps from `first` on, built by worker processes if any; the time spent waiting is counted."""
    loader = DataLoader(data, batch_size=None, sampler=range(first, len(data)), num_workers=workers)
    steps = iter(loader)
    while True:
        start = time.perf_counter()
        try:
            step = next(steps)
        except StopIteration:
            return
        meter.wait += time.perf_counter() - start
        yield step


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT; the list is empty until one comes. A second one stops at once."""
    asked: list[int] = []
    previous = {}

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: signals stay with whoever runs it
        pass
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
