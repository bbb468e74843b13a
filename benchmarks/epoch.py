"""What planning an epoch costs a process as the data grows, and how fast one core makes batches.

    python -m benchmarks epoch

For each size, a region store of that many images and one caption each are written. A fresh process then opens them as
pretraining does, finds the images in the store and plans the first epoch; another process opens the same stores and
finds both done. Memory is the process's own above what it had before (`kept`) and its highest (`peak`), in bytes per
example; time is CPU time in microseconds per example. Dealing is measured on its own: one step of `ROWS_PER_GPU` rows
per GPU, dealt over all GPUs, which every process does for itself. Batches are made of images with 36 regions x 2048
float16 and one caption of about 12 words.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import TEXTS, make_extractor, make_processor, steps_of, write_regions, write_texts
from benchmarks.harness import in_fresh_process, memory
from benchmarks.memory import WIDTH, write_narrow_regions
from dimvl.data.prefixes import ImageReader
from dimvl.data.sampler import TrainingSteps, deal
from dimvl.data.text_store import TextStore
from dimvl.regions.store import RegionStore
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.pretraining.config import ObjectivesConfig
from dimvl.tasks.pretraining.training import PretrainSource, target_specs

ROWS_PER_STEP, ROWS_PER_GPU = 65_536, 8192
CAPTIONS = tuple(" ".join(" ".join(TEXTS).split()[:words]) for words in range(6, 19))


def open_steps(folder: Path, width: int) -> TrainingSteps:
    """Open both stores as a pretraining run does."""
    processor = make_processor(make_extractor(width))
    reader = ImageReader(RegionStore(folder / "regions"), processor.tags, processor.max_regions)
    (manifest,) = folder.glob("texts/*/manifest.json")
    texts = TextStore(manifest.parent)
    source = PretrainSource(texts, reader, ObjectivesConfig(), Seq2seqConfig(), processor.tokenizer, seed=0)
    return steps_of(source, processor, target_specs(len(processor.extractor.classes)), ROWS_PER_STEP, folder / "plans")


def write(folder: Path, images: int) -> None:
    """Write both stores."""
    write_narrow_regions(folder / "regions", images)
    write_texts(folder, make_processor(make_extractor(WIDTH)).tokenizer, images, texts=CAPTIONS)


def plan(folder: Path, images: int) -> dict[str, float]:
    """Open, find the images and plan an epoch: bytes and microseconds per example."""
    before, started = memory(), time.process_time()
    steps = open_steps(folder, WIDTH)
    opened, after_opening = time.process_time(), memory()
    steps.locate(0)
    planned, after_planning = time.process_time(), memory()
    return {
        "open_microseconds": (opened - started) * 1e6 / images,
        "plan_microseconds": (planned - opened) * 1e6 / images,
        "open_kept": (after_opening["anonymous"] - before["anonymous"]) / images,
        "plan_kept": (after_planning["anonymous"] - before["anonymous"]) / images,
        "peak": (after_planning["peak"] - before["peak"]) / images,
    }


def deal_steps() -> dict[int, dict[str, float]]:
    """Milliseconds that each process takes to deal one step, by number of GPUs."""
    found = {}
    for gpus in (8, 64, 512):
        costs = np.random.default_rng(0).integers(58, 99, ROWS_PER_GPU * gpus // 78)
        started = time.process_time()
        deal(costs, gpus, ROWS_PER_GPU)
        found[gpus] = {"examples": len(costs), "milliseconds": (time.process_time() - started) * 1e3}
    return found


def batches(folder: Path, images: int) -> dict[str, float]:
    """Examples per second of one core: read, masked and collated into a batch."""
    write_regions(folder / "regions", images)
    write_texts(folder, make_processor(make_extractor()).tokenizer, images, texts=CAPTIONS)
    steps = open_steps(folder, make_extractor().feature_width)
    steps[0]
    started, examples = time.process_time(), 0
    for number in range(1, 9):
        examples += steps[number].examples
    return {"examples_per_second": examples / (time.process_time() - started)}


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Measure every size once; `device` and `rounds` have no effect."""
    sizes = {}
    for examples in (1000,) if small else (1_000_000, 6_000_000):
        place = folder / str(examples)
        place.mkdir()
        in_fresh_process(write, place, examples)
        sizes[examples] = {name: in_fresh_process(plan, place, examples) for name in ("first", "another")}
    return {"examples": sizes, "dealing": deal_steps(), "batches": batches(folder, 40 if small else 2000)}
