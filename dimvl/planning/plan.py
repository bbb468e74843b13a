"""The plan of a run: its memory, compute and I/O on a cluster."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch

from dimvl.adapters.adding import add_adapter
from dimvl.config import DeepSpeedConfig, RunConfig, TrainingConfig
from dimvl.errors import UserError
from dimvl.model.flops import Flops, flops_by_part, part_of, split_sublayers
from dimvl.model.model import DimvlModel
from dimvl.model.work import Work
from dimvl.planning.cluster import Cluster
from dimvl.planning.data import DataOverrides, gather
from dimvl.planning.memory import (
    BUCKET,
    Numbers,
    StateBytes,
    arithmetic_of,
    batch_bytes,
    saved_bytes,
    temporary_bytes,
    torch_state_bytes,
    zero_state_bytes,
)
from dimvl.regions.store.format import FeatureDtype, estimated_bytes
from dimvl.tasks import task_of
from dimvl.tasks.costs import AverageExample, DataFacts
from dimvl.training.deepspeed_options import deepspeed_options
from dimvl.training.optimiser import freeze

DTYPES: tuple[FeatureDtype, ...] = ("float16", "int8")
MANY_EPOCHS = 300
"""More epochs are a mistake in most configurations; published ones have at most 200."""
FREE_SHARE = 0.1
"""Share of a GPU's memory reserved for the CUDA context, fragmentation and libraries."""


@dataclass(frozen=True, kw_only=True)
class AverageStep:
    """The average optimiser step.

    Attributes:
        examples: number of examples on all ranks.
        work: work of all ranks.
        micro_batches: number of micro-batches on each rank.
        micro_batch: work of one micro-batch.

    """

    examples: float
    work: Work
    micro_batches: int
    micro_batch: Work


@dataclass(frozen=True, kw_only=True)
class StageMemory(StateBytes):
    """Bytes on one GPU with one engine and ZeRO stage, besides those of `StateBytes`.

    Attributes:
        engine: `torch` or `deepspeed`.
        stage: ZeRO stage.
        activations: kept for the backward pass of a micro-batch.
        batch: the micro-batch itself, and the largest temporary.
        fits: whether `total` is within the memory, less the reserve.

    """

    engine: str
    stage: int
    activations: float
    batch: float
    fits: bool

    @property
    def total(self) -> float:
        """All bytes in memory."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.batch + self.buffers


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The estimated cost of a run.

    Attributes:
        cluster: the cluster to plan for.
        precision: precision of the run.
        facts: sizes of the data, and what was assumed about them.
        parameters: number of parameters by part; the word head shares its matrix with the word embedding.
        trained: number of trained parameters.
        prefixes: number of prefixes in an average example.
        step: the average optimiser step.
        flops: operations of an optimiser step over all GPUs, by part.
        memory: memory by engine and stage.
        configured: the configured ZeRO stage; None for the torch engine.
        peak: TFLOP/s of one GPU.
        seconds: seconds of compute in an optimiser step.
        steps: optimiser steps of the run.
        epochs: epochs in these steps; None if the number of images is unknown.
        image_bytes: bytes of one image's regions, by the type of the features in the store.
        store_bytes: bytes of the whole store, likewise; None if the number of images is unknown.

    """

    cluster: Cluster
    precision: str
    facts: DataFacts
    parameters: dict[str, int]
    trained: int
    prefixes: float
    step: AverageStep
    flops: dict[str, Flops]
    memory: tuple[StageMemory, ...]
    configured: int | None
    peak: float
    seconds: float
    steps: int
    epochs: float | None
    image_bytes: dict[FeatureDtype, float]
    store_bytes: dict[FeatureDtype, int] | None

    @property
    def flops_per_step(self) -> float:
        """Operations of an optimiser step over all GPUs, of all parts."""
        return sum(part.total for part in self.flops.values())

    @property
    def examples_per_second(self) -> float:
        """Examples per second on all GPUs if only compute takes time."""
        return self.step.examples / self.seconds

    @property
    def images_per_second(self) -> float:
        """Images read per second on all GPUs if only compute takes time."""
        return self.facts.images_per_prefix * self.prefixes * self.examples_per_second

    @property
    def remarks(self) -> list[str]:
        """What is unusual about the number of steps."""
        if self.epochs is None or 1 <= self.epochs <= MANY_EPOCHS:
            return []
        share = f"{self.epochs:.0%}" if self.epochs < 1 else f"{self.epochs:,.0f} epochs"
        verb = "raise" if self.epochs < 1 else "lower"
        return [
            f"{self.steps:,} steps see {share} of {self.facts.images:,} images, and one epoch has "
            f"{max(1, self.steps / self.epochs):,.0f}; {verb} training.steps, unless this is meant"
        ]

    @property
    def fitting(self) -> StageMemory | None:
        """The first engine and lowest stage that fit; lower stages send less and do less work."""
        return next((memory for memory in self.memory if memory.fits), None)


