"""Training steps beside other ways to train the same work: how many samples a second, and what decoupling costs.

    python -m benchmarks train

A step is forward and backward of masked language modelling over the samples of `samples.py`; what the optimiser does is
the same for all and is left out. Peers are in `peers.py`. Before anything is timed every variant shows that its loss is
right: that of dimvl for equal weights, or for models of transformers the one computed plainly from their logits.

- `settings`: by precision, what is quicker for each variant, measured with two layers on mixed lengths before: for the
  padded peers torch's attention kernel or two products, for all with or without `torch.compile` of each layer with
  dynamic lengths (of what follows attention, for dimvl). Everything else is measured at these settings.
- `files`: by length file and precision; mixed lengths once in batches of 1,024 rows beside other single streams and
  once in batches of 512 beside what computes logits everywhere. Within a round, dimvl and what is padded in UNITER's
  way train on the same samples: those of some batches of UNITER's token buckets, which dimvl takes shuffled, so of
  mixed lengths. transformers' models pad regions and tokens each to their longest, and get buckets sorted by regions,
  where that wastes least, and for comparison random batches. `times_slower` is time per row without padding over that
  of dimvl in the same round: median, 10th and 90th percentile.
- `decoupled`: the encoder alone with `split: [qkv]` against `split: []` on the same rows: operations as torch counts
  them, and the time ratio over 30 pairs or more with the upper end of its 95% interval.
- `growth`: time per row of one step of a small model by rows, and the exponent of time over rows.

Only what is told by `layers` differs from the base size (12 layers x 768). On CUDA bf16 and mixed lengths only, in
batches of 10,240 rows.
"""

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.compiled import Compiled, Trial, try_compiled
from benchmarks.harness import interleaved, ratio, upper_bound
from benchmarks.peers import CORES, Core, PaddedLayer
from benchmarks.samples import KINDS, PaddedBatch, deal_again, draw_lengths, make_batch, pad, token_buckets
from benchmarks.variants import (
    ALL,
    LOGITS_EVERYWHERE,
    OURS,
    RANDOM,
    SINGLE_STREAMS,
    VISUALBERT,
    Size,
    Variant,
    check,
    engine_of,
    loss_of,
    variants_of,
)
from dimvl.cpu.linear import FLOP_FORMULAS
from dimvl.data.batch import Batch
from dimvl.model.encoder import Block
from dimvl.model.plan import plan_attention

FILE, MOST_TOKENS = 8192, 36


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
        found["random"].append([generator.integers(0, FILE, count)])
    return found


def batches_of(kind: str, size: Size, device: str, turns: int) -> dict[str, list[list[PaddedBatch]]]:
    """Batches by policy, turn and batch."""
    lengths = draw_lengths(kind, FILE)
    return {
        name: [[pad(make_batch(lengths, samples)).to(torch.device(device)) for samples in turn] for turn in given]
        for name, given in policies(kind, size, turns).items()
    }


@dataclass(kw_only=True)
class Settings(Compiled):
    """What is quicker: attention of the padded peers, and compiled or not."""

    attention: str

    def compiles(self, name: str) -> bool:
        """Whether a variant is quicker compiled."""
        return super().compiles(VISUALBERT if name == RANDOM else name)


def choose_settings(precision: str, size: Size, device: str, rounds: int, names: Sequence[str]) -> Settings:
    """Try all settings with two layers on mixed lengths, with and without compiling the variants named.

    Raises:
        ValueError: a variant computes another loss when it is compiled.

    """
    torch.compiler.reset()
    size = replace(size, layers=2, batches=1)
    batches = batches_of("mixed", size, device, rounds + 1)
    core = quickest_core(size, batches["buckets"][0][0], device, precision)

    def trial(name: str) -> Trial:
        plain, other = (variants_of([name], size, core, device, precision)[name] for _ in range(2))
        other.model.load_state_dict(plain.model.state_dict())
        turns = batches[plain.policy]

        def check() -> None:
            losses = [loss_of(each, turns[0][0]) for each in (plain, other)]
            if not abs(losses[1] / losses[0] - 1) < 1e-2:
                raise ValueError(f"{name} computes a loss of {losses[1]} compiled and {losses[0]} not compiled")

        runs = [one_turn_after_another(each, turns) for each in (plain, other)]
        return Trial(plain=runs[0], compile=lambda: other.compile_for(turns), compiled=runs[1], check=check)

    trials = {name: trial(name) for name in names}
    return Settings(attention=core, **vars(try_compiled(trials, rounds, device)))


