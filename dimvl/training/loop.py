"""The one training loop. It knows steps, an engine and a task, and nothing of what the task is."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

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
from dimvl.training.early_stopping import Best, Validation
from dimvl.training.engine import Engine
from dimvl.training.report import Meter, RunLog, StepReport, peak_memory_gb


def train(
    engine: Engine,
    data: TrainingSteps,
    config: RunConfig,
    run: Path,
    progress: Callable[[StepReport], None] | None = None,
    validation: Validation | None = None,
) -> None:
    """Train to the last step or until the score no longer rises, going on from the newest checkpoint of the run.

    Args:
        engine: holds the task.
        data: optimiser steps by number.
        config: of the run.
        run: its folder.
        progress: called with each logged step.
        validation: a score of the weights, which decides what the best checkpoint is and when to stop.

    Raises:
        NotFiniteError: a loss, gradient or score is not finite; nothing is saved.
        Interrupted: SIGTERM or SIGINT came; a checkpoint is saved, after the validation that is due if any.

    """
    settings, first, best = config.training, 0, None
    if (folder := latest_checkpoint(run)) is not None:
        state = check_checkpoint(folder)
        first, best = int(state["step"]), Best(**state["best"]) if "best" in state else None
        engine.load(folder)
    if validation is not None and validation.gives_up(best):
        return
    with RunLog(run, config, first) as log, _asked_to_stop() as asked:
        meter = Meter()
        steps = _prefetch(data, first, settings.workers, engine.device.type == "cuda", meter)
        for number, step in zip(range(first, settings.steps), steps, strict=True):
            rate = engine.learning_rate
            losses, counts, norm = _optimise(engine, step, config.seed, number)
            meter.add(step)
            done, over = number + 1, number + 1 == settings.steps
            if done % settings.log_every == 0 or over:
                facts: dict[str, Any] = {"losses": losses, "counts": counts}
                facts |= {"gradient_norm": norm, "learning_rate": rate}
                report = _report(done, settings.steps, step.epoch, engine.task.weights, meter, facts)
                log.write(report)
                if progress is not None:
                    progress(report)
            if validation is not None and validation.is_due(done, settings.steps):
                score = _finite_score(validation.score(), done)
                best = Best.after(best, score, done)
                over = over or validation.gives_up(best)
                log.write_validation(done, score, best)
            if done % settings.save_every == 0 or over or asked or (best is not None and best.step == done):
                save_checkpoint(run, engine, done, settings.keep, best)
            if over:
                return
            if asked:
                message = f"stopped at step {done} of {settings.steps}; run the same command to go on"
                raise Interrupted(message, asked[0])


def _report(
    done: int, steps: int, epoch: int, weights: Mapping[str, float], meter: Meter, facts: dict[str, Any]
) -> StepReport:
    """What is logged of a step; rates start anew."""
    rates: dict[str, Any] = meter.rates()
    left = rates.pop("seconds_per_step") * (steps - done)
    loss = sum(weights[name] * value for name, value in facts["losses"].items())
    memory = peak_memory_gb()
    return StepReport(
        step=done, steps=steps, epoch=epoch, loss=loss, memory_gb=memory, seconds_left=left, **facts, **rates
    )


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


def _finite_score(score: float, step: int) -> float:
    if not abs(score) < float("inf"):
        raise NotFiniteError(f"the validation score is not finite after step {step}; this step was not saved")
    return score


def _shorten(sources: Sequence[str], most: int = 8) -> str:
    return ", ".join(sources[:most]) + (f" and {len(sources) - most} more" if len(sources) > most else "")


def _prefetch(data: TrainingSteps, first: int, workers: int, pin: bool, meter: Meter) -> Iterator[Step]:
    """Steps from `first` on, built by worker processes if any; the time spent waiting is counted."""
    numbers = range(first, len(data))
    loader = DataLoader(data, batch_size=None, sampler=numbers, num_workers=workers, pin_memory=pin)
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
