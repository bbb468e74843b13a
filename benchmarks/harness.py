"""How every suite measures and reports: variants take turns in one process, and a result names where it comes from.

The machine may be shared, so only ratios within one round count. Time is the process's CPU time over all threads (user
and system), which other load changes least, and on a GPU the time between two events.
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
PACKAGES = ("transformers", "deepspeed", "h5py", "lmdb", "msgpack", "pycocoevalcap", "torchvision")


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", seed: int = 0, warm: bool = False
) -> dict[str, np.ndarray]:
    """Run every variant once per round, in a new random order each round, after one round that does not count.

    Variants that are `warm`, which have run before, need no such round.

    Returns:
        Seconds by name, each (rounds,).

    """
    generator, clock = random.Random(seed), _cuda_seconds if device == "cuda" else _cpu_seconds
    seconds = {name: np.zeros(rounds) for name in variants}
    for turn in range(0 if warm else -1, rounds):
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


def ratio(seconds: np.ndarray, to: np.ndarray | float = 1.0) -> list[float]:
    """Ratio within each round: median, 10th and 90th percentile."""
    return [round(float(value), 3) for value in np.quantile(seconds / to, [0.5, 0.1, 0.9])]


def speeds(
    seconds: Mapping[str, np.ndarray], base: str, unit: str, count: float = 1, digits: int | None = None
) -> dict[str, dict[str, Any]]:
    """Report `count` over the median time of each variant as `unit`, and its time over that of `base`."""
    return {
        name: {unit: round(count / float(np.median(spent)), digits), "times_slower": ratio(spent, seconds[base])}
        for name, spent in seconds.items()
    }


def upper_bound(seconds: np.ndarray, to: np.ndarray, draws: int = 10_000) -> float:
    """Upper end of the 95% interval of the median ratio, by a bootstrap over the rounds."""
    drawn = np.random.default_rng(0).choice(seconds / to, (draws, len(seconds)))
    return float(np.quantile(np.median(drawn, axis=1), 0.975))


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module's function in a new process, which shares no memory with this one, and return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory(process: int | str = "self") -> dict[str, int]:
    """Bytes of a process: its own (`anonymous`), mapped `files`, all that is `resident`, and the `peak` of that."""
    names = {"RssAnon:": "anonymous", "RssFile:": "files", "VmRSS:": "resident", "VmHWM:": "peak"}
    lines = map(str.split, Path(f"/proc/{process}/status").read_text().splitlines())
    return {names[name]: 1024 * int(rest[0]) for name, *rest in lines if name in names}


def hardware(device: str = "cpu") -> str:
    """Name the GPU, or the CPU and its number of cores."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    return f"{os.cpu_count()}-core {model}"


def write_result(name: str, out: Path | None = None, **facts: Any) -> None:
    """Print a result with its command, date, hardware and versions, and write it to `out` if given."""
    arguments = [argument for argument in sys.argv[1:] if argument != name]
    if "--out" in arguments:  # does not affect the result
        del arguments[(place := arguments.index("--out")) : place + 2]
    if "--data" in arguments:
        place = arguments.index("--data") + 1
        arguments[place] = Path(arguments[place]).name
    packages = ("torch", "numpy", *(package for package in PACKAGES if package in sys.modules))
    result = {
        "command": " ".join(["python -m benchmarks", name, *arguments]),
        "date": str(date.today()),
        "hardware": hardware(facts.get("device", "cpu")),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        **facts,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
