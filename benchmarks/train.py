"""Training steps beside other ways to train the same work: how many samples a second, and what decoupling costs.

    python -m benchmarks train

A step is forward and backward of masked language modelling over the samples of `samples.py`; what the optimiser does is
the same for all and is left out. Peers are in `peers.py`. Before anything is timed every variant shows that its loss is
right: that of dimvl for equal weights, or for models of transformers the one computed plainly from their logits.

- `files`: by length file and precision. Within a round, dimvl and what is padded in UNITER's way train on the same
  samples: those of some batches of UNITER's token buckets, which dimvl takes shuffled, so in batches of mixed lengths.
  transformers' models pad regions and tokens each to their longest, and get buckets sorted by regions, where that
  wastes least, and for comparison random batches. `times_slower` is time per row without padding over that of dimvl in
  the same round: median, 10th and 90th percentile. Where a name ends in `compiled`, layers were compiled with
  `torch.compile` before; `compile_seconds` is processor time, that of the C++ compiler included.
- `best`: dimvl at its best setting against each peer at its best, the goals' figures.
- `decoupled`: the encoder alone with `split: [qkv]` against `split: []` on the same rows: operations as torch counts
  them, and the time ratio over 30 pairs or more with the upper end of its 95% interval.
- `growth`: time per row of one step of a small model by rows, and the exponent of time over rows.

Only what is told by `layers` differs from the base size (12 layers x 768).
"""

import copy
import gc
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import interleaved, ratio, upper_bound
from benchmarks.peers import CORES, Bert, Core, Lxmert, PaddedLayer, PaddedStream, Uniter, VisualBert
from benchmarks.samples import (
    KINDS,
    VOCABULARY,
    WIDTH,
    PaddedBatch,
    deal_again,
    draw_lengths,
    make_batch,
    pad,
    token_buckets,
)
from dimvl.config import TrainingConfig
from dimvl.data.batch import WordTargets
from dimvl.model.encoder import Block
from dimvl.model.model import DimvlModel
from dimvl.model.plan import plan_attention
from dimvl.objectives import word_loss
from dimvl.tasks.base import Task
from dimvl.training.engine import TorchEngine

OURS, UNITER, PADDED, NAIVE = "dimvl", "UNITER", "padded single stream", "naive decoupled"
VISUALBERT, RANDOM = "VisualBert", "VisualBert, random batches"
FILE, MOST_TOKENS = 8192, 36


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
        for name, parameter in model.named_parameters():
            if ".vision." in name:
                parameter.data += 0.5 * parameter.std(correction=0) * torch.randn_like(parameter)
        return model


