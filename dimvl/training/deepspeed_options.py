"""DeepSpeed's configuration, from the configuration of a run.

Every key that affects results is set, because DeepSpeed's defaults would change them silently: without
`gradient_clipping` it clips at 1.0, and without `overlap_comm` the choice depends on the stage. The user's
`deepspeed.options` are merged into it. They must not contradict what dimvl sets from other options, and keys that
DeepSpeed would ignore are rejected.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from dimvl.config import DeepSpeedConfig, TrainingConfig, merge
from dimvl.errors import UserError

# Keys of `zero_optimization` that need DeepSpeed's quantizer, which is compiled with CUDA and missing on a CPU.
COMPILED = ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights")
# Keys that dimvl sets, and what sets them.
SETTLED = {
    "train_batch_size": "training.rows_per_step",
    "train_micro_batch_size_per_gpu": "training.rows_per_micro_batch",
    "gradient_accumulation_steps": "training.rows_per_micro_batch",
    "managed_gradient_accumulation": "training.rows_per_micro_batch",
    "gradient_clipping": "training.clip",
    "prescale_gradients": "the loss, which is divided by global counts",
    "gradient_predivide_factor": "the loss, which is divided by global counts",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "amp": "training.precision",
    "torch_autocast": "training.precision",
    "data_types": "training.precision",
    "optimizer": "training.learning_rate and related options",
    "scheduler": "training.schedule",
    "checkpoint": "training.save_every and training.keep",
    "activation_checkpointing": "training.checkpoint_activations",
    "zero_force_ds_cpu_optimizer": "deepspeed.offload_optimizer",
    "zero_optimization.stage": "deepspeed.stage",
    "zero_optimization.zero_hpz_partition_size": "the number of ranks, all of which share each weight",
    "zero_optimization.offload_optimizer.device": "deepspeed.offload_optimizer",
    "zero_optimization.offload_param.device": "deepspeed.offload_parameters",
    # Their old names, which DeepSpeed still reads.
    "zero_optimization.cpu_offload": "deepspeed.offload_optimizer",
    "zero_optimization.cpu_offload_param": "deepspeed.offload_parameters",
    # In DeepSpeed 0.19 this makes stages 1 and 2 take the master of another weight.
    "zero_optimization.round_robin_gradients": "the order of weights, by which each finds its fp32 master",
    "zero_optimization.compute_grad_norm": "the check for non-finite gradients",
    # These need DeepSpeed's own optimisers, or ones that no longer exist.
    "zero_optimization.zenflow": "torch's optimiser",
    "zero_optimization.legacy_stage1": "deepspeed.stage",
    "zero_optimization.offload_optimizer.ratio": "torch's optimiser",
    "zero_optimization.offload_optimizer.super_offload": "torch's optimiser",
    **{f"zero_optimization.{name}": "the rule that nothing is compiled at first use" for name in COMPILED},
}
# Other useful top-level keys of DeepSpeed's configuration; it ignores unknown ones.
FREE = (
    *("zero_optimization", "communication_data_type", "steps_per_print", "wall_clock_breakdown"),
    *("dump_state", "memory_breakdown", "comms_logger", "flops_profiler", "disable_python_gc"),
)


def deepspeed_options(training: TrainingConfig, config: DeepSpeedConfig, ranks: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    Args:
        training: optimisation and precision.
        config: stage, offloading and the user's own keys.
        ranks: number of processes.

    Raises:
        UserError: one of the user's keys is unknown or contradicts the rest of the configuration.

    """
    options = _settled(training, config, ranks)
    check_known(config.options, [*SETTLED, *FREE])
    for name, own in options.items():
        if isinstance(own, dict) and not isinstance(config.options.get(name, {}), dict):
            raise UserError(f"deepspeed.options.{name} is {config.options[name]!r}, not a mapping; give its keys")
    merged = merge(options, config.options)
    for name, owner in SETTLED.items():
        given, own = _look_up(config.options, name), _look_up(options, name)
        if _look_up(merged, name) != own:
            raise UserError(f"deepspeed.options.{name} is {given!r}, but it is set by {owner} ({own!r}); remove it")
    return merged


def _settled(training: TrainingConfig, config: DeepSpeedConfig, ranks: int) -> dict[str, Any]:
    bf16, zero = training.precision == "bf16", config.stage > 0
    options: dict[str, Any] = {
        # Nominal: the loop cuts micro-batches by rows and says which one is the last of a step.
        "train_batch_size": ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": True,
        "gradient_clipping": training.clip,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": "fp32",
        "fp16": {"enabled": False},
        "bf16": {
            "enabled": bf16 and zero,
            "check_grad_overflow": True,
            "bf16_master_weights_and_grads": False,
            "bf16_optimizer_states": False,
        },
        # Stage 0 has no fp32 masters, so there bf16 is autocast over fp32 weights, as in the torch engine.
        "torch_autocast": {"enabled": bf16 and not zero, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, which needs no compiler, also on the CPU
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "zero_optimization": {
            "stage": config.stage,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": config.stage == 3,
            "round_robin_gradients": False,
            "compute_grad_norm": True,
            **dict.fromkeys(COMPILED, False),
            "ignore_unused_parameters": False,
            "zero_hpz_partition_size": 1,  # larger values need separate process groups
        },
    }
    if config.offload_optimizer:
        options["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if config.offload_parameters:
        options["zero_optimization"]["offload_param"] = {"device": "cpu", "pin_memory": False}
    return options


def check_known(given: Mapping[str, Any], known: Iterable[str], place: str = "deepspeed.options") -> None:
    """Raise a `UserError` for a key that DeepSpeed does not know; `place` says where it was given."""
    names = sorted({name.split(".")[0] for name in known})
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"keys are {', '.join(names)}"
            raise UserError(f"{place}: unknown key {key!r}, which DeepSpeed would ignore; {hint}")


def _look_up(options: Mapping[str, Any], name: str) -> Any:
    value: Any = options
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
