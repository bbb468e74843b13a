"""Training steps beside other ways to train the same work: samples per second, and what decoupling costs.

    python -m benchmarks train

A step is forward and backward of masked language modelling over the samples of `samples.py`, without the optimiser,
which does the same for all. Peers are in `peers.py`; every variant first shows that its loss is right.

- `attention`: by precision, what is faster for the padded peers, measured beforehand: torch's kernel or two products.
  Everything else is measured with it. Nothing is compiled: docs/performance.md says why.
- `files`: by length file and precision; mixed lengths once in batches of 1,024 rows beside other single streams, and
  once in batches of 512 beside a model with logits at every position. Within a round, dimvl and the peers with UNITER's
  padding train on the same samples: those of some of UNITER's token buckets, which dimvl takes shuffled, so of mixed
  lengths. transformers' models pad regions and tokens separately and get buckets sorted by regions, which wastes least.
  `times_slower` is the time per row without padding over that of dimvl in the same round.
- `decoupled`: the encoder alone with `split: [qkv]` against `split: []` on the same rows: operations as torch counts
  them, and the ratio of times over 30 pairs or more with the upper end of its 95% interval.
- `growth`: time per row of one step of a small model by rows, and the exponent of time over rows.

Models have base size (12 layers x 768) except where `layers` says otherwise. On CUDA only bf16 and mixed lengths are
measured, in batches of 10,240 rows.
"""

import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data import VOCABULARY, ModelSize, part_modalities
from benchmarks.harness import interleaved, ratio, speeds, upper_bound
from benchmarks.peers import CORES, Core, PaddedLayer, PaddedStream, Uniter, VisualBert
from benchmarks.samples import KINDS, PaddedBatch, draw_lengths, make_batch, pad, token_buckets
from dimvl.config import TrainingConfig
from dimvl.data.batch import Batch
from dimvl.data.targets import TargetSpec, WordTargets
from dimvl.model.encoder import Block
from dimvl.model.model import DimvlModel
from dimvl.model.plan import plan_attention
from dimvl.objectives import word_loss
from dimvl.tasks.base import TaskModule
from dimvl.training.engine import TorchEngine

ALL = "dimvl", "padded single stream", "UNITER", "naive decoupled", "VisualBert"
OURS, PADDED, UNITER, NAIVE, VISUALBERT = ALL
FILE, MOST_TOKENS = 8192, 36
Turns = Sequence[Sequence[PaddedBatch]]


@dataclass(frozen=True, kw_only=True)
class Size(ModelSize):
    """How large a measurement is: the model, rows of a batch including padding, batches of a round."""

    budget: int = 0
    batches: int = 1

    def model(self, split: Sequence[str]) -> DimvlModel:
        """Make a model with a word head, whose visual weights differ from those of language."""
        torch.manual_seed(0)
        model = DimvlModel(**self.arguments, vocabulary=VOCABULARY, split=split, word_head=True, dropout=0.0)
        part_modalities(model)
        return model


class MaskedWords(TaskModule):
    """Words to predict and nothing else."""

    objectives = {"words": TargetSpec(WordTargets)}  # noqa: RUF012
    weights = {"words": 1.0}  # noqa: RUF012

    def __init__(self, model: DimvlModel) -> None:
        nn.Module.__init__(self)
        self.model = model

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Summed loss."""
        targets = batch.targets["words"]
        return {"words": word_loss(self.model.word_head(self.model(batch)[targets.rows]), targets.labels)}


@dataclass(frozen=True)
class Variant:
    """One way to train: the mean loss of a batch, in the variant's precision, and which batches it takes."""

    loss: Callable[[PaddedBatch], Tensor]
    policy: str  # shuffled, buckets or regions
    model: nn.Module

    def take_turns(self, turns: Turns) -> Callable[[], None]:
        """Return a function that trains on the batches of the next turn at each call."""
        following = itertools.cycle(turns)

        def step() -> None:
            for batch in next(following):
                self.loss(batch).backward()
                self.model.zero_grad(set_to_none=True)

        return step


def engine_of(model: DimvlModel, device: str, precision: str) -> TorchEngine:
    """Make the engine that training uses."""
    settings = TrainingConfig.model_validate({"steps": 10**6, "precision": precision, "device": device})
    return TorchEngine(MaskedWords(model), settings)


def ours(model: DimvlModel, device: str, precision: str) -> Variant:
    """Train as dimvl does."""
    engine = engine_of(model, device, precision)

    def loss(batch: PaddedBatch) -> Tensor:
        return engine.losses(batch.ragged)["words"] / len(batch.words)

    return Variant(loss, "shuffled", model)


def peer(model: nn.Module, policy: str, device: str, precision: str) -> Variant:
    """Train a peer, under autocast as dimvl."""
    model.to(device)

    def loss(batch: PaddedBatch) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return model(batch)

    return Variant(loss, policy, model)


