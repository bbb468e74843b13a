"""What planning an epoch costs a process as the data grows, and how fast one core makes batches.

    python -m benchmarks epoch

For each size, a region store of so many images and one caption for each are written; then a fresh process opens them
as pretraining does, finds the images in the store, and plans the first epoch; then another process opens the same and
finds both done. Memory is what the process holds of its
own above what it held before (`kept`) and at its highest (`peak`), in bytes an example; time is of the processor, in
microseconds an example. Dealing is measured by itself: one step of `rows_per_gpu` rows on every GPU, dealt over all of
them, which every process does for itself. Batches are made of images with 36 regions x 2048 float16 and one caption.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import in_fresh_process, memory
from benchmarks.memory import EXTRACTOR, TEXTS, write_regions
from dimvl.config import ObjectivesConfig, Seq2seqConfig
from dimvl.data.examples import BatchShape, ImageReader
from dimvl.data.processor import Processor
from dimvl.data.sampler import TrainingSteps, deal
from dimvl.data.text_store import FORMAT, TextStore
from dimvl.data.tokenizer import Tokenizer
from dimvl.files import write_json
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.tasks.pretraining import PretrainSource, PretrainTask

WORDS, ROWS_PER_STEP, ROWS_PER_GPU = 12, 65_536, 8192
REAL = Extractor(
    name="real", fingerprint="0" * 64, parameters={}, feature_width=2048, classes=EXTRACTOR.classes, attributes=()
)


def write_texts(folder: Path, images: int) -> None:
    """Write the arrays of a text store with one caption of about `WORDS` tokens for each image."""
    lengths = np.random.default_rng(0).integers(WORDS // 2, 3 * WORDS // 2 + 1, images)
    ids = np.frombuffer("".join(f"{number:012}" for number in range(images)).encode(), dtype=np.uint8)
    arrays = {
        "token_ids": np.full(lengths.sum(), 7, dtype=np.int32),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "text_ids": np.arange(images),
        "groups": np.arange(images + 1),
        "image_bytes": ids,
        "image_offsets": 12 * np.arange(images + 1),
        "label_offsets": np.zeros(images + 1, dtype=np.int64),
        "label_ids": np.zeros(0, dtype=np.int32),
        "label_scores": np.zeros(0, dtype=np.float32),
    }
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    write_json(folder / "manifest.json", {"format": FORMAT, "texts_cut": 0})


def write_real_regions(folder: Path, images: int, regions: int = 36) -> None:
    """Write a store of images as real ones are: 36 regions x 2048."""
    generator = np.random.default_rng(0)
    corners = generator.random((regions, 2, 2)).astype(np.float32)
    arrays = {
        "boxes": np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1),
        "features": generator.random((regions, 2048)).astype(np.float16),
        "class_ids": generator.integers(0, 3, (regions, 1)).astype(np.int16),
        "class_scores": np.full((regions, 1), 0.5, np.float16),
        "attribute_ids": np.zeros((regions, 0), np.int16),
        "attribute_scores": np.zeros((regions, 0), np.float16),
    }
    with RegionStoreWriter(folder, REAL) as writer:
        for number in range(images):
            writer.add(Regions(image_id=f"{number:012}", width=640, height=480, **arrays))


def open_steps(folder: Path, extractor: Extractor) -> TrainingSteps:
    """Open both stores as a pretraining run does."""
    tokenizer = Tokenizer.train([*TEXTS, *extractor.classes], 200)
    processor = Processor(
        tokenizer=tokenizer, extractor=extractor, max_regions=36, tag_tokens=20, tag_score=0.3, text_tokens=40
    )
    reader = ImageReader(RegionStore(folder / "regions"), processor.tags, processor.max_regions)
    texts = TextStore(folder / "texts")
    source = PretrainSource(texts, reader, ObjectivesConfig(), Seq2seqConfig(), tokenizer, seed=0)
    shape = BatchShape(
        objectives=PretrainTask.objectives,
        text_start=processor.text_start,
        feature_width=extractor.feature_width,
        classes=len(extractor.classes),
    )
    budgets = {"rows_per_step": ROWS_PER_STEP, "rows_per_micro_batch": ROWS_PER_STEP}
    return TrainingSteps(source, shape, seed=0, steps=10**6, **budgets, plans=folder / "plans")


def write(folder: Path, images: int) -> None:
    """Write both stores."""
    write_regions(folder / "regions", images)
    write_texts(folder / "texts", images)


def plan(folder: Path, images: int) -> dict[str, float]:
    """Open, find the images and plan an epoch: bytes and microseconds an example."""
    before = memory()
    started = time.process_time()
    steps = open_steps(folder, EXTRACTOR)
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
    """Milliseconds that dealing one step over so many GPUs takes each process."""
    found = {}
    for gpus in (8, 64, 512):
        costs = np.random.default_rng(0).integers(58, 99, ROWS_PER_GPU * gpus // 78)
        started = time.process_time()
        deal(costs, gpus, ROWS_PER_GPU)
        found[gpus] = {"examples": len(costs), "milliseconds": (time.process_time() - started) * 1e3}
    return found


def batches(folder: Path, images: int) -> dict[str, float]:
    """Documents a second of one core: read, masked, laid out as a batch."""
    write_real_regions(folder / "regions", images)
    write_texts(folder / "texts", images)
    steps = open_steps(folder, REAL)
    steps[0]
    started, examples = time.process_time(), 0
    for number in range(1, 9):
        examples += steps[number].examples
    return {"examples_per_second": examples / (time.process_time() - started)}


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Measure every size, once; `device` and `rounds` change nothing here."""
    sizes = {}
    for examples in (1000,) if small else (1_000_000, 6_000_000):
        with tempfile.TemporaryDirectory() as folder:
            in_fresh_process(write, Path(folder), examples)
            sizes[examples] = {name: in_fresh_process(plan, Path(folder), examples) for name in ("first", "another")}
    with tempfile.TemporaryDirectory() as folder:
        return {"examples": sizes, "dealing": deal_steps(), "batches": batches(Path(folder), 40 if small else 2000)}
