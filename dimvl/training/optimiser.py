"""AdamW with parameter groups, and the learning-rate schedule."""

import math

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from dimvl.config import TrainingConfig
from dimvl.model.convert import HEADS


def build_optimiser(model: nn.Module, config: TrainingConfig) -> AdamW:
    """Make AdamW: no weight decay on biases, norms and vectors; heads with their own multiple of the rate.

    Args:
        model: a `DimvlModel`; names of its heads begin with one of `HEADS`.
        config: learning rate, weight decay, head multiplier, beta2.

    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith(HEADS), parameter.ndim > 1), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": config.learning_rate * (config.head_multiplier if head else 1.0),
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for (head, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    covered = sum(len(parameters) for parameters in groups.values())
    assert covered == len(list(model.parameters())), "every parameter is in exactly one group"
    fused = next(model.parameters()).is_cuda
    return AdamW(settings, lr=config.learning_rate, betas=(0.9, config.beta2), eps=1e-8, fused=fused or None)


def build_schedule(optimiser: torch.optim.Optimizer, config: TrainingConfig) -> LambdaLR:
    """Warm up linearly, then decay to 0 at the last step."""

    def rate(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[config.schedule]

    return LambdaLR(optimiser, rate)