class MaskedWords(Task):
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
        compile: compiles its layers.
        facts: what is told of it besides its speed.

    """

    loss: Callable[[PaddedBatch], Tensor]
    policy: str
    model: nn.Module
    compile: Callable[[], object]
    facts: dict[str, Any] = field(default_factory=dict)

    def step(self, batches: Sequence[PaddedBatch]) -> None:
        """Train on batches."""
        for batch in batches:
            self.loss(batch).backward()
            self.model.zero_grad(set_to_none=True)


def ours(model: DimvlModel, device: str, precision: str) -> Variant:
    """Train with the engine of training itself."""
    settings = TrainingConfig.model_validate({"steps": 1, "precision": precision, "device": device})
    engine = TorchEngine(MaskedWords(model), settings)

    def loss(batch: PaddedBatch) -> Tensor:
        return engine.losses(batch.ragged)["words"] / len(batch.words)

    return Variant(loss, "shuffled", model, model.encoder.compile_blocks)


def peer(model: nn.Module, policy: str, device: str, precision: str, **facts: Any) -> Variant:
    """Train a peer, under autocast as dimvl."""
    model.to(device)

    def loss(batch: PaddedBatch) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return model(batch)

    def compile_layers() -> None:
        for layer in model.layers:
            layer.compile(dynamic=True)

    return Variant(loss, policy, model, compile_layers, facts)


def variants_of(kind: str, size: Size, core: str, device: str, precision: str, pads: bool) -> dict[str, Variant]:
    """All variants of a length file; the many models of transformers only where nothing is padded."""
    shared, decoupled = size.model(()).to(device), size.model(("qkv",)).to(device)
    arguments = (size.layers, size.width, size.heads)
    place, attention = (device, precision), {"attention": core}
    found = {
        OURS: ours(decoupled, *place),
        PADDED: peer(PaddedStream(shared, CORES[core]), "buckets", *place, **attention),
        UNITER: peer(Uniter(shared, CORES[core]), "buckets", *place, **attention),
        NAIVE: peer(PaddedStream(decoupled, CORES[core]), "buckets", *place, **attention),
        VISUALBERT: peer(VisualBert(*arguments), "regions", *place, attention="eager"),
    }
    if pads:
        found[RANDOM] = peer(found[VISUALBERT].model, "random", *place, attention="eager")
        return found
    for attention_name in ("eager", "sdpa"):
        bert = Bert(*arguments, attention_name)
        found[f"Bert, {attention_name}"] = peer(bert, "regions", *place, attention=attention_name)
    return {**found, "Lxmert": peer(Lxmert(*arguments), "regions", *place, attention="eager")}


def check(variants: Mapping[str, Variant], batch: PaddedBatch, size: Size, device: str) -> dict[str, float]:
    """Compare losses with what they should be; return the largest relative difference of each.

    Raises:
        ValueError: a variant computes another loss.

    """
    with torch.no_grad():
        shared = variants[PADDED].model.model
        wanted = {name: float(ours(shared, device, "fp32").loss(batch)) for name in (PADDED, UNITER)}
        wanted[NAIVE] = float(ours(variants[OURS].model, device, "fp32").loss(batch))
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


def policies(kind: str, size: Size, turns: int) -> dict[str, list[list[np.ndarray]]]:
    """Batches, as numbers of samples, by policy, turn and batch."""
    lengths, generator = draw_lengths(kind, FILE), np.random.default_rng(1)
    buckets = token_buckets(lengths.sum(axis=1), size.budget, generator)
    regions = token_buckets(lengths[:, 0] + MOST_TOKENS, size.budget, generator)
    count = max(1, int(size.budget / lengths.sum(axis=1).mean()))
    found: dict[str, list[list[np.ndarray]]] = {"shuffled": [], "buckets": [], "regions": [], "random": []}
    for turn in range(turns):
        taken = [(turn * size.batches + place) % len(buckets) for place in range(size.batches)]
        found["buckets"].append([buckets[place] for place in taken])
        found["shuffled"].append(deal_again(np.concatenate(found["buckets"][-1]), size.batches, generator))
        found["regions"].append([regions[place % len(regions)] for place in taken])
        found["random"].append([generator.integers(0, FILE, count) for _ in taken])
    return found


def measure_file(
    kind: str, precision: str, size: Size, device: str, rounds: int, compiled: bool
) -> dict[str, dict[str, Any]]:
    """Check and time all variants of a length file."""
    torch.compiler.reset()
    lengths = draw_lengths(kind, FILE)
    by_policy = {
        name: [[pad(make_batch(lengths, samples)).to(torch.device(device)) for samples in turn] for turn in turns]
        for name, turns in policies(kind, size, rounds + 1).items()
    }
    core = quickest_core(size, by_policy["buckets"][0][0], device, precision)
    arguments = (kind, size, core, device, precision, kind == "mixed")
    variants = variants_of(*arguments)
    differences = check(variants, by_policy["buckets"][0][0], size, device)
    if compiled:
        compile_again(variants, variants_of(*arguments), by_policy, device)
    runs = {name: one_turn_after_another(variant, by_policy[variant.policy]) for name, variant in variants.items()}
    seconds = interleaved(runs, rounds, device)
    rows = {
        name: np.array([sum(batch.ragged.layout.num_rows for batch in turn) for turn in by_policy[variant.policy][1:]])
        for name, variant in variants.items()
    }
    per_row = {name: values / rows[name] for name, values in seconds.items()}
    mean = lengths.sum(axis=1).mean()
    return {
        "layers": size.layers,
        "mean_rows": float(mean),
        "loss_differences": differences,
        "variants": {
            name: {
                "samples_per_second": 1 / float(np.median(values)) / mean,
                "times_slower": ratio(values, per_row[OURS]),
                "padding": padding(by_policy[variants[name].policy], variants[name].policy),
                **variants[name].facts,
            }
            for name, values in per_row.items()
        },
        "best": best_of(per_row),
    }


def quickest_core(size: Size, batch: PaddedBatch, device: str, precision: str) -> str:
    """Tell which attention is quicker for what is padded: one layer, forward and backward."""
    torch.manual_seed(0)
    block = Block(size.width, size.heads, 4 * size.width, (), 0.0, "gelu", 1e-12).to(device)
    rows = torch.randn(batch.gather.numel(), size.width, device=device, requires_grad=True)

    def run(core: Core) -> None:
        layer = PaddedLayer(block, core)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            layer(rows, len(batch.gather), batch.bias, batch.vision).sum().backward()

    runs = {name: lambda core=core: run(core) for name, core in CORES.items()}
    seconds = interleaved(runs, 5, device)
    return min(seconds, key=lambda name: float(np.median(seconds[name])))


def compile_again(
    variants: dict[str, Variant],
    fresh: Mapping[str, Variant],
    by_policy: Mapping[str, list[list[PaddedBatch]]],
    device: str,
) -> None:
    """Add a compiled form of every variant that can be compiled, ready to run; a name without it tells why not."""
    torch._inductor.config.compile_threads = 1
    for name, variant in fresh.items():
        if name == RANDOM:
            continue
        first = by_policy[variant.policy][0]
        wanted = float(variants[name].loss(first[0]))
        before = sum(os.times()[:4])
        try:
            variant.compile()
            variant.step(first * 2)
        except Exception as error:  # whatever the compiler says; the peer is then told as not compiled
            variants[name].facts["not_compiled"] = str(error).splitlines()[0]
            continue
        variant.facts["compile_seconds"] = round(sum(os.times()[:4]) - before, 1)
        if not abs(float(variant.loss(first[0])) / wanted - 1) < 1e-2:
            raise ValueError(f"{name} computes another loss compiled")
        variants[f"{name}, compiled"] = variant


def one_turn_after_another(variant: Variant, turns: Sequence[Sequence[PaddedBatch]]) -> Callable[[], None]:
    """Return what trains on the batches of the next turn at each call."""
    following: Iterator[Sequence[PaddedBatch]] = itertools.cycle(turns)
    return lambda: variant.step(next(following))


def padding(turns: Sequence[Sequence[PaddedBatch]], policy: str) -> float:
    """Padded over real rows, as the policy's models pad."""
    if policy == "shuffled":
        return 1.0
    batches = [batch for turn in turns for batch in turn]
    rows = sum(batch.ragged.layout.num_rows for batch in batches)
    if policy == "buckets":
        return sum(batch.gather.numel() for batch in batches) / rows
    return sum(batch.labels.numel() + batch.region_mask.numel() for batch in batches) / rows


