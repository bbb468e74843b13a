"""The training loop, the same for all tasks and engines."""

import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from dimvl.checkpoints import OPTIMISER, check_checkpoint, latest_checkpoint
from dimvl.checkpoints import REMEDY as REMOVE_CHECKPOINT
from dimvl.config import RunConfig, TrainingConfig
from dimvl.data.examples import keyed_generator
from dimvl.data.sampler import Step, TrainingSteps
from dimvl.errors import Interrupted, NotFiniteError, UserError
from dimvl.model.flops import total_flops
from dimvl.model.work import Work
from dimvl.objectives import normalise
from dimvl.showing import some
from dimvl.tasks import task_of
from dimvl.training.checkpoint import Saver
from dimvl.training.engine import Engine
from dimvl.training.loading import dead_workers, prefetch
from dimvl.training.peak import matmul_rate
from dimvl.training.ranks import Ranks, any_rank, fail_together, on_rank_zero
from dimvl.training.report import Log, Meter, StepReport, open_log, peak_memory_gb
from dimvl.training.state import read_state, shapes_of
from dimvl.training.validation import Best, Validation

logger = logging.getLogger(__name__)
SHOWN = 8  # examples named in a message
REMEDY = "lower training.learning_rate or check these examples"
Report = Callable[[StepReport], None]
"""Called with each logged step."""


def train(
    engine: Engine,
    data: TrainingSteps,
    config: RunConfig,
    run: Path,
    report: Report | None = None,
    validation: Validation | None = None,
) -> None:
    """Train to the last step or until the score no longer improves, resuming from the newest checkpoint of the run.

    Args:
        engine: engine with the model and its losses.
        data: optimiser steps by number.
        config: the run's configuration.
        run: the run's folder.
        report: called with each logged step, on every rank.
        validation: decides which checkpoint is best and when to stop early.

    Raises:
        NotFiniteError: a loss, gradient or score is not finite; nothing is saved.
        Interrupted: SIGTERM or SIGINT was received; a checkpoint is saved, after a validation if one is due. Before
            the first step of this call is complete, training stops at once without saving.
        UserError: a checkpoint or the log could not be written, a loader process died, or the GPU's memory is too
            small.
        OtherRankError: another rank failed or ended.

    """
    settings, ranks, last = config.training, engine.ranks, config.training.steps
    first, best = _resume(engine, run)
    if first == last or (validation is not None and validation.gives_up(best)):
        logger.info("%s is finished, after step %d of %d; to train again, give another output", run, first, last)
        return
    if first:
        logger.info("resuming %s from step %d of %d", run, first, last)
    opened, saving = open_log(run, config, first, ranks), Saver(run, engine, settings.keep)
    ideal = None if task_of(config).draws_in_steps else _ideal_seconds(engine, settings.precision)
    meter = Meter(ranks, ideal, lambda: engine.task.drawn_rows)
    loader = closing(prefetch(data, first, settings.workers, engine.device, meter, ranks))
    memory = _enough_memory(settings)
    with opened as log, _stop_signals(first, last) as request, dead_workers(), memory, saving as saver, loader as steps:
        for done, step in zip(range(first + 1, last + 1), steps, strict=True):
            update = optimise(engine, step, config.seed, done - 1)
            request.to_save = True
            meter.add(step)
            over = done == last
            if done % settings.log_every == 0 or over:
                logged = _report(engine, update, meter, done, last, step.epoch)
                log.write(logged)
                if report is not None:
                    report(logged)
            if validation is not None and validation.is_due(done, last):
                best = _validate(validation, best, done, log)
                over = over or validation.gives_up(best)
            stop = any_rank(ranks, request.signal is not None or saver.failed)
            if done % settings.save_every == 0 or over or stop or (best is not None and best.step == done):
                saver.save(done, best)
            if over or stop:
                saver.wait()
                if over:
                    return
                raise _interrupted(done, last, request.signal or signal.SIGTERM)


@contextmanager
def _enough_memory(settings: TrainingConfig) -> Iterator[None]:
    """Turn torch's out-of-memory error into a `UserError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory is too small ({str(error).splitlines()[0]}); lower training.rows_per_micro_batch "
            f"({settings.rows_per_micro_batch}), set training.checkpoint_activations=true, or, on several GPUs, raise "
            "deepspeed.stage; `dimvl plan` estimates the memory that each of these needs"
        ) from None


def _resume(engine: Engine, run: Path) -> tuple[int, Best | None]:
    """Load the newest checkpoint; return the number of steps done and the best score so far."""
    ranks = engine.ranks

    def newest() -> tuple[str, dict[str, Any]] | None:
        folder = latest_checkpoint(run)
        return None if folder is None else (folder.name, check_checkpoint(folder))

    if (found := on_rank_zero(ranks, newest)) is None:
        return 0, None
    name, described = found
    if described["ranks"] != ranks.size:
        before = described["ranks"]
        logger.info("resuming a checkpoint of %d ranks on %d: the same data, split differently", before, ranks.size)
    with fail_together(ranks):
        state = read_state(run / "checkpoints" / name, shapes_of(engine.task.model))
    try:
        engine.restore(state)
    except (KeyError, ValueError) as error:  # torch's own check of an optimiser's state
        file = run / "checkpoints" / name / OPTIMISER
        raise UserError(f"{file} does not hold the state of this optimiser ({error}); {REMOVE_CHECKPOINT}") from None
    return int(described["step"]), Best(**described["best"]) if "best" in described else None


def _ideal_seconds(engine: Engine, precision: Literal["fp32", "bf16"]) -> Callable[[Work], float]:
    """Return a function from the work of a step to its seconds at the peak of the device."""
    model, peak = engine.task.model, matmul_rate(engine.device, precision)
    return lambda work: total_flops(model, work) / peak


class Update(NamedTuple):
    """Results of a step: the rank's sums of losses, global target counts by objective, gradient norm, learning rate."""

    sums: dict[str, float]
    counts: dict[str, int]
    norm: float
    rate: float