def measure_file(
    kind: str, precision: str, names: Sequence[str], size: Size, settings: Settings, device: str, rounds: int
) -> dict[str, Any]:
    """Check and time variants on a length file."""
    batches = batches_of(kind, size, device, rounds + 1)
    variants = variants_of(names, size, settings.attention, device, precision)
    differences = check(variants, batches["buckets"][0][0], device)
    for name, variant in variants.items():
        variant.facts = {**variant.facts, "compiled": settings.compiles(name)}
        if settings.compiles(name):
            variant.compile_for(batches[variant.policy])
    runs = {name: one_turn_after_another(variant, batches[variant.policy]) for name, variant in variants.items()}
    seconds = interleaved(runs, rounds, device)
    rows = {
        name: np.array([sum(batch.rows for batch in turn) for turn in batches[variant.policy][1:]])
        for name, variant in variants.items()
    }
    per_row = {name: values / rows[name] for name, values in seconds.items()}
    mean = float(draw_lengths(kind, FILE).sum(axis=1).mean())
    return {
        **{"layers": size.layers, "rows": float(np.mean(rows[OURS])) / size.batches, "mean_rows": mean},
        "loss_differences": differences,
        "variants": {
            name: {
                "samples_per_second": float(1 / np.median(values) / mean),
                "times_slower": ratio(values, per_row[OURS]),
                "padding": padding(batches[variants[name].policy], variants[name].policy),
                **variants[name].facts,
            }
            for name, values in per_row.items()
        },
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


def one_turn_after_another(variant: Variant, turns: Sequence[Sequence[PaddedBatch]]) -> Callable[[], None]:
    """Return what trains on the batches of the next turn at each call."""
    following: Iterator[Sequence[PaddedBatch]] = itertools.cycle(turns)
    return lambda: variant.step(next(following))


def padding(turns: Sequence[Sequence[PaddedBatch]], policy: str) -> float:
    """Padded over real rows, as the policy's models pad."""
    if policy == "shuffled":
        return 1.0
    batches = [batch for turn in turns for batch in turn]
    rows = sum(batch.rows for batch in batches)
    if policy == "buckets":
        return sum(batch.gather.numel() for batch in batches) / rows
    return sum(batch.labels.numel() + batch.region_mask.numel() for batch in batches) / rows


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
            with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
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
    model = Size(layers=2, width=64, heads=2, budget=0, batches=1).model(("qkv",))
    engine = engine_of(model, device, "fp32")

    def step(batch: Batch) -> None:
        engine.backward(engine.losses(batch)["words"], is_last=True)
        model.zero_grad(set_to_none=True)

    counts = {rows: np.arange(np.searchsorted(ends, rows)) for rows in sizes}
    batches = {rows: make_batch(lengths, numbers).to(torch.device(device)) for rows, numbers in counts.items()}
    runs = {str(rows): lambda batch=batch: step(batch) for rows, batch in batches.items()}
    seconds = interleaved(runs, rounds, device)
    medians = {rows: float(np.median(seconds[str(rows)])) for rows in sizes}
    exponent = np.polyfit(np.log(list(medians)), np.log(list(medians.values())), 1)[0]
    return {
        "layers": 2,
        "width": 64,
        "microseconds_per_row": {str(rows): 1e6 * value / rows for rows, value in medians.items()},
        "exponent": float(exponent),
    }


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Measure everything."""
    if small:
        base = half = few = Size(layers=1, width=32, heads=2, budget=240, batches=2)
    elif device == "cuda":
        base = half = few = Size(layers=12, budget=10_240, batches=4)
    else:
        base, few = Size(layers=12, budget=1024, batches=2), Size(layers=4, budget=512, batches=1)
        half = replace(base, budget=512)
    files = {
        "mixed": ("mixed", SINGLE_STREAMS, base),
        "mixed, logits everywhere": ("mixed", LOGITS_EVERYWHERE, half),
        **{kind: (kind, ALL, few) for kind in KINDS if kind != "mixed"},
    }
    precisions, compiled = ("fp32", "bf16"), () if small else ALL
    if device == "cuda" and not small:  # what the goals name
        precisions, files = ("bf16",), dict(itertools.islice(files.items(), 2))
        compiled = (*SINGLE_STREAMS, VISUALBERT)
    found: dict[str, Any] = {"settings": {}, "files": {name: {} for name in files}}
    for precision in precisions:
        settings = choose_settings(precision, half, device, rounds, compiled)
        found["settings"][precision] = asdict(settings)
        for name, (kind, names, size) in files.items():
            found["files"][name][precision] = measure_file(kind, precision, names, size, settings, device, rounds)
            gc.collect()
    rows = 32_768 if device == "cuda" else 2048
    one = base if small else Size(layers=1, budget=rows, batches=1)
    sizes = (200, 400) if small else (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
    return {
        **found,
        "decoupled": measure_decoupling(one, device, 3 if small else max(30, rounds)),
        "growth": measure_growth(sizes, device, rounds),
    }