def variants_of(names: Sequence[str], size: Size, core: str, device: str, precision: str) -> dict[str, Variant]:
    """Make the variants `names` of `ALL`; `core` of `CORES` is the attention of the padded peers."""
    shared, decoupled = size.model(()).to(device), size.model(("qkv",)).to(device)
    place = (device, precision)
    makers: dict[str, Callable[[], Variant]] = {
        OURS: lambda: ours(decoupled, *place),
        PADDED: lambda: peer(PaddedStream(shared, CORES[core]), "buckets", *place),
        UNITER: lambda: peer(Uniter(shared, CORES[core]), "buckets", *place),
        NAIVE: lambda: peer(PaddedStream(decoupled, CORES[core]), "buckets", *place),
        VISUALBERT: lambda: peer(VisualBert(size), "regions", *place),
    }
    return {name: makers[name]() for name in ALL if name in names}


def check(variants: Mapping[str, Variant], batch: PaddedBatch, device: str) -> dict[str, float]:
    """Compare losses with what they should be, and return the relative difference of each.

    That is dimvl's loss with equal weights, and for VisualBert the one computed plainly from its logits.

    Raises:
        ValueError: a variant computes another loss.

    """
    differences = {}
    for name, variant in variants.items():
        with torch.no_grad():
            if isinstance(variant.model, VisualBert):
                loss, logits = variant.model.output(batch)
                logits = logits[:, : batch.labels.shape[1]][batch.labels >= 0]
                wanted = F.cross_entropy(logits.float(), batch.words)
            elif name != OURS:
                loss, wanted = variant.model(batch), ours(variant.model.model, device, "fp32").loss(batch)
            else:
                continue
        differences[name] = abs(float(loss) / float(wanted) - 1)
        if not differences[name] < 1e-5:
            raise ValueError(f"{name} computes a loss of {float(loss)}, where it should be {float(wanted)}")
    return differences


def batches_of(kind: str, size: Size, device: str, turns: int) -> dict[str, Turns]:
    """Batches by policy, turn and batch."""
    lengths, generator = draw_lengths(kind, FILE), np.random.default_rng(1)
    buckets = token_buckets(lengths.sum(axis=1), size.budget, generator)
    regions = token_buckets(lengths[:, 0] + MOST_TOKENS, size.budget, generator)
    found: dict[str, list[list[PaddedBatch]]] = {"shuffled": [], "buckets": [], "regions": []}

    def add(policy: str, chosen: Sequence[np.ndarray]) -> None:
        found[policy].append([pad(make_batch(lengths, samples)).to(torch.device(device)) for samples in chosen])

    for turn in range(turns):
        places = range(turn * size.batches, (turn + 1) * size.batches)
        chosen = [buckets[place % len(buckets)] for place in places]
        add("buckets", chosen)
        add("shuffled", np.array_split(generator.permutation(np.concatenate(chosen)), size.batches))
        add("regions", [regions[place % len(regions)] for place in places])
    return found


def fastest_core(size: Size, device: str, precision: str) -> str:
    """Name the faster attention for padded rows: one layer, forward and backward."""
    torch.manual_seed(0)
    batch = batches_of("mixed", size, device, 1)["buckets"][0][0]
    block = Block(size.width, size.heads, 4 * size.width, (), 0.0, "gelu", 1e-12).to(device)
    rows = torch.randn(batch.gather.numel(), size.width, device=device, requires_grad=True)

    def run(core: Core) -> None:
        layer = PaddedLayer(block, core)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            layer(rows, len(batch.gather), batch.bias, batch.vision).sum().backward()

    seconds = interleaved({name: lambda core=core: run(core) for name, core in CORES.items()}, 5, device)
    return min(seconds, key=lambda name: float(np.median(seconds[name])))


def measure_file(
    kind: str, precision: str, names: Sequence[str], size: Size, core: str, device: str, rounds: int
) -> dict[str, Any]:
    """Check and time variants on a length file."""
    batches = batches_of(kind, size, device, rounds + 1)
    variants = variants_of(names, size, core, device, precision)
    differences = check(variants, batches["buckets"][0][0], device)
    runs, wasted, rows = {}, {}, {}
    for name, variant in variants.items():
        turns = batches[variant.policy]
        runs[name], wasted[name] = variant.take_turns(turns), padding(turns, variant.policy)
        rows[name] = np.array([sum(batch.rows for batch in turn) for turn in turns[1:]])
    seconds = interleaved(runs, rounds, device)
    mean = float(draw_lengths(kind, FILE).sum(axis=1).mean())
    per_sample = {name: mean * values / rows[name] for name, values in seconds.items()}
    found = speeds(per_sample, OURS, "samples_per_second", digits=4)
    return {
        **{"layers": size.layers, "rows": float(np.mean(rows[OURS])) / size.batches, "mean_rows": mean},
        "loss_differences": differences,
        "variants": {name: {**found[name], "padding": wasted[name]} for name in found},
    }


