"""What a checkpoint holds of an engine: each weight whole, in fp32, with its optimiser state; the same for all engines.

    model.safetensors        name of a weight or buffer -> value
    optimiser.safetensors    `weight name.state name` -> value, and `schedule`, the optimiser steps done

Nothing in it depends on the number of ranks, on the stage of ZeRO or on the engine, so a run goes on on other hardware
as it is, and the weights of every checkpoint can be evaluated, exported and fine-tuned without further ado. DeepSpeed's
own checkpoints are pickles of one part per rank, which another number of ranks reads after a conversion only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from dimvl.checkpoints import OPTIMISER, WEIGHTS
from dimvl.errors import UserError
from dimvl.model.convert import read_weights

SCHEDULE = "schedule"


class State(NamedTuple):
    """Weights and buffers by name, optimiser state by `weight name.state name`, optimiser steps done."""

    weights: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    steps: int

    def of(self, name: str) -> dict[str, Tensor]:
        """Optimiser state of one weight."""
        found = {key.rpartition("."): value for key, value in self.optimiser.items() if key.startswith(f"{name}.")}
        return {part: value for (weight, _, part), value in found.items() if weight == name}


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Weights of a model by name, and the statistics that are saved like weights; a tied weight comes once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def copied(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to CPU memory, so that training may go on while they are written."""
    return {name: value.detach().to("cpu", copy=True) for name, value in values.items()}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of what is saved, by name; of a weight this rank may hold a part only."""
    return {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in saved_tensors(model).items()}


def write_state(folder: Path, state: State) -> None:
    """Write the two files.

    Raises:
        OSError: the disk is full.

    """
    try:
        save_file({name: weight.contiguous() for name, weight in state.weights.items()}, folder / WEIGHTS)
        flat = {name: value.contiguous() for name, value in state.optimiser.items()}
        save_file({**flat, SCHEDULE: torch.tensor(state.steps)}, folder / OPTIMISER)
    except SafetensorError as error:  # its own type for a full disk
        raise OSError(f"{error}") from error


def read_state(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Read what `write_state` wrote.

    Args:
        folder: of the checkpoint.
        shapes: of the model's weights and buffers, by name.

    Raises:
        UserError: the weights do not fit the configuration, or a file is damaged.

    """
    weights, optimiser = read_weights(folder / WEIGHTS), read_weights(folder / OPTIMISER)
    for name in [*shapes, *weights]:
        found, wanted = (tuple(weights[name].shape) if name in weights else None), shapes.get(name)
        if found != wanted:
            raise UserError(
                f"{folder} was saved by another configuration ({name} has shape {found} there and {wanted} here)"
            )
    steps = int(optimiser.pop(SCHEDULE))
    return State(weights, optimiser, steps)
