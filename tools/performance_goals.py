"""The goals of speed, and what the results of the benchmarks say of each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

Results = dict[str, dict[str, Any]]
PADDED, UNITER, VISUALBERT = "padded single stream", "UNITER", "VisualBert"


@dataclass(frozen=True)
class Goal:
    """A goal, what was measured, and whether that meets it: `met`, `missed` or `not measured`."""

    work: str
    wanted: str
    figure: str
    verdict: str


def judged(work: str, wanted: str, figure: str, met: bool) -> Goal:
    """Tell a goal that was measured."""
    return Goal(work, wanted, figure, "met" if met else "**missed**")


def spread(ratio: list[float]) -> str:
    """Tell a ratio with its 10th and 90th percentile."""
    return "{:.2f}x ({:.2f}-{:.2f})".format(*ratio)


def training(result: dict[str, Any]) -> Iterator[Goal]:
    """Training steps against each peer at its best setting, mixed lengths."""
    for peer, least in ((PADDED, 1.0), (UNITER, 1.2), (VISUALBERT, 2.5)):
        by = result["files"]["mixed, logits everywhere" if peer == VISUALBERT else "mixed"]
        ratios = {precision: found["variants"][peer]["times_slower"] for precision, found in by.items()}
        figure = ", ".join(f"{precision} {spread(ratio)}" for precision, ratio in ratios.items())
        name = {PADDED: f"a {PADDED} with token buckets", UNITER: "UNITER as published"}.get(peer, peer)
        met = all(ratio[0] >= least for ratio in ratios.values())
        yield judged(f"training step, mixed lengths, against {name}", f"{least}x", figure, met)
    found = {precision: result["decoupled"][precision] for precision in ("fp32", "bf16")}
    equal = all(len(set(part["flops"].values())) == 1 for part in found.values())
    bounds = ", ".join(f"{precision} {part['upper_bound']:.3f}" for precision, part in found.items())
    met = equal and all(part["upper_bound"] <= 1.05 for part in found.values())
    figure = f"{'equal' if equal else 'unequal'}; {bounds}"
    wanted = "equal operations; upper end of 95% of the time ratio 1.05"
    yield judged("decoupled against shared projections, same rows", wanted, figure, met)
    by = {int(rows): value for rows, value in result["growth"]["microseconds_per_row"].items()}
    exponent, most = result["growth"]["exponent"], max(by)
    figure = f"exponent {exponent:.2f}; {by[min(by)]:.0f} microseconds a row at {min(by):,}, {by[most]:.0f} at {most:,}"
    yield judged("growth: time of a step from 1k to 64k rows", "linear: exponent 1.05", figure, exponent <= 1.05)


def end_to_end(result: dict[str, Any]) -> Iterator[Goal]:
    """Shared prefixes against pairs."""
    shares = {name: part["share_of_flop_ratio"][0] for name, part in result["captions"].items()}
    figure = ", ".join(
        f"{name} {result['captions'][name]['time_ratio'][0]:.2f}x = {s:.0%}" for name, s in shares.items()
    )
    work = "five captions an image, end to end, against pairs"
    yield judged(work, "90% of the ratio of operations", figure, min(shares.values()) >= 0.9)


def on_a_gpu(result: dict[str, Any]) -> Iterator[Goal]:
    """One H100."""
    part = result["run"]
    met = part["utilisation"] >= 0.45 and part["data_wait"] < 0.02
    figure = f"{part['utilisation']:.0%}; {part['data_wait']:.1%} on {result['hardware']}"
    yield judged(H100, H100_WANTED, figure, met)
    for goal in end_to_end(result):
        yield replace(goal, work=f"{goal.work}, on {result['hardware']}")


def decoding(result: dict[str, Any]) -> Iterator[Goal]:
    """Beam search against other decoders, the smallest ratio over batch sizes."""
    by_batch = result["batches"]["5 beams"]["drawn"]
    for peer, least in (("VLP's policy, our kernels", 4.0), ("BLIP's decoder", 1.5)):
        ratios = {count: found[peer]["times_slower"][0] for count, found in by_batch.items()}
        figure = ", ".join(f"{ratio:.2f}x at batch {count}" for count, ratio in ratios.items())
        yield judged(f"five beams against {peer}", f"{least}x", figure, min(ratios.values()) >= least)


def cold_start(result: dict[str, Any]) -> Iterator[Goal]:
    """Fresh processes, by wall time."""
    cold = result["cold_start"]
    figures = [
        ("`--help`", 0.3, "0.3 s", cold["seconds"]["dimvl --help"]),
        ("first prediction of a tiny model", 2.0, "`import torch` + 2 s", cold["answer_over_import_torch"]),
    ]
    for work, most, wanted, part in figures:
        more = "" if most < 1 else "`import torch` + "
        figure = f"{more}{part['wall']:.2f} s, {part['processor']:.2f} s of processor time"
        yield judged(f"{work} from a cold start", wanted, figure, part["wall"] < most)


def reading(result: dict[str, Any]) -> Iterator[Goal]:
    """Regions a core against other formats, as a batch takes them; int8 is a store of its own."""
    by = result["warm"]["kept"]
    for peer, least in (("LMDB msgpack", 5), ("TSV base64", 60)):
        ratio = by[peer]["times_slower"]
        int8 = ratio[0] / by["dimvl, int8"]["times_slower"][0]
        figure = f"float16 {spread(ratio)}, int8 {int8:.1f}x"
        verdict = "met" if ratio[0] >= least else "met by int8 alone" if int8 >= least else "**missed**"
        yield Goal(f"reading regions, per core, against {peer}", f"{least}x", figure, verdict)


def memory(result: dict[str, Any]) -> Iterator[Goal]:
    """Growth of a loader's own memory with the stores, between the two largest."""
    by = {int(entries): part["load"]["200_steps"]["anonymous"] for entries, part in result["entries"].items()}
    less, most = sorted(by)[-2:]
    each = (by[most] - by[less]) * 2**20 / (most - less)
    figure = f"{each:.1f} bytes an entry of the loader's own; {by[less]:.1f} MB at {less:,}, {by[most]:.1f} at {most:,}"
    yield judged("memory in the size of both stores", "flat: 0 bytes an entry", figure, each < 0.5)


H100, H100_WANTED = "one H100, base size, 100+36, bf16, loader on", "45% of the 8192^3 product; data wait under 2%"
SUITES: dict[str, tuple[str, Callable[[dict[str, Any]], Iterator[Goal]]]] = {
    "train": ("training steps", training),
    "end_to_end": ("five captions an image, end to end, against pairs", end_to_end),
    "end_to_end-cuda": (f"{H100} ({H100_WANTED})", on_a_gpu),
    "decode": ("five beams against VLP's policy (4x) and BLIP's decoder (1.5x)", decoding),
    "inference": ("`--help` and the first prediction from a cold start", cold_start),
    "store": ("reading regions", reading),
    "memory": ("memory in the size of both stores", memory),
}


def all_goals(results: Results) -> Iterator[Goal]:
    """All goals; those whose benchmark has no result here are told as not measured."""
    for name, (work, goals) in SUITES.items():
        if name in results:
            yield from goals(results[name])
        else:
            yield Goal(work, "", f"`python -m benchmarks {name.replace('-cuda', ' --device cuda')}`", "not measured")