def make_plan(config: RunConfig, cluster: Cluster, overrides: DataOverrides | None = None) -> Plan:
    """Estimate a run on a cluster from its configuration; no weights are allocated, and the data need not exist.

    Raises:
        UserError: a row budget below one example, fewer images than a contrastive group needs, self-critical training,
            DeepSpeed options that contradict the configuration, a cluster value out of range, or a damaged file.

    """
    _check(cluster)
    if config.deepspeed is not None:
        deepspeed_options(config.training, config.deepspeed, cluster.gpus)
    facts = gather(config, overrides or DataOverrides())
    model = meta_model(config, facts)
    example = average_example(config, facts)
    step = average_step(config.training, example, cluster.gpus)
    flops = flops_by_part(model, step.work, config.training.checkpoint_activations)
    peak = cluster.peak_at(config.training.precision)
    reached = cluster.gpus * peak * 1e12 * cluster.utilisation
    epochs = None
    if facts.images is not None:
        epoch = facts.images * facts.prefixes_per_image * example.per_prefix
        epochs = config.training.steps * step.examples * example.prefixes / epoch
    return Plan(
        cluster=cluster,
        precision=config.training.precision,
        facts=facts,
        parameters=parameters_by_part(model),
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        prefixes=example.prefixes,
        step=step,
        flops=flops,
        memory=tuple(_memory(model, config, step, cluster, facts.feature_dtype)),
        configured=None if config.deepspeed is None else config.deepspeed.stage,
        peak=peak,
        seconds=sum(part.total for part in flops.values()) / reached,
        steps=config.training.steps,
        epochs=epochs,
        image_bytes={dtype: float(_store_bytes(1, facts, dtype, index=False)) for dtype in DTYPES},
        store_bytes=None if facts.images is None else {d: _store_bytes(facts.images, facts, d) for d in DTYPES},
    )


def _check(cluster: Cluster) -> None:
    if not 0 < cluster.utilisation <= 1:
        raise UserError(f"--utilisation is {cluster.utilisation:g}; it must be above 0 and at most 1")
    for name in ("gpu_memory", "peak"):
        value = getattr(cluster, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} is {value:g}; it must be above 0")


def average_example(config: RunConfig, facts: DataFacts) -> AverageExample:
    """Return the cost of an average example of the run's task.

    Raises:
        UserError: self-critical training, or fewer images than a contrastive group needs.

    """
    task = task_of(config)
    if task.draws_in_steps:
        raise UserError(
            "self_critical draws captions in every step, which the plan does not count; plan without drawing, by "
            "self_critical=null"
        )
    return task.average_example(config, facts)


