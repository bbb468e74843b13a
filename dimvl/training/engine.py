"""The engine interface of the training loop, and the torch engine: one process, the reference."""

from collections import defaultdict
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from dimvl.config import TrainingConfig
from dimvl.cpu.memory import keep_freed_memory
from dimvl.data.batch import Batch
from dimvl.tasks.base import TaskModule
from dimvl.trained_model import choose_device
from dimvl.training.optimiser import build_optimiser, build_schedule, freeze
from dimvl.training.ranks import Ranks, SingleProcess
from dimvl.training.state import State, copied, saved_tensors


class Engine(Protocol):
    """Forward, backward, step and state; all ranks call the same methods in the same order."""

    task: TaskModule
    device: torch.device
    ranks: Ranks

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a micro-batch by name, each summed over its targets."""
        ...

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Accumulate the gradients of a loss that is already divided by the global counts.

        Args:
            loss: the loss of one micro-batch of this rank.
            is_last: whether the step follows; all ranks have the same number of micro-batches.

        """
        ...

    def step(self) -> float:
        """Clip, update the weights and advance the schedule; return the gradient norm before clipping.

        If the norm is not finite, the weights stay as they are.
        """
        ...

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        ...

    def state(self) -> State:
        """Copy whole weights and optimiser state to the CPU memory of rank 0; other ranks get nothing."""
        ...

    def restore(self, state: State) -> None:
        """Load a state, which every rank has read."""
        ...


class TorchEngine:
    """Plain torch in one process; see `Engine` for the methods. bf16 is autocast over fp32 weights."""

    def __init__(self, task: TaskModule, config: TrainingConfig) -> None:
        self.ranks: Ranks = SingleProcess()
        self.device = choose_device(config.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.config = config
        self.task = task.to(self.device).train()
        freeze(task.model, config.freeze)
        self.optimiser = build_optimiser(task.model, config)
        self.schedule = build_schedule(self.optimiser, config)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return summed losses by name."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.task(batch.to(self.device))

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Accumulate gradients."""
        loss.backward()

    def step(self) -> float:
        """Clip, update, advance, unless the norm is not finite."""
        norm = torch.nn.utils.clip_grad_norm_(self.task.parameters(), self.config.clip)
        value = float(norm)
        if norm.isfinite():
            self.optimiser.step()
            self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        return value

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(max(self.schedule.get_last_lr()))

    def state(self) -> State:
        """Copy weights and optimiser state."""
        weights, optimiser = saved_tensors(self.task.model), plain_state(self.task.model, self.optimiser)
        return State(copied(weights), copied(optimiser), self.schedule.last_epoch)

    def restore(self, state: State) -> None:
        """Load a state."""
        with torch.no_grad():
            for name, weight in saved_tensors(self.task.model).items():
                weight.copy_(state.weights[name])
        restore_plain_state(self.task.model, self.optimiser, state)
        restore_schedule(self.schedule, state.steps)


def plain_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimiser over the model's own weights, by `weight name.state name`."""
    return {
        f"{name}.{key}": value
        for name, weight in model.named_parameters()
        for key, value in optimiser.state.get(weight, {}).items()
    }


def restore_plain_state(model: nn.Module, optimiser: torch.optim.Optimizer, state: State) -> None:
    """Load what `plain_state` returned."""
    values: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in state.optimiser.items():
        name, _, part = key.rpartition(".")
        values[name][part] = value
    places = {id(weight): place for place, weight in enumerate(w for g in optimiser.param_groups for w in g["params"])}
    found = {places[id(weight)]: values[name] for name, weight in model.named_parameters() if id(weight) in places}
    optimiser.load_state_dict({**optimiser.state_dict(), "state": found})


def restore_schedule(schedule: LambdaLR, steps: int) -> None:
    """Set the schedule and its optimiser's learning rates to their state after this number of steps."""
    schedule.load_state_dict({**schedule.state_dict(), "last_epoch": steps, "_step_count": steps + 1})
    groups = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, base, rate in groups:
        group["lr"] = base * rate(steps)
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]
