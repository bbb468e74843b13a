"""How everything here is measured and written down: variants by turns in one process, results with where they are from.

The machine may be shared, so only ratios within one round count. Time is processor time of all threads on a CPU (user
and system; other load changes it least) and the time between two events on a GPU.
"""

import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", seed: int = 0
) -> dict[str, np.ndarray]:
    """Run every variant once a round, in an order shuffled anew each round, after one round that does not count.

    Args:
        variants: what to run, by name.
        rounds: at least 5 where the result is kept.
        device: `cpu` or `cuda`.
        seed: of the order.

    Returns:
        Seconds by name, each (rounds,).

    """
    generator, clock = random.Random(seed), _cuda_seconds if device == "cuda" else _cpu_seconds
    seconds = {name: np.zeros(rounds) for name in variants}
    for turn in range(-1, rounds):
        for name in generator.sample(list(variants), len(variants)):
            spent = clock(variants[name])
            if turn >= 0:
                seconds[name][turn] = spent
    return seconds


def _cpu_seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def _cuda_seconds(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def ratio(seconds: np.ndarray, to: np.ndarray) -> list[float]:
    """Ratio within each round: median, 10th and 90th percentile."""
    return [round(float(value), 3) for value in np.quantile(seconds / to, [0.5, 0.1, 0.9])]


def upper_bound(seconds: np.ndarray, to: np.ndarray, draws: int = 10_000) -> float:
    """Upper end of the 95% interval of the median ratio over rounds, by a bootstrap over the rounds."""
    drawn = np.random.default_rng(0).choice(seconds / to, (draws, len(seconds)))
    return float(np.quantile(np.median(drawn, axis=1), 0.975))


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a module in a new process, which holds the memory of nothing else; return what it returns."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory() -> dict[str, int]:
    """Bytes of this process: its own (`anonymous`), mapped `files`, all that is `resident` and the `peak` of that."""
    names = {"RssAnon": "anonymous", "RssFile": "files", "VmRSS": "resident", "VmHWM": "peak"}
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {names[name]: 1024 * int(rest[0]) for first, *rest in lines if (name := first[:-1]) in names}


def hardware(device: str = "cpu") -> str:
    """Name the GPU, or the processor and its cores."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    return f"{os.cpu_count()}-core {model}"


def write_result(name: str, packages: tuple[str, ...] = (), out: Path | None = None, **facts: Any) -> None:
    """Print a result with command, date, hardware and versions, and write it.

    Args:
        name: of the benchmark: `python -m benchmarks NAME`.
        packages: whose versions matter besides torch's and numpy's.
        out: file to write; none for printing only.
        facts: the result; `device` among them says what it ran on.

    """
    arguments = [argument for argument in sys.argv[1:] if argument != name]
    if "--out" in arguments:  # where it was written changes nothing
        del arguments[(place := arguments.index("--out")) : place + 2]
    result = {
        "command": " ".join(["python -m benchmarks", name, *arguments]),
        "date": str(date.today()),
        "hardware": hardware(facts.get("device", "cpu")),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "numpy", *packages)},
        **facts,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
