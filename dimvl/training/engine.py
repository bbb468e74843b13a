"""What the loop asks of an engine, and the plain torch engine: one process, the reference."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dimvl.config import TrainingConfig
from dimvl.data.batch import Batch
from dimvl.errors import UserError
from dimvl.model.convert import read_weights
from dimvl.pretrained import choose_device
from dimvl.tasks.base import Task
from dimvl.training.optimiser import build_optimiser, build_schedule, freeze


class Engine(Protocol):
    """Forward, backward, step, and its own state on disk. The loop does not know which engine it has."""

    task: Task
    device: torch.device
    rank: int
    ranks: int

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a micro-batch by name, summed over its targets."""
        ...

    def sum_over_ranks(self, counts: dict[str, int]) -> dict[str, int]:
        """Global number of targets by objective."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add gradients of a loss that is already divided by the global counts."""
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

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state into a folder."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...


class TorchEngine:
    """One process, plain torch. bf16 is autocast over fp32 weights."""

    rank = 0
    ranks = 1

    def __init__(self, task: Task, config: TrainingConfig) -> None:
        self.device = choose_device(config.device)
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

    def sum_over_ranks(self, counts: dict[str, int]) -> dict[str, int]:
        """One rank: the counts themselves."""
        return counts

    def backward(self, loss: Tensor) -> None:
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

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `optimiser.safetensors`; no pickle."""
        from safetensors.torch import save_file, save_model

        save_model(self.task.model, str(folder / "model.safetensors"))
        state = self.optimiser.state_dict()["state"]
        flat = {f"{index}.{name}": value.contiguous() for index, part in state.items() for name, value in part.items()}
        flat["schedule"] = torch.tensor(self.schedule.last_epoch)
        save_file(flat, str(folder / "optimiser.safetensors"))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            UserError: the weights do not fit the configuration.

        """
        weights = read_weights(folder / "model.safetensors")
        try:
            missing = self.task.model.load_state_dict(weights, strict=False)
        except RuntimeError as error:  # another shape
            reason = " ".join(str(error).split())
            raise UserError(f"{folder} was saved by another configuration ({reason})") from None
        absent = [name for name in missing.missing_keys if name != "word_head.decoder.weight"]
        if absent or missing.unexpected_keys:
            raise UserError(f"{folder} was saved by another configuration ({[*absent, *missing.unexpected_keys][0]})")
        flat = read_weights(folder / "optimiser.safetensors")
        steps = int(flat.pop("schedule"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in flat.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        schedule = self.schedule.state_dict()
        self.schedule.load_state_dict({**schedule, "last_epoch": steps, "_step_count": steps + 1})
        for group, base, rate in zip(
            self.optimiser.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * rate(steps)
        self.schedule._last_lr = [group["lr"] for group in self.optimiser.param_groups]
