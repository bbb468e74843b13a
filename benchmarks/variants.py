"""The ways to train that are compared: dimvl's, and those of `peers.py`, each with the check of its loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import CORES, Bert, Lxmert, PaddedStream, Uniter, VisualBert
from benchmarks.samples import VOCABULARY, WIDTH, PaddedBatch
from benchmarks.sizes import part_modalities
from dimvl.config import TrainingConfig
from dimvl.data.targets import WordTargets
from dimvl.model.model import DimvlModel
from dimvl.objectives import word_loss
from dimvl.tasks.base import TaskModule
from dimvl.training.engine import TorchEngine

OURS, UNITER, PADDED, NAIVE = "dimvl", "UNITER", "padded single stream", "naive decoupled"
VISUALBERT, RANDOM = "VisualBert", "VisualBert, random batches"
BERT_EAGER, BERT_SDPA, LXMERT = "Bert, eager", "Bert, SDPA", "Lxmert"
SINGLE_STREAMS, LOGITS_EVERYWHERE = (OURS, PADDED, UNITER), (OURS, VISUALBERT, RANDOM)
ALL = (OURS, PADDED, UNITER, NAIVE, VISUALBERT, BERT_EAGER, BERT_SDPA, LXMERT)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a benchmark is: layers, width, heads, rows of a batch with padding, batches of a round."""

    layers: int
    width: int = 768
    heads: int = 12
    budget: int
    batches: int

    def model(self, split: Sequence[str]) -> DimvlModel:
        """Make a model with a word head; the visual weights differ from those of language."""
        torch.manual_seed(0)
        model = DimvlModel(
            vocabulary=VOCABULARY,
            feature_width=WIDTH,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            inner_width=4 * self.width,
            split=split,
            word_head=True,
            dropout=0.0,
        )
        part_modalities(model)
        return model


class MaskedWords(TaskModule):
    """Words to predict and nothing else."""

    name = "masked words"
    objectives = {"words": WordTargets}  # noqa: RUF012
    weights = {"words": 1.0}  # noqa: RUF012

    def __init__(self, model: DimvlModel) -> None:
        nn.Module.__init__(self)
        self.model = model

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Summed loss."""
        targets = batch.targets["words"]
        return {"words": word_loss(self.model.word_head(self.model(batch)[targets.rows]), targets.labels)}


@dataclass
class Variant:
    """One way to train.

    Attributes:
        loss: mean loss of a batch, in the variant's precision.
        policy: which batches it takes: `shuffled`, `buckets`, `regions` or `random`.
        model: whose gradients are dropped after a step.
        layers: its layers.
        compile: compiles them.
        facts: what is told of it besides its speed.

    """

    loss: Callable[[PaddedBatch], Tensor]
    policy: str
    model: nn.Module
    layers: nn.ModuleList
    compile: Callable[[], object]
    facts: dict[str, Any] = field(default_factory=dict)

    def step(self, batches: Sequence[PaddedBatch]) -> None:
        """Train on batches."""
        for batch in batches:
            self.loss(batch).backward()
            self.model.zero_grad(set_to_none=True)

    def compile_for(self, turns: Sequence[Sequence[PaddedBatch]]) -> None:
        """Compile the layers for all lengths in the batches, with one of them: all layers run the same code."""
        self.compile()
        others = list(self.layers[1:])
        del self.layers[1:]
        for batches in turns:
            self.step(batches)
        self.layers.extend(others)


def engine_of(model: DimvlModel, device: str, precision: str) -> TorchEngine:
    """Make the engine of training itself."""
    settings = TrainingConfig.model_validate({"steps": 1, "precision": precision, "device": device})
    return TorchEngine(MaskedWords(model), settings)


def ours(model: DimvlModel, device: str, precision: str) -> Variant:
    """Train as dimvl does."""
    engine = engine_of(model, device, precision)

    def loss(batch: PaddedBatch) -> Tensor:
        return engine.losses(batch.ragged)["words"] / len(batch.words)

    return Variant(loss, "shuffled", model, model.encoder.layers, model.encoder.compile_blocks)


def peer(model: nn.Module, policy: str, device: str, precision: str, **facts: Any) -> Variant:
    """Train a peer, under autocast as dimvl."""
    model.to(device)

    def loss(batch: PaddedBatch) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return model(batch)

    def compile_layers() -> None:
        for layer in model.layers:
            layer.compile(dynamic=True)

    return Variant(loss, policy, model, model.layers, compile_layers, facts)


def variants_of(names: Sequence[str], size: Size, core: str, device: str, precision: str) -> dict[str, Variant]:
    """Make variants.

    Args:
        names: of `ALL`; random batches go with VisualBert, whose model they share.
        size: of all models.
        core: attention of the padded peers, of `CORES`.
        device: `cpu` or `cuda`.
        precision: `fp32` or `bf16`.

    """
    shared, decoupled = size.model(()).to(device), size.model(("qkv",)).to(device)
    arguments, place = (size.layers, size.width, size.heads), (device, precision)
    makers: dict[str, Callable[[], Variant]] = {
        OURS: lambda: ours(decoupled, *place),
        PADDED: lambda: peer(PaddedStream(shared, CORES[core]), "buckets", *place, attention=core),
        UNITER: lambda: peer(Uniter(shared, CORES[core]), "buckets", *place, attention=core),
        NAIVE: lambda: peer(PaddedStream(decoupled, CORES[core]), "buckets", *place, attention=core),
        VISUALBERT: lambda: peer(VisualBert(*arguments), "regions", *place, attention="eager"),
        BERT_EAGER: lambda: peer(Bert(*arguments, "eager"), "regions", *place, attention="eager"),
        BERT_SDPA: lambda: peer(Bert(*arguments, "sdpa"), "regions", *place, attention="sdpa"),
        LXMERT: lambda: peer(Lxmert(*arguments), "regions", *place, attention="eager"),
    }
    found = {name: make() for name, make in makers.items() if name in names}
    if RANDOM in names:
        found[RANDOM] = replace(found[VISUALBERT], policy="random")
    return found


def check(variants: Mapping[str, Variant], batch: PaddedBatch, device: str) -> dict[str, float]:
    """Compare losses with what they should be; return the largest relative difference of each.

    Raises:
        ValueError: a variant computes another loss.

    """
    with torch.no_grad():
        wanted = {
            name: float(ours(variants[name].model.model, device, "fp32").loss(batch))
            for name in (PADDED, UNITER, NAIVE)
            if name in variants
        }
        found, differences = {name: variants[name].model(batch) for name in wanted}, {}
        for name, variant in variants.items():
            if hasattr(variant.model, "output"):
                found[name], logits = variant.model.output(batch)
                logits = logits[:, : batch.labels.shape[1]][batch.labels >= 0]
                wanted[name] = float(F.cross_entropy(logits.float(), batch.words))
        for name, value in wanted.items():
            differences[name] = abs(float(found[name]) / value - 1)
            if not differences[name] < 1e-5:
                raise ValueError(f"{name} computes a loss of {float(found[name])}, where it should be {value}")
    return differences


def loss_of(variant: Variant, batch: PaddedBatch) -> float:
    """Loss of a batch as a number."""
    return float(variant.loss(batch).detach())
