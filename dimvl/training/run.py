"""Trains a run from its configuration: compares the ranks, prepares task and engine, and runs the training loop."""

import os
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from dimvl import cpu
from dimvl.callbacks import NamedProgress
from dimvl.checkpoints import check_seal, latest_checkpoint, seal_run
from dimvl.config import RunConfig, TrainingConfig
from dimvl.data.epoch_plan import ExampleSource
from dimvl.data.sampler import TrainingSteps
from dimvl.data.trained_on import FILE as TRAINED_ON
from dimvl.errors import NotFiniteError, OtherRankError, UserError
from dimvl.files import CHECKSUMS
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.tasks.base import TaskModule
from dimvl.trained_model import choose_device
from dimvl.training.build import build_task
from dimvl.training.deepspeed_engine import DeepSpeedEngine, checked_options
from dimvl.training.engine import Engine, TorchEngine
from dimvl.training.loop import Report, train
from dimvl.training.ranks import Ranks, fail_together, new_group_timeout, open_ranks
from dimvl.training.run_folder import PLANS, check_ranks, claim, describe, noting_end, record, release
from dimvl.training.texts import known_texts
from dimvl.training.validation import Validation, build_validation


def run_training(
    config: RunConfig, report: Report | None = None, progress: NamedProgress = lambda what, done, total: None
) -> Path:
    """Train as configured, resuming where the run stopped; return the run's folder.

    Args:
        config: the run's configuration.
        report: called with each logged step.
        progress: called during other work with (what, items done, items in total).

    Raises:
        UserError: configuration, stores, annotations or checkpoints do not fit together.
        OtherRankError: another rank failed or ended.

    """
    cpu.configure()
    with open_ranks(config) as ranks:
        return train_on(ranks, config, report, progress)


def train_on(
    ranks: Ranks,
    config: RunConfig,
    report: Report | None = None,
    progress: NamedProgress = lambda what, done, total: None,
) -> Path:
    """Train on connected ranks; see `run_training`."""
    options = _configure(ranks, config)
    with fail_together(ranks):
        description = describe(config)
    if ranks.size > 1:
        check_ranks(ranks, config, description)
    with ExitStack() as held:
        prepared = None
        try:
            for first in (True, False):  # rank 0 writes the tokenizer, texts and so on, which the others then read
                with fail_together(ranks):
                    if (ranks.rank == 0) is first:
                        prepared = _prepare(config, description, ranks, progress, held)
            assert prepared is not None
            module, source, validation = prepared
            engine = _engine(config, module, options, ranks)
            data = training_steps(config, module, source, ranks, config.training.steps)
            with noting_end(config.output) if ranks.rank == 0 else nullcontext():
                train(engine, data, config, config.output, report, validation)
        except (UserError, NotFiniteError, OtherRankError):
            if ranks.rank == 0 and prepared is not None and latest_checkpoint(config.output) is None:
                release(config.output)
            raise
    return config.output


def _configure(ranks: Ranks, config: RunConfig) -> dict[str, Any]:
    """Set torch's threads and determinism, and check the device; return DeepSpeed's options."""
    settings = config.training
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses deterministic products without it
        torch.use_deterministic_algorithms(True)
    with fail_together(ranks):
        choose_device(settings.device)  # before anything is written
        return {} if config.deepspeed is None else checked_options(settings, config.deepspeed, ranks.size)


def _prepare(
    config: RunConfig, description: dict[str, Any], ranks: Ranks, progress: NamedProgress, held: ExitStack
) -> tuple[TaskModule, ExampleSource, Validation | None]:
    """Claim the run's folder, and build model, losses, examples and validation in it."""
    run = config.output
    is_new = claim(config, description, held if ranks.rank == 0 else None)
    if not is_new:
        check_seal(run, but=TRAINED_ON)  # texts and images are prepared again if they are damaged
    store = RegionStore(config.regions, config.training.check_reads)
    known = None if is_new else known_texts(config)
    records = () if known is not None else task_of(config).read(config, store)
    if is_new:
        record(run, description)
    torch.manual_seed(config.seed)
    try:
        if ranks.rank == 0:
            (run / CHECKSUMS).unlink(missing_ok=True)  # a later version may write other descriptions
        module, source = build_task(config, store, records, known, progress)
        if ranks.rank == 0:
            seal_run(run)
        return module, source, build_validation(config, module, store, ranks, progress)
    except UserError:
        if is_new:
            release(run)
        raise


def training_steps(
    config: RunConfig, module: TaskModule, source: ExampleSource, ranks: Ranks, steps: int
) -> TrainingSteps:
    """Build the first `steps` optimiser steps of a run, for one rank."""
    settings = config.training
    return TrainingSteps(
        source,
        module.shape,
        seed=config.seed,
        steps=steps,
        rows_per_step=settings.rows_per_step,
        rows_per_micro_batch=settings.rows_per_micro_batch,
        rank=ranks.rank,
        ranks=ranks.size,
        plans=config.output / PLANS,
    )


def prepare_encoder(module: TaskModule, config: TrainingConfig) -> None:
    """Set activation checkpointing and compilation, which do not change what the encoder computes."""
    module.model.encoder.checkpoint_activations = config.checkpoint_activations
    if config.compile:
        module.model.encoder.compile_blocks()


def _engine(config: RunConfig, module: TaskModule, options: dict[str, Any], ranks: Ranks) -> Engine:
    prepare_encoder(module, config.training)
    if config.deepspeed is None:
        return TorchEngine(module, config.training)
    with new_group_timeout(config.deepspeed.timeout):
        return DeepSpeedEngine(module, config.training, options, ranks)