def best_of(per_row: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Time of each peer's best setting over that of dimvl's best, by peer."""

    def best(name: str) -> str:
        return min((n for n in (name, f"{name}, compiled") if n in per_row), key=lambda n: float(np.median(per_row[n])))

    mine, names = best(OURS), [name for name in per_row if not name.endswith("compiled") and name != OURS]
    return {
        name: {"settings": [best(name), mine], "times_slower": ratio(per_row[best(name)], per_row[mine])}
        for name in names
    }


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
    """Time of one step by rows: one batch each, of a small model, fp32."""
    lengths = draw_lengths("mixed", FILE)
    ends = np.cumsum(lengths.sum(axis=1))
    variant = ours(Size(layers=2, width=64, heads=2, budget=0, batches=1).model(("qkv",)), device, "fp32")
    batches = {rows: pad_nothing(make_batch(lengths, np.arange(np.searchsorted(ends, rows))), device) for rows in sizes}
    runs = {str(rows): lambda batch=batch: variant.step([batch]) for rows, batch in batches.items()}
    seconds = interleaved(runs, rounds, device)
    medians = {rows: float(np.median(seconds[str(rows)])) for rows in sizes}
    exponent = np.polyfit(np.log(list(medians)), np.log(list(medians.values())), 1)[0]
    return {
        "layers": 2,
        "width": 64,
        "microseconds_per_row": {str(rows): 1e6 * value / rows for rows, value in medians.items()},
        "exponent": float(exponent),
    }


def pad_nothing(batch: Any, device: str) -> Any:
    """Hold a ragged batch as a `PaddedBatch` does, for a size at which padding has no use."""
    moved = batch.to(torch.device(device))
    return type("Held", (), {"ragged": moved, "words": moved.targets["words"].labels})()


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Measure everything."""
    if small:
        base = few = Size(layers=1, width=32, heads=2, budget=240, batches=2)
    elif device == "cuda":
        base = few = Size(layers=12, budget=10_240, batches=4)
    else:
        base, few = Size(layers=12, budget=320, batches=2), Size(layers=4, budget=320, batches=1)
    files: dict[str, Any] = {}
    for kind in KINDS:
        for precision in ("fp32", "bf16"):
            size, compiled = base if kind == "mixed" else few, not small and kind == "mixed"
            files.setdefault(kind, {})[precision] = measure_file(kind, precision, size, device, rounds, compiled)
            gc.collect()
    pairs = 3 if small else max(30, rounds)
    two = copy.copy(base) if small else Size(layers=2, budget=512, batches=1)
    sizes = (200, 400) if small else (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
    return {
        "files": files,
        "decoupled": measure_decoupling(two, device, pairs),
        "growth": measure_growth(sizes, device, rounds),
    }
