"""The DeepSpeed engine: ZeRO 0 to 3 on one device or many, the same numbers as the torch engine up to rounding.

Only this file imports deepspeed. What it must undo or guard, all seen in DeepSpeed 0.19:

- gradients are averaged over ranks, while the loop's loss is divided by global counts: the loss is multiplied by the
  number of ranks;
- the number of micro-batches of a step varies: the loop says which one is the last;
- a gradient that is not finite is written into the weights at stage 0 and skipped in silence at the others: at stage 0
  the norm is looked at before the step, at the others a step that was not applied is told;
- in bf16 the fp32 masters are made from weights that were rounded already: they get the exact ones back;
- operators are compiled at first use, for minutes, and a process that is killed meanwhile leaves a lock that makes
  every later run hang: nothing here needs one, and the one that is compiled without asking is switched off.
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn

from dimvl.config import DeepSpeedConfig, TrainingConfig
from dimvl.data.batch import Batch
from dimvl.errors import UserError
from dimvl.tasks.base import TaskModule
from dimvl.trained_model import choose_device
from dimvl.training.deepspeed_options import check_zero_keys, deepspeed_options
from dimvl.training.engine import plain_state, restore_plain_state, restore_schedule
from dimvl.training.optimiser import build_optimiser, build_schedule, freeze
from dimvl.training.ranks import Ranks, all_ranks
from dimvl.training.state import State, saved_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


def checked_options(training: TrainingConfig, config: DeepSpeedConfig, ranks: int) -> dict[str, Any]:
    """Return DeepSpeed's JSON.

    Raises:
        UserError: deepspeed is not installed; a key of the user is unknown or contradicts the configuration, or
            DeepSpeed does not take its value.

    """
    options = deepspeed_options(training, config, ranks)
    deepspeed = _deepspeed()
    zero = deepspeed.runtime.zero.config.DeepSpeedZeroConfig.model_fields
    check_zero_keys(options, [*zero, *(field.alias for field in zero.values() if field.alias)])
    try:
        deepspeed.DeepSpeedConfig(deepcopy(options))
    except Exception as error:  # of many types, by rules that are spread over its code
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            place = f"{'.'.join(map(str, first['loc']))} is {first['input']!r}: " if first["loc"] else ""
            reason = place + first["msg"]
        raise UserError(f"deepspeed.options: DeepSpeed does not take them ({reason}); correct that key") from error
    return options


class DeepSpeedEngine:
    """A task under DeepSpeed; see `Engine` for the methods.

    Args:
        task: still on the CPU, with the weights to start from.
        training: optimisation and precision.
        options: DeepSpeed's JSON, from `checked_options`.
        ranks: that have met.

    """

    def __init__(self, task: TaskModule, training: TrainingConfig, options: dict[str, Any], ranks: Ranks) -> None:
        deepspeed = _deepspeed()
        self.ranks, self.stage = ranks, int(options["zero_optimization"]["stage"])
        self.device = choose_device(training.device)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.task = task.train()
        if self.stage < 3:
            self.task.to(self.device)
        freeze(task.model, training.freeze)
        exact = {name: tensor.detach().cpu().clone() for name, tensor in saved_tensors(task.model).items()}
        self.optimiser = build_optimiser(task.model, training)
        self.schedule = build_schedule(self.optimiser, training)
        with redirect_stdout(io.StringIO()):  # it prints how much memory it uses
            self.engine = deepspeed.initialize(
                model=task, optimizer=self.optimiser, config=options, dist_init_required=False
            )[0]
        self.task.all_ranks = lambda flag: all_ranks(ranks, flag)
        self.counters = self._make_moments() if self.stage else []
        self.frozen = {n: exact[n] for n, weight in self._weights() if not weight.requires_grad}
        for name, weight in self._weights():
            self._set_weight(weight, exact[name])
        for name, buffer in task.model.named_buffers():  # in bf16 DeepSpeed rounds them as well
            buffer.data = exact[name].to(self.device)

    def _weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.task.model.named_parameters()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a micro-batch by name, summed over its targets."""
        losses: dict[str, Tensor] = self.engine(batch.to(self.device))
        return losses

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add gradients; the last micro-batch of a step sums them over ranks."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(loss * self.ranks.size)

    def step(self) -> float:
        """Clip, update, advance; a norm that is not finite is returned without an update."""
        norm = torch.zeros(())
        if self.stage == 0:  # the gradients are whole here, and summed already
            gradients = [weight.grad for _, weight in self._weights() if weight.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            if not norm.isfinite():
                self.engine.zero_grad()
                return float(norm)
        self.engine.step()
        if not self.engine.was_step_applied():
            return float("nan")
        self.schedule.step()
        return float(norm if self.stage == 0 else self.engine.get_global_grad_norm())

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        return float(max(self.schedule.get_last_lr()))

    def state(self) -> State:
        """Copy weights and optimiser state, one weight after the other, into the CPU memory of rank 0."""
        weights = {name: self._kept(self._full(weight, name)) for name, weight in self._weights()}
        weights |= {name: self._kept(buffer) for name, buffer in self.task.model.named_buffers()}
        steps = self.schedule.last_epoch
        if self.stage == 0:
            optimiser = {
                name: self._kept(value) for name, value in plain_state(self.task.model, self.optimiser).items()
            }
        else:
            optimiser = {
                f"{name}.{key}": self._kept(_utils().safe_get_full_optimizer_state(weight, key))
                for name, weight in self._weights()
                if weight.requires_grad
                for key in MOMENTS
            }
            optimiser |= {
                f"{name}.step": torch.tensor(float(steps)) for name, weight in self._weights() if weight.requires_grad
            }
        return State(weights, optimiser, steps) if self.ranks.rank == 0 else State({}, {}, steps)

    def _kept(self, value: Tensor) -> Tensor:
        """What rank 0 keeps of a gathered value; the others need not."""
        return value.detach().to("cpu", torch.float32, copy=True) if self.ranks.rank == 0 else value.new_empty(0)

    def _full(self, weight: nn.Parameter, name: str) -> Tensor:
        """Fp32 master of a weight, whole."""
        if name in self.frozen:
            return self.frozen[name]
        full: Tensor = weight if self.stage == 0 else _utils().safe_get_full_fp32_param(weight)
        return full

    def restore(self, state: State) -> None:
        """Take over a state; each rank takes its part."""
        for name, weight in self._weights():
            self._set_weight(weight, state.weights[name])
        self.frozen = {name: state.weights[name] for name in self.frozen}
        for name, buffer in self.task.model.named_buffers():
            buffer.copy_(state.weights[name])
        if self.stage == 0:
            restore_plain_state(self.task.model, self.optimiser, state)
        else:
            for counter in self.counters:
                counter.fill_(state.steps)
            for name, weight in self._weights():
                if weight.requires_grad:
                    for key in MOMENTS:
                        self._set_master(weight, state.optimiser[f"{name}.{key}"], key)
        restore_schedule(self.schedule, state.steps)

    @torch.no_grad()
    def _set_weight(self, weight: nn.Parameter, value: Tensor) -> None:
        """Set the fp32 master of a weight, and the weight in the precision that it is used in."""
        import deepspeed

        value = value.to(self.device)
        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=self.stage == 3):
            if self.stage < 3 or self.ranks.rank == 0:
                weight.copy_(value)
        if self.stage and weight.requires_grad:
            self._set_master(weight, value)

    def _set_master(self, weight: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Set this rank's part of a master or of its optimiser state."""
        utils = _utils()
        if self.stage == 3:  # DeepSpeed cannot set a whole one whose size the ranks do not divide
            part: Any = weight.ds_tensor.numel()  # type: ignore[attr-defined]
            padded = value.new_zeros(part * self.ranks.size)
            padded[: value.numel()] = value.flatten()
            value = padded[part * self.ranks.rank : part * (self.ranks.rank + 1)]
            if key is None:
                utils.safe_set_local_fp32_param(weight, value)
            else:
                utils.safe_set_local_optimizer_state(weight, value, key)
        elif key is None:
            utils.safe_set_full_fp32_param(weight, value)
        else:
            utils.safe_set_full_optimizer_state(weight, value, key)

    def _make_moments(self) -> list[Tensor]:
        """Make the optimiser's state, so that it can be set before the first step; return the counters of steps.

        The optimiser would make it at its first step. DeepSpeed then links it to the weights after the first of its
        groups, when that of the other groups is not there yet.
        """
        zero, counters = self.engine.optimizer, []
        stage3 = getattr(zero, "fp32_partitioned_groups_flat", None)
        for part in stage3 or [weight for group in self.optimiser.param_groups for weight in group["params"]]:
            on = part.device if self.optimiser.defaults["fused"] else "cpu"
            counters.append(torch.tensor(0.0, device=on))
            made = {key: torch.zeros_like(part, requires_grad=False) for key in MOMENTS}
            self.optimiser.state[part] = {"step": counters[-1], **made}
        if stage3 is None:
            zero._lazy_init_hp_params_optimizer_state()
        return counters


def _utils() -> Any:
    import deepspeed.utils

    return deepspeed.utils


def _deepspeed() -> Any:
    """Import deepspeed, quiet on stdout and without its operator that is compiled at every start.

    Raises:
        UserError: it is not installed.

    """
    os.environ.setdefault("LOCAL_RANK", "0")  # it insists on one, without a launcher too
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            "the section deepspeed needs the package deepspeed; install it with pip install 'dimvl[deepspeed]'"
        ) from None
    logger = deepspeed.utils.logger
    logger.setLevel(logging.ERROR)  # a step that was not applied is told by the loop
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)  # stdout is for results
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning
    )  # DeepSpeed's own calls
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed("nccl" if dist.get_backend() == "nccl" else "gloo", auto_mpi_discovery=False)
    return deepspeed
