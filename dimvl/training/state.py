"""The state of an engine in a checkpoint: each weight whole, in fp32, with its optimiser state.

    model.safetensors        name of a weight or buffer -> value
    optimiser.safetensors    `weight name.state name` -> value, and `schedule`, the optimiser steps done

Nothing here depends on the engine, the stage of ZeRO or the number of ranks. So a run resumes on other hardware as it
is, and the weights of any checkpoint can be evaluated, exported and fine-tuned directly. DeepSpeed's own checkpoints
are pickles with one part per rank, which another number of ranks can only read after a conversion.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dimvl.checkpoints import OPTIMISER, WEIGHTS
from dimvl.errors import UserError
from dimvl.files.weights import save_weights
from dimvl.model.convert import first_misfit, read_weights, saved_tensors

SCHEDULE = "schedule"


class State(NamedTuple):
    """Weights and buffers by name, optimiser state by `weight name.state name`, and the optimiser steps done."""

    weights: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    steps: int


def copied(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to CPU memory, so that training can continue while they are written."""
    return {name: value.detach().to("cpu", copy=True) for name, value in values.items()}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the whole shapes of weights and buffers by name, even where this rank holds only a part."""
    return {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in saved_tensors(model).items()}


def write_state(folder: Path, state: State) -> None:
    """Write both files; a `UserError` if the disk is full."""
    save_weights(folder / WEIGHTS, state.weights)
    save_weights(folder / OPTIMISER, {**state.optimiser, SCHEDULE: torch.tensor(state.steps)})


def read_state(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Read what `write_state` wrote.

    Args:
        folder: the checkpoint.
        shapes: shapes of the model's weights and buffers, by name.

    Raises:
        UserError: the weights do not match the configuration, or a file is damaged.

    """
    weights, optimiser = read_weights(folder / WEIGHTS), read_weights(folder / OPTIMISER)
    if misfit := first_misfit({name: tuple(weight.shape) for name, weight in weights.items()}, shapes):
        raise UserError(f"{folder} was saved with another configuration ({misfit}); give another output folder")
    steps = int(optimiser.pop(SCHEDULE))
    return State(weights, optimiser, steps)