def average_step(training: TrainingConfig, example: AverageExample, ranks: int) -> AverageStep:
    """Fill the row budget of a step and split it over ranks and micro-batches, as the sampler does.

    Upper bounds of rows (`ExampleSource.costs`) fill the budget; the work is that of texts of average length.

    Raises:
        UserError: the budget is less than one example, or less than one per rank.

    """
    if example.cost > training.rows_per_step:
        raise UserError(
            f"training.rows_per_step {training.rows_per_step} is below the {example.cost:.0f} rows of an average "
            "example; raise it"
        )
    examples = training.rows_per_step / example.cost
    if examples < ranks:
        raise UserError(
            f"a step of training.rows_per_step {training.rows_per_step} has {examples:.1f} examples of average size, "
            f"fewer than --gpus {ranks}, so some GPUs would be idle; lower --gpus or raise rows_per_step"
        )
    micro_batches = max(1, -(-training.rows_per_step // (ranks * training.rows_per_micro_batch)))
    work = example.work * examples + example.per_micro_batch * (ranks * micro_batches)
    micro_batch = work * (1 / (ranks * micro_batches))
    return AverageStep(examples=examples, work=work, micro_batches=micro_batches, micro_batch=micro_batch)


def meta_model(config: RunConfig, facts: DataFacts) -> DimvlModel:
    """Build the run's network on the meta device with its adapter, and freeze what the run freezes.

    Raises:
        UserError: more layers are frozen, or trained as an adapter, than the model has; or peft is not installed.

    """
    arguments = {
        **config.model.model_dump(exclude={"bert"}),
        "vocabulary": facts.vocabulary,
        "max_images": config.inputs.max_images,
        "times": config.inputs.times,
        "region_words": config.inputs.region_words,
        "feature_width": facts.feature_width,
        "max_positions": facts.max_positions,
        **task_of(config).heads(config, facts.classes, facts.answers),
    }
    with torch.device("meta"):
        model = DimvlModel(**arguments)
    freeze(model, config.training.freeze)
    if config.adapter is not None:
        with torch.device("meta"):
            add_adapter(model, config.adapter)
    return model


def parameters_by_part(model: DimvlModel) -> dict[str, int]:
    """Count the parameters by part of the model; shared ones count once, in the first part."""
    parts: dict[str, int] = {}
    split = split_sublayers(model)
    for name, parameter in model.named_parameters():
        part = part_of(name, name.startswith(split))
        parts[part] = parts.get(part, 0) + parameter.numel()
    return parts


def _memory(
    model: DimvlModel, config: RunConfig, step: AverageStep, cluster: Cluster, feature_dtype: FeatureDtype
) -> Iterator[StageMemory]:
    """Yield the memory with the torch engine (only for one GPU) and with DeepSpeed at each stage."""
    engines = ([("torch", 0)] if cluster.gpus == 1 else []) + [("deepspeed", stage) for stage in range(4)]
    limit = (1 - FREE_SHARE) * cluster.gpu_memory * 1e9
    for engine, stage in engines:
        found = stage_memory(
            model, config, step.micro_batch, engine=engine, stage=stage, ranks=cluster.gpus, feature_dtype=feature_dtype
        )
        yield replace(found, fits=found.total <= limit)


def stage_memory(
    model: DimvlModel,
    config: RunConfig,
    work: Work,
    *,
    engine: str,
    stage: int,
    ranks: int = 1,
    feature_dtype: FeatureDtype = "float16",
    gpu: bool = True,
) -> StageMemory:
    """Return the memory that one process needs with an engine and stage; `fits` is left False.

    Args:
        model: on any device.
        config: the run's configuration.
        work: work of a micro-batch.
        engine: `torch` or `deepspeed`.
        stage: ZeRO stage.
        ranks: number of processes.
        feature_dtype: type of the features in the store.
        gpu: whether it runs on a GPU.

    """
    training, section = config.training, config.deepspeed or DeepSpeedConfig()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    muon = [p for name, p in trained.items() if training.muon_rate and p.ndim > 1 and name.startswith("encoder.")]
    counts = [sum(p.numel() for p in group) for group in (model.parameters(), trained.values(), muon)]
    arithmetic = arithmetic_of(training.precision, stage)
    if engine == "torch":
        states = torch_state_bytes(*counts)
    else:
        states = zero_state_bytes(*counts, arithmetic=arithmetic, stage=stage, ranks=ranks, bucket=_bucket(section))
        if section.offload_optimizer and stage:
            states = replace(states, optimiser=0.0)
        if section.offload_parameters and stage == 3:
            states = replace(states, weights=0.0)
    recompute, dropout = training.checkpoint_activations, model.tokens.dropout.p > 0
    numbers = Numbers(arithmetic=arithmetic, gpu=gpu, dropout=dropout, recompute=recompute)
    return StageMemory(
        engine=engine,
        stage=stage,
        **asdict(states),
        activations=sum(saved_bytes(model, work, numbers).values()),
        batch=batch_bytes(model, work, feature_dtype) + temporary_bytes(model, work, numbers),
        fits=False,
    )


def _bucket(section: DeepSpeedConfig) -> int:
    size = section.options.get("zero_optimization", {}).get("reduce_bucket_size", BUCKET)
    if not isinstance(size, int | float):
        raise UserError(
            f"deepspeed.options.zero_optimization.reduce_bucket_size is {size!r}; give a number, such as {BUCKET}"
        )
    return int(size)


def _store_bytes(images: int, facts: DataFacts, dtype: FeatureDtype, index: bool = True) -> int:
    whole = estimated_bytes(
        images,
        facts.regions / facts.images_per_prefix,
        facts.feature_width,
        feature_dtype=dtype,
        class_columns=facts.class_columns,
        attribute_columns=facts.attribute_columns,
    )
    return whole if index else whole - estimated_bytes(images, 0, facts.feature_width)