def _report(engine: Engine, update: Update, meter: Meter, done: int, steps: int, epoch: int) -> StepReport:
    """Return the log entry of a step, and reset the meter."""
    losses = _means(engine.ranks, update.sums, update.counts)
    rates: dict[str, Any] = meter.rates()
    left = rates.pop("seconds_per_step") * (steps - done)
    return StepReport(
        step=done,
        steps=steps,
        epoch=epoch,
        loss=sum(engine.task.weights[name] * value for name, value in losses.items()),
        losses=losses,
        counts=update.counts,
        gradient_norm=update.norm,
        learning_rate=update.rate,
        memory_gb=peak_memory_gb(engine.device),
        seconds_left=left,
        **rates,
    )


def optimise(engine: Engine, step: Step, seed: int, number: int) -> Update:
    """Perform optimiser step `number`, counted from 0."""
    rate, ranks, last = engine.learning_rate, engine.ranks, len(step.micro_batches) - 1
    names = list(engine.task.objectives)
    own = [sum(batch.counts()[name] for batch in step.micro_batches) for name in names]
    counts = dict(zip(names, ranks.sum(np.array(own, dtype=np.int64)).tolist(), strict=True))
    sums: dict[str, float] = {}
    for place, batch in enumerate(step.micro_batches):
        seed_dropout(seed, number, place, ranks.rank)
        losses = engine.losses(batch)
        stacked = torch.stack([loss.detach().float() for loss in losses.values()])  # one transfer from the device
        values = dict(zip(losses, stacked.tolist(), strict=True))
        _check_finite(ranks, values, number, batch.sources)
        engine.backward(normalise(losses, counts, engine.task.weights), is_last=place == last)
        sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
    norm = engine.step()
    if not norm < float("inf"):
        images = [source for batch in step.micro_batches for source in batch.sources]
        images = [source for part in ranks.gather(images[:SHOWN]) for source in part]
        raise NotFiniteError(
            f"the gradient is not finite at step {number + 1}, in {some(images, SHOWN)}; nothing was saved; {REMEDY}"
        )
    return Update(sums, counts, norm, rate)


def _means(ranks: Ranks, sums: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Return the mean losses per target over all ranks, by name."""
    total = ranks.sum(np.array(list(sums.values()), dtype=np.float64)).tolist()
    return {name: value / max(1, counts[name.partition("/")[0]]) for name, value in zip(sums, total, strict=True)}


def seed_dropout(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Seed dropout by step, so that a resumed run draws the same without a saved random state."""
    torch.manual_seed(int(keyed_generator(seed, "dropout", step, micro_batch, rank).integers(2**63)))


def _check_finite(ranks: Ranks, losses: Mapping[str, float], step: int, sources: Sequence[str]) -> None:
    """Stop all ranks if a loss on one of them is not finite, before its gradient reaches the others."""
    bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if not any_rank(ranks, bool(bad)):
        return
    own = f"the loss {bad[0]} is not finite at step {step + 1}, in {some(sources, SHOWN)}" if bad else ""
    messages = ranks.gather(own)
    rank = next(rank for rank, text in enumerate(messages) if text)
    where = f" (rank {rank})" if ranks.size > 1 else ""
    raise NotFiniteError(f"{messages[rank]}{where}; nothing was saved; {REMEDY}")


def _validate(validation: Validation, best: Best | None, done: int, log: Log) -> Best:
    """Score the weights and log the score; return the best so far."""
    found = validation.score()
    if not math.isfinite(found.score):
        raise NotFiniteError(f"the validation score is not finite after step {done}; this step was not saved")
    best = Best.after(best, found.score, done)
    log.write_validation(done, found, best)
    return best


@dataclass
class StopRequest:
    """The first signal received, and whether a step has been trained that must be saved before stopping."""

    signal: int | None = None
    to_save: bool = False


@contextmanager
def _stop_signals(first: int, last: int) -> Iterator[StopRequest]:
    """Record SIGTERM and SIGINT. A second signal stops at once, as does the first if nothing needs saving yet."""
    request, previous = StopRequest(), {}

    def note(number: int, frame: FrameType | None) -> None:
        again, request.signal = request.signal is not None, request.signal or number
        if again or not request.to_save:
            raise KeyboardInterrupt  # an `Exception` would be sent to other ranks, which may not be listening

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, note)
    except ValueError:  # outside the main thread, signals belong to the caller
        pass
    try:
        yield request
    except KeyboardInterrupt:
        if request.signal is None or request.to_save:
            raise
        raise _interrupted(first, last, request.signal) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupted(done: int, last: int, number: int) -> Interrupted:
    return Interrupted(f"stopped at step {done} of {last}; run the same command to resume", number)
