"""What the loop asks of an engine, and the plain torch engine: one process, the reference."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from dimvl.config import TrainingConfig
from dimvl.cpu.memory import keep_freed_memory
from dimvl.data.batch import Batch
from dimvl.pretrained import choose_device
from dimvl.tasks.base import Task
from dimvl.training.optimiser import build_optimiser, build_schedule, freeze
from dimvl.training.ranks import Ranks, SingleProcess
from dimvl.training.state import State, copied, saved_tensors


class Engine(Protocol):
    """Forward, backward, step, and its own state. The loop does not know which engine it has.

    All ranks call the same methods in the same order.
    """

    task: Task
    device: torch.device
    ranks: Ranks

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a micro-batch by name, summed over its targets."""
        ...

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add gradients of a loss that is already divided by the global counts.

        Args:
            loss: of one micro-batch of this rank.
            is_last: no further micro-batch before the step; all ranks have as many.

        """
        ...

    def step(self) -> float:
        """Clip, update the weights, advance the schedule; return the norm of the gradient before clipping.

        A norm that is not finite is returned without an update.
        """
        ...

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        ...

    def state(self) -> State:
        """Weights and optimiser state, whole, copied to the CPU memory of rank 0; nothing on the others."""
        ...

    def restore(self, state: State) -> None:
        """Take over a state, which every rank has read."""
        ...


class TorchEngine:
    """One process, plain torch. bf16 is autocast over fp32 weights."""

    def __init__(self, task: Task, config: TrainingConfig) -> None:
        self.ranks: Ranks = SingleProcess()
        self.device = choose_device(config.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.config = config
        self.task = task.to(self.device).train()
        freeze(task.model, config.freeze)
        self.optimiser = build_optimiser(task.model, config)
        self.schedule = build_schedule(self.optimiser, config)

    def _precision(self) -> AbstractContextManager[object]:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a micro-batch by name, summed over its targets."""
        with self._precision():
            return self.task(batch.to(self.device))

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add gradients."""
        loss.backward()

    def step(self) -> float:
        """Clip, update, advance; a norm that is not finite is returned without an update."""
        norm = torch.nn.utils.clip_grad_norm_(self.task.parameters(), self.config.clip)
        value = float(norm)
        if norm.isfinite():
            self.optimiser.step()
            self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        return value

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        return float(max(self.schedule.get_last_lr()))

    def state(self) -> State:
        """Copy weights and optimiser state."""
        weights, optimiser = saved_tensors(self.task.model), plain_state(self.task.model, self.optimiser)
        return State(copied(weights), copied(optimiser), self.schedule.last_epoch)

    def restore(self, state: State) -> None:
        """Take over a state."""
        with torch.no_grad():
            for name, weight in saved_tensors(self.task.model).items():
                weight.copy_(state.weights[name])
        restore_plain_state(self.task.model, self.optimiser, state)
        restore_schedule(self.schedule, state.steps)


def plain_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimiser over the model's own weights, by `weight name.state name`."""
    return {
        f"{name}.{key}": value
        for name, weight in model.named_parameters()
        for key, value in optimiser.state.get(weight, {}).items()
    }


def restore_plain_state(model: nn.Module, optimiser: torch.optim.Optimizer, state: State) -> None:
    """Give such an optimiser its state back."""
    places = {id(weight): place for place, weight in enumerate(w for g in optimiser.param_groups for w in g["params"])}
    found = {places[id(weight)]: state.of(name) for name, weight in model.named_parameters() if id(weight) in places}
    optimiser.load_state_dict({**optimiser.state_dict(), "state": found})


def restore_schedule(schedule: LambdaLR, steps: int) -> None:
    """Set the schedule and the rates of its optimiser to what they are after so many steps."""
    schedule.load_state_dict({**schedule.state_dict(), "last_epoch": steps, "_step_count": steps + 1})
    groups = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, base, rate in groups:
        group["lr"] = base * rate(steps)
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]
