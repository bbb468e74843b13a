"""AdamW with parameter groups, Muon for the matrices of the encoder, frozen weights, the learning-rate schedule."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from dimvl.config import FreezeConfig, TrainingConfig
from dimvl.cpu.linear import product
from dimvl.errors import UserError
from dimvl.model.heads import is_head
from dimvl.model.model import DimvlModel

logger = logging.getLogger(__name__)


def freeze(model: DimvlModel, config: FreezeConfig) -> None:
    """Freeze weights, before an optimiser is built.

    Raises:
        UserError: more layers are to be frozen than the model has.

    """
    layers = model.encoder.layers
    if config.layers > len(layers):
        raise UserError(f"training.freeze.layers is {config.layers} but the model has {len(layers)}; lower it")
    regions, tokens = config.embeddings, config.embeddings or config.words
    parts = [*layers[: config.layers], *([model.regions] if regions else []), *([model.tokens] if tokens else [])]
    for part in parts:
        part.requires_grad_(False)


def rate_multiplier(name: str, layers: int, config: TrainingConfig) -> float:
    """Return the factor on the configured learning rate for a weight, by its name and the number of layers.

    As in BEiT, each block has the rate of the one above times the layer decay, and embeddings have the lowest rate.
    The word embedding that a word head shares is an embedding. A prefix or prompt has the rate itself.
    """
    if is_head(name):
        return config.head_multiplier
    if name.startswith("encoder.layers."):
        return config.layer_decay ** (layers - int(name.split(".")[2]))
    if name.startswith(("encoder.prefix.", "tokens.prompt.")):
        return 1.0
    return config.layer_decay ** (layers + 1)


class Muon(AdamW):
    """AdamW, except that groups with `muon` set are updated by the orthogonalised momentum of their matrices.

    Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024): W -= lr * s * U V^T, with U S V^T
    the Nesterov momentum; s = .2 sqrt(max(rows, columns)) makes the update as large as AdamW's (Liu et al., "Muon is
    scalable for LLM training", 2025, section 2.2). This one computes in fp32; `torch.optim.Muon` computes in bf16,
    which is 20 times slower on CPUs without bf16 instructions.
    """

    momentum = 0.95

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for weight in group["params"] if group["muon"] else ():
                if weight.grad is not None:
                    self._update(weight, weight.grad, group["lr"], group["weight_decay"])
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load a state; Muon's groups are hidden from AdamW, which expects a step count for every weight."""
        groups = state["param_groups"]
        super().__setstate__({**state, "param_groups": [group for group in groups if not group["muon"]]})
        self.param_groups = groups

    def _update(self, weight: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].lerp_(gradient, 1 - self.momentum)
        update = orthogonalise(gradient.lerp(momentum, self.momentum))
        weight.mul_(1 - rate * decay).add_(update, alpha=-rate * 0.2 * max(weight.shape) ** 0.5)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Bring all singular values between about .7 and 1.2: (R, C) -> (R, C), in fp32.

    Five quintic Newton-Schulz steps X <- F X, with F = a I + b S + c S S, S = X X^T and the coefficients of Jordan et
    al. The F are polynomials of the first S, so they commute: S becomes F F S, and X is multiplied once, by their
    product. With R the shorter side, that takes 34 R^3 + 4 R^2 C operations instead of 10 R^3 + 20 R^2 C: a third less
    for matrices three times as long as wide, a quarter more for square ones.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    unit = (matrix if wide else matrix.T) / (matrix.norm() + 1e-7)
    square = product(unit, unit.T)
    total = factor = _factor(square)
    for _ in range(4):
        square = product(factor, product(factor, square))
        factor = _factor(square)
        total = product(factor, total)
    result = product(total, unit)
    return result if wide else result.T


def _factor(square: Tensor) -> Tensor:
    """S (R, R) -> a I + b S + c S S."""
    factor = 2.0315 * square
    factor.diagonal().sub_(4.7750)
    factor = product(square, factor)
    factor.diagonal().add_(3.4445)
    return factor


def build_optimiser(model: DimvlModel, config: TrainingConfig) -> AdamW:
    """Build AdamW over the trainable weights, with rates by `rate_multiplier` and weight decay on matrices only.

    With `muon_rate`, the matrices of the encoder are optimised with Muon at that rate.

    Raises:
        UserError: no weight is trainable.

    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise UserError("training.freeze leaves nothing to train; freeze less")
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        matrix = parameter.ndim > 1
        muon = matrix and config.muon_rate is not None and name.startswith("encoder.")
        multiplier = rate_multiplier(name, len(model.encoder.layers), config)
        groups.setdefault((multiplier, matrix, muon), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": (config.muon_rate if muon and config.muon_rate else config.learning_rate) * multiplier,
            "weight_decay": config.weight_decay if matrix else 0.0,
            "muon": muon,
        }
        for (multiplier, matrix, muon), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    covered = sum(len(parameters) for parameters in groups.values())
    assert covered == len(trainable), "every trainable parameter is in exactly one group"
    kind = AdamW if config.muon_rate is None else Muon
    return kind(settings, lr=config.learning_rate, betas=(0.9, config.beta2), eps=1e-8, fused=True)


def build_schedule(optimiser: torch.optim.Optimizer, config: TrainingConfig) -> LambdaLR:
    """Warm up linearly, then decay to 0 at the last step. Warn of a run that ends before it has warmed up."""
    if config.warmup_steps > config.steps:
        logger.warning(
            "training.warmup_steps is %d and training.steps %d, so the learning rate reaches only %.0f%% of its peak; "
            "lower warmup_steps",
            *(config.warmup_steps, config.steps, 100 * config.steps / config.warmup_steps),
        )

    def rate(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[config.schedule]

    return LambdaLR(optimiser, rate)
