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
  `torch.compile` before, for all lengths to come; `compile_seconds` is processor time of that, the C++ compiler's and
  the first runs' included.
- `best`: dimvl at its best setting against each peer at its best, the goals' figures.
- `decoupled`: the encoder alone with `split: [qkv]` against `split: []` on the same rows: operations as torch counts
  them, and the time ratio over 30 pairs or more with the upper end of its 95% interval.
- `growth`: time per row of one step of a small model by rows, and the exponent of time over rows.

Only what is told by `layers` differs from the base size (12 layers x 768).
"""

import gc
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import interleaved, ratio, upper_bound
from benchmarks.peers import CORES, Core, PaddedLayer
from benchmarks.samples import KINDS, PaddedBatch, deal_again, draw_lengths, make_batch, pad, token_buckets
from benchmarks.variants import OURS, RANDOM, Size, Variant, check, engine_of, loss_of, variants_of
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
        name: np.array([sum(batch.rows for batch in turn) for turn in by_policy[variant.policy][1:]])
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
                "samples_per_second": float(1 / np.median(values) / mean),
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
        turns = by_policy[variant.policy]
        wanted = loss_of(variants[name], turns[0][0])
        before = sum(os.times()[:4])
        try:
            variant.compile()
            variant.see_all(turns)
            variant.step(turns[0])
        except Exception as error:  # whatever the compiler says; the peer is then told as not compiled
            variants[name].facts["not_compiled"] = str(error).splitlines()[0]
            continue
        variant.facts["compile_seconds"] = round(sum(os.times()[:4]) - before, 1)
        if not abs(loss_of(variant, turns[0][0]) / wanted - 1) < 1e-2:
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
    rows = sum(batch.rows for batch in batches)
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
    two = base if small else Size(layers=2, budget=512, batches=1)
    sizes = (200, 400) if small else (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
    return {
        "files": files,
        "decoupled": measure_decoupling(two, device, pairs),
        "growth": measure_growth(sizes, device, rounds),
    }
