"""The DeepSpeed engine: ZeRO 0 to 3 on one or many devices, with the results of the torch engine up to rounding.

Only this file imports deepspeed. It works around the following behaviour of DeepSpeed 0.19:

- Gradients are averaged over ranks, but the loop's loss is divided by global counts: multiply the loss by the ranks.
- The number of micro-batches per step is fixed, but here it varies: the loop says which one is the last.
- A non-finite gradient is applied to the weights at stage 0 and silently skipped at the others: check the norm before
  the step at stage 0, and whether the step was applied at the others.
- In bf16 the fp32 masters are made from weights that are already rounded: restore the exact ones.
- Operators are compiled at first use, which takes minutes, and a process killed meanwhile leaves a lock that makes
  every later run hang: use none of them, and disable the one that is compiled by default.
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
from dimvl.training.deepspeed_options import check_known, deepspeed_options
from dimvl.training.engine import plain_state, restore_plain_state, restore_schedule
from dimvl.training.optimiser import build_optimiser, build_schedule, freeze
from dimvl.training.ranks import Ranks, all_ranks
from dimvl.training.state import State

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's


def checked_options(training: TrainingConfig, config: DeepSpeedConfig, ranks: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    Raises:
        UserError: deepspeed is not installed, or one of the user's keys is unknown, contradicts the configuration or
            has a value that DeepSpeed rejects.

    """
    options = deepspeed_options(training, config, ranks)
    deepspeed = _deepspeed()
    zero = deepspeed.runtime.zero.config.DeepSpeedZeroConfig.model_fields
    known = [*zero, *(field.alias for field in zero.values() if field.alias)]
    check_known(options["zero_optimization"], known, "deepspeed.options.zero_optimization")
    try:
        deepspeed.DeepSpeedConfig(deepcopy(options))
    except Exception as error:  # DeepSpeed raises many types
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            place = f"{'.'.join(map(str, first['loc']))} is {first['input']!r}: " if first["loc"] else ""
            reason = place + first["msg"]
        raise UserError(f"deepspeed.options: DeepSpeed rejects them ({reason}); correct that key") from error
    return options


class DeepSpeedEngine:
    """DeepSpeed; see `Engine` for the methods.

    Args:
        task: the task with its initial weights, on the CPU.
        training: optimisation and precision.
        options: DeepSpeed's configuration, from `checked_options`.
        ranks: the connected ranks.

    """

    def __init__(self, task: TaskModule, training: TrainingConfig, options: dict[str, Any], ranks: Ranks) -> None:
        deepspeed = _deepspeed()
        self.utils, self.gathered = deepspeed.utils, deepspeed.zero.GatheredParameters
        self.ranks, self.stage = ranks, int(options["zero_optimization"]["stage"])
        self.device = choose_device(training.device)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.task = task.train()
        if self.stage < 3:
            self.task.to(self.device)
        freeze(task.model, training.freeze)
        whole = (*task.model.named_parameters(), *task.model.named_buffers())
        exact = {name: tensor.detach().cpu().clone() for name, tensor in whole}
        self.optimiser = build_optimiser(task.model, training)
        self.schedule = build_schedule(self.optimiser, training)
        with redirect_stdout(io.StringIO()):  # it prints its memory use
            self.engine = deepspeed.initialize(
                model=task, optimizer=self.optimiser, config=options, dist_init_required=False
            )[0]
        self.task.all_ranks = lambda flag: all_ranks(ranks, flag)
        self.counters = self._make_moments() if self.stage else []
        for name, weight in task.model.named_parameters():
            self._set_weight(weight, exact[name])
        self.frozen = {n: exact[n] for n, weight in self._weights() if not weight.requires_grad}
        for name, buffer in task.model.named_buffers():  # in bf16 DeepSpeed rounds them too
            buffer.data = exact[name].to(self.device)

    def _weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the weights that a checkpoint has: all, or those of an adapter."""
        own = self.task.model.trained
        return ((n, weight) for n, weight in self.task.model.named_parameters() if own is None or n in own)

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers that a checkpoint has."""
        return self.task.model.named_buffers() if self.task.model.trained is None else iter(())

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return summed losses by name."""
        losses: dict[str, Tensor] = self.engine(batch.to(self.device))
        return losses

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Accumulate gradients; after the last micro-batch they are summed over ranks."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(loss * self.ranks.size)

    def step(self) -> float:
        """Clip, update, advance, unless the norm is not finite."""
        norm = torch.zeros(())
        if self.stage == 0:  # gradients are whole and already summed
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
        """The learning rate of the next step."""
        return float(max(self.schedule.get_last_lr()))

    def state(self) -> State:
        """Copy weights and optimiser state to the CPU memory of rank 0, one weight at a time."""
        weights = {name: self._kept(self._full(weight, name)) for name, weight in self._weights()}
        weights |= {name: self._kept(buffer) for name, buffer in self._buffers()}
        steps = self.schedule.last_epoch
        if self.stage == 0:
            plain = plain_state(self.task.model, self.optimiser)
            optimiser = {name: self._kept(value) for name, value in plain.items()}
        else:
            whole = self.utils.safe_get_full_optimizer_state
            trained = [(name, weight) for name, weight in self._weights() if weight.requires_grad]
            optimiser = {f"{name}.{key}": self._kept(whole(weight, key)) for name, weight in trained for key in MOMENTS}
            optimiser |= {f"{name}.step": torch.tensor(float(steps)) for name, _ in trained}
        return State(weights, optimiser, steps) if self.ranks.rank == 0 else State({}, {}, steps)

    def _kept(self, value: Tensor) -> Tensor:
        """Copy a gathered value on rank 0; other ranks drop it."""
        return value.detach().to("cpu", torch.float32, copy=True) if self.ranks.rank == 0 else value.new_empty(0)

    def _full(self, weight: nn.Parameter, name: str) -> Tensor:
        """Return the whole fp32 master of a weight."""
        if name in self.frozen:
            return self.frozen[name]
        full: Tensor = weight if self.stage == 0 else self.utils.safe_get_full_fp32_param(weight)
        return full

    def restore(self, state: State) -> None:
        """Load a state; each rank takes its part."""
        for name, weight in self._weights():
            self._set_weight(weight, state.weights[name])
        self.frozen = {name: state.weights[name] for name in self.frozen}
        for name, buffer in self._buffers():
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
        """Set a weight in the precision of its use, and its fp32 master."""
        value = value.to(self.device)
        with self.gathered([weight], modifier_rank=0, enabled=self.stage == 3):
            if self.stage < 3 or self.ranks.rank == 0:
                weight.copy_(value)
        if self.stage and weight.requires_grad:
            self._set_master(weight, value)

    def _set_master(self, weight: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Set this rank's part of a master, or of its optimiser state `key`."""
        utils = self.utils
        if self.stage == 3:  # DeepSpeed cannot set a whole tensor whose size is not a multiple of the ranks
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
        """Create the optimiser's state, so that it can be set before the first step; return its step counters.

        The optimiser itself would create it in its first step. DeepSpeed links the state to the weights after the first
        parameter group, when the state of the other groups does not exist yet.
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


def _deepspeed() -> Any:
    """Import deepspeed without output on stdout and without the operator that it compiles at every start.

    Raises:
        UserError: it is not installed.

    """
    os.environ.setdefault("LOCAL_RANK", "0")  # required even without a launcher
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            "the section deepspeed needs the package deepspeed; install it with pip install 'dimvl[deepspeed]'"
        ) from None
    logger = deepspeed.utils.logger
    logger.setLevel(logging.ERROR)  # the loop reports a step that was not applied
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
