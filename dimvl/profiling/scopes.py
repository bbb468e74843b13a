"""The parts of a training step, and their marks for the profiler.

Marks wrap the functions of one model and one engine; the classes are unchanged, and ordinary training has no marks.
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
    """Mark everything that runs inside as a part."""
    return record_function(MARK + part)


def scoped(part: str, function: Function) -> Function:
    """Mark everything that a function does as a part, except where a mark inside says otherwise."""

    @wraps(function)
    def marked(*arguments: Any, **named: Any) -> Any:
        with scope(part):
            return function(*arguments, **named)

    return marked  # type: ignore[return-value]


class ScopedEngine(TorchEngine):
    """The torch engine with its own parts marked."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the losses of a micro-batch; outside the task's own marks, time is the copy to the device."""
        with scope(DEVICE):
            return super().losses(batch)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Accumulate gradients."""
        with scope(BACKWARD):
            super().backward(loss, is_last)

    def step(self) -> float:
        """Clip and update; torch marks its optimisers itself."""
        with scope(CLIP):
            return super().step()


def mark(task: TaskModule, compiled: bool) -> None:
    """Mark the parts of a task and its model permanently.

    Args:
        task: a task built only for profiling.
        compiled: whether the end of each block, after attention, is compiled and so is one part.

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
    """Return the part of a product of `dimvl.model.flops.products`, by the name of the product."""
    top, *rest = name.split(".")
    if top in ("regions", "tokens"):
        return EMBEDDINGS
    if top in HEADS:
        return HEADS[top].label
    sublayer = {"qkv": QKV, "attention": ATTENTION, "out": OUT, "ffn": FFN}[rest[2]]
    return COMPILED if compiled and sublayer in (OUT, FFN) else sublayer
