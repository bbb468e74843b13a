"""Memory of a loader process over large stores: what it holds of the region store and of the tokenised texts.

    python -m benchmarks memory

For each size, a region store of that many images and a text store with one caption each are written. A fresh process
then loads the pickled data set, as a spawned loader process does, and builds batches in random order. `anonymous` is
its own memory (Python objects and arrays), `files` are mapped pages, which all processes share with the page cache.
Figures are megabytes above a process that has imported the same modules and opened nothing. The regions are few and
narrow: only the number of images matters here. Finally a run over as many captions is started and resumed, each in its
own process.
"""

import json
import pickle
import time
from pathlib import Path
from typing import Any

from benchmarks.data import TEXTS, caption_steps, image_id, make_extractor, make_processor, write_regions
from benchmarks.harness import in_fresh_process, memory
from dimvl.regions.store import RegionStore
from dimvl.tasks.captioning.config import CaptionConfig
from dimvl.training.run import run_training

WIDTH, STEPS = 16, 200


def write_narrow_regions(folder: Path, images: int) -> None:
    """Write a store of images with two narrow regions each, in many shards."""
    write_regions(folder, images, 2, WIDTH, shard_bytes=2**20)


def megabytes() -> dict[str, float]:
    """Memory of this process in MB."""
    return {name: value / 2**20 for name, value in memory().items()}


def write(folder: Path, images: int) -> dict[str, dict[str, float]]:
    """Write both stores and the pickled data set; return the time and peak memory of each."""
    figures, started = {}, time.process_time()
    write_narrow_regions(folder / "regions", images)
    figures["regions"] = {"cpu_seconds": time.process_time() - started, "peak": megabytes()["peak"]}
    started = time.process_time()
    processor = make_processor(make_extractor(WIDTH))
    steps = caption_steps(folder, RegionStore(folder / "regions"), processor, 2048)
    figures["texts"] = {"cpu_seconds": time.process_time() - started, "peak": megabytes()["peak"]}
    (folder / "data.pickle").write_bytes(pickle.dumps(steps))
    return figures


def load(folder: Path) -> dict[str, Any]:
    """Build batches as a loader process does, and return the memory that takes."""
    data = (folder / "data.pickle").read_bytes()
    before, started = megabytes(), time.process_time()

    def grown() -> dict[str, float]:
        now = megabytes()
        return {name: now[name] - before[name] for name in ("anonymous", "files")}

    steps = pickle.loads(data)
    figures: dict[str, Any] = {"opened": grown()}
    steps[0]
    figures |= {"first_step": grown(), "cpu_seconds_to_first": time.process_time() - started}
    for step in range(1, STEPS):
        steps[step]
    return {**figures, f"{STEPS}_steps": grown(), "pickle": len(data) / 2**20, "peak": megabytes()["peak"]}


def start(folder: Path, images: int) -> dict[str, float]:
    """Start or resume a run of one step, and return the memory and time that takes."""
    captions = folder / "captions.jsonl"
    if not captions.exists():
        with captions.open("w") as file:
            for number in range(images):
                file.write(json.dumps({"image": image_id(number), "caption": TEXTS[number % 3]}) + "\n")
    content = {"task": "caption", "output": folder / "run", "regions": folder / "regions", "captions": captions}
    content |= {"model": {"layers": 1, "width": 16, "heads": 2, "inner_width": 16}, "inputs": {"vocabulary": 200}}
    content |= {"training": {"steps": 1, "rows_per_step": 1024, "rows_per_micro_batch": 1024}}
    before, started = megabytes(), time.process_time()
    run_training(CaptionConfig(**content))
    after = megabytes()
    grown = {name: after[name] - before[name] for name in ("peak", "anonymous")}
    return grown | {"cpu_seconds": time.process_time() - started}


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Measure every size once; `device` and `rounds` have no effect."""
    sizes = {}
    for entries in (100, 1000) if small else (1000, 50_000, 1_000_000):
        place = folder / str(entries)
        place.mkdir()
        stages = {"write": (write, place, entries), "load": (load, place)}
        stages |= {name: (start, place, entries) for name in ("first start", "later start")}
        sizes[entries] = {name: in_fresh_process(*call) for name, call in stages.items()}
    return {"unit": "MB", "entries": sizes}