def padding(turns: Turns, policy: str) -> float:
    """Padded over real rows, as the policy's models pad."""
    batches = [batch for turn in turns for batch in turn]
    padded = {
        "shuffled": [batch.rows for batch in batches],
        "buckets": [batch.gather.numel() for batch in batches],
        "regions": [batch.labels.numel() + batch.region_mask.numel() for batch in batches],
    }
    return sum(padded[policy]) / sum(padded["shuffled"])


def measure_decoupling(size: Size, device: str, pairs: int) -> dict[str, Any]:
    """Encoder with separate and with shared projections over the same rows of mixed lengths."""
    lengths = draw_lengths("mixed", FILE)
    batch = make_batch(lengths, np.arange(max(2, int(size.budget / lengths.sum(axis=1).mean()))))
    plan, found = plan_attention(batch.layout, device), {}
    encoders = {name: size.model(split).encoder.to(device) for name, split in (("[qkv]", ("qkv",)), ("[]", ()))}
    for precision in ("fp32", "bf16"):
        rows = torch.randn(batch.layout.num_rows, size.width, device=device, requires_grad=True)

        def step(encoder: nn.Module, rows: Tensor = rows, precision: str = precision) -> None:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                encoder(rows, plan).sum().backward()
            encoder.zero_grad(set_to_none=True)

        counts = {}
        for name, encoder in encoders.items():
            with FlopCounterMode(display=False) as counter:
                step(encoder)
            counts[name] = counter.get_total_flops()
        runs = {name: lambda encoder=encoder: step(encoder) for name, encoder in encoders.items()}
        seconds = interleaved(runs, pairs, device)
        found[precision] = {
            "flops": counts,
            "time_ratio": ratio(seconds["[qkv]"], seconds["[]"]),
            "upper_bound": round(upper_bound(seconds["[qkv]"], seconds["[]"]), 3),
        }
    return {"pairs": pairs, "layers": size.layers, "rows": batch.layout.num_rows, **found}


def measure_growth(sizes: Sequence[int], device: str, rounds: int) -> dict[str, Any]:
    """Time of one step by rows: one batch of each size, a small model, fp32."""
    lengths = draw_lengths("mixed", FILE)
    ends = np.cumsum(lengths.sum(axis=1))
    model = Size(layers=2, width=64, heads=2).model(("qkv",))
    engine = engine_of(model, device, "fp32")

    def step(batch: Batch) -> None:
        engine.backward(engine.losses(batch)["words"], is_last=True)
        model.zero_grad(set_to_none=True)

    samples = {rows: np.arange(np.searchsorted(ends, rows)) for rows in sizes}
    batches = {rows: make_batch(lengths, numbers).to(torch.device(device)) for rows, numbers in samples.items()}
    seconds = interleaved(
        {str(rows): lambda batch=batch: step(batch) for rows, batch in batches.items()}, rounds, device
    )
    medians = [float(np.median(seconds[str(rows)])) for rows in sizes]
    exponent = np.polyfit(np.log(sizes), np.log(medians), 1)[0]
    per_row = {str(rows): 1e6 * median / rows for rows, median in zip(sizes, medians, strict=True)}
    return {"layers": 2, "width": 64, "microseconds_per_row": per_row, "exponent": float(exponent)}


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Measure everything."""
    if small:
        base = half = few = Size(layers=1, width=32, heads=2, budget=240, batches=2)
    elif device == "cuda":
        base = half = few = Size(layers=12, budget=10_240, batches=4)
    else:
        base, few = Size(layers=12, budget=1024, batches=2), Size(layers=4, budget=512)
        half = replace(base, budget=512)
    files = {
        "mixed": ("mixed", (OURS, PADDED, UNITER), base),
        "mixed, logits everywhere": ("mixed", (OURS, VISUALBERT), half),
        **{kind: (kind, ALL, few) for kind in KINDS if kind != "mixed"},
    }
    precisions: tuple[str, ...] = ("fp32", "bf16")
    if device == "cuda" and not small:  # only what the goals name
        precisions, files = ("bf16",), dict(itertools.islice(files.items(), 2))
    found: dict[str, Any] = {"attention": {}, "files": {name: {} for name in files}}
    for precision in precisions:
        core = found["attention"][precision] = fastest_core(half, device, precision)
        for name, (kind, names, size) in files.items():
            found["files"][name][precision] = measure_file(kind, precision, names, size, core, device, rounds)
            gc.collect()
    one = base if small else Size(layers=1, budget=32_768 if device == "cuda" else 2048)
    sizes = (200, 400) if small else (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
    return {
        **found,
        "decoupled": measure_decoupling(one, device, 3 if small else max(30, rounds)),
        "growth": measure_growth(sizes, device, rounds),
    }
