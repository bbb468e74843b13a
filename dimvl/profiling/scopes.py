"""The parts of a training step, and how they are marked for the profiler.

Functions of one model and one engine are wrapped; the classes know nothing of it, and training runs none of it.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.profiler import record_function

from dimvl.data.batch import Batch
from dimvl.model.encoder import Attend, Block
from dimvl.model.heads import HEADS, heads_of
from dimvl.model.model import DimvlModel
from dimvl.tasks.base import TaskModule
from dimvl.training.engine import TorchEngine

Function = TypeVar("Function", bound=Callable[..., Any])
MARK = "dimvl: "
STEP, DATA, DEVICE = "other", "data wait", "batch to device"
EMBEDDINGS, PLAN, QKV, ATTENTION, OUT = "embeddings", "attention plan", "QKV", "attention", "output projection"
FFN, ACTIVATION, NORMS, RESIDUALS = "FFN products", "FFN activation", "norms", "dropout and residuals"
COMPILED = "after attention, compiled"
LOSSES, BACKWARD, SUMS, CLIP, OPTIMISER = "losses", "autograd", "gradient sums", "clip", "optimiser"


def parts() -> list[str]:
    """Return all parts, in the order of a step."""
    encoder = (DATA, DEVICE, EMBEDDINGS, PLAN, QKV, ATTENTION, OUT, FFN, ACTIVATION, NORMS, RESIDUALS, COMPILED)
    heads = [entry.label for entry in HEADS.values()]
    return [*encoder, *heads, LOSSES, SUMS, BACKWARD, CLIP, OPTIMISER, STEP]


def scope(part: str) -> record_function:
    """Mark what runs inside as a part."""
    return record_function(MARK + part)


def scoped(part: str, function: Function) -> Function:
    """Mark all that a function does as a part, but for what another mark inside says."""

    @wraps(function)
    def marked(*arguments: Any, **named: Any) -> Any:
        with scope(part):
            return function(*arguments, **named)

    return marked  # type: ignore[return-value]


class ScopedEngine(TorchEngine):
    """The torch engine with its own parts marked."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a micro-batch; what is not the task's own is the way to the device."""
        with scope(DEVICE):
            return super().losses(batch)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add gradients."""
        with scope(BACKWARD):
            super().backward(loss, is_last)

    def step(self) -> float:
        """Clip and update; torch marks its optimisers itself."""
        with scope(CLIP):
            return super().step()


def mark(task: TaskModule, compiled: bool) -> None:
    """Mark the parts of a task and its model for good: it must be one that is made for this.

    Args:
        task: to mark.
        compiled: what follows attention in each block is compiled, and is one part.

    """
    model = task.model
    _mark_modules(LOSSES, task)
    _mark_modules(PLAN, model)
    model.embed = scoped(EMBEDDINGS, model.embed)  # type: ignore[method-assign]
    for name, head in heads_of(model).items():
        _mark_modules(HEADS[name].label, head)
    _mark_encoder(model, compiled)


def _mark_encoder(model: DimvlModel, compiled: bool) -> None:
    run = model.encoder.run

    def marked(rows: Tensor, num_vision: int, attend: Attend) -> Tensor:
        return run(rows, num_vision, scoped(ATTENTION, attend))

    model.encoder.run = marked  # type: ignore[method-assign]
    for layer in model.encoder.layers:
        assert isinstance(layer, Block)
        _mark_modules(RESIDUALS, layer)
        _mark_modules(QKV, layer.qkv)
        if compiled:
            layer.finish = scoped(COMPILED, layer.finish)  # type: ignore[method-assign]
            continue
        _mark_modules(OUT, layer.out)
        _mark_modules(ACTIVATION, layer.ffn)
        _mark_modules(NORMS, layer.attention_norm, layer.ffn_norm)
        _mark_modules(FFN, *(module for module in layer.ffn.modules() if isinstance(module, nn.Linear)))


def _mark_modules(part: str, *modules: nn.Module) -> None:
    for module in modules:
        module.forward = scoped(part, module.forward)


def part_of_product(name: str, compiled: bool) -> str:
    """Part that a product of `dimvl.model.flops.products` belongs to, by its name."""
    top, *rest = name.split(".")
    if top in ("regions", "tokens"):
        return EMBEDDINGS
    if top in HEADS:
        return HEADS[top].label
    sublayer = {"qkv": QKV, "attention": ATTENTION, "out": OUT, "ffn": FFN}[rest[2]]
    return COMPILED if compiled and sublayer in (OUT, FFN) else sublayer
