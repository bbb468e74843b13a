"""Memory of a loader process over large stores: what it holds of the region store and of the tokenised texts.

    python -m benchmarks memory

For each size, a region store of so many images and a text store of one caption for each are written; then a fresh
process gets the pickled data set, as a spawned loader process does, and builds batches in random order. `anonymous` is
its own memory (what Python objects and arrays take), `files` the mapped pages of files, which all processes share with
the page cache. Figures are megabytes above those of a process that has imported the same modules and opened nothing.
The regions are few and narrow: only the number of images matters here. At last a run with as many captions is begun and
gone on with, each in a process of its own.
"""

import json
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import in_fresh_process, memory
from dimvl.config import CaptionConfig, Seq2seqConfig
from dimvl.data.batch import WordTargets
from dimvl.data.examples import BatchShape, ImageReader
from dimvl.data.processor import Processor
from dimvl.data.sampler import TrainingSteps
from dimvl.data.text_store import LabelledText, TextStore, text_store
from dimvl.data.tokenizer import Tokenizer
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store import RegionStore
from dimvl.regions.store_writer import RegionStoreWriter
from dimvl.tasks.captioning import OBJECTIVE, CaptionSource
from dimvl.training.run import run_training

WIDTH, REGIONS, STEPS = 16, 2, 200
TEXTS = ("a small red circle left of a large blue square", "there are two blue stars", "the star is above a circle")
EXTRACTOR = Extractor(
    name="synthetic",
    fingerprint="0" * 64,
    parameters={},
    feature_width=WIDTH,
    classes=("circle", "square", "star"),
    attributes=(),
)


def megabytes() -> dict[str, float]:
    """Memory of this process in MB."""
    return {name: value / 2**20 for name, value in memory().items()}


def write_regions(folder: Path, images: int) -> None:
    """Write a store of small images."""
    generator = np.random.default_rng(0)
    arrays = {
        "boxes": np.tile(np.array([0.1, 0.2, 0.3, 0.4], np.float32), (REGIONS, 1)),
        "features": generator.random((REGIONS, WIDTH)).astype(np.float16),
        "class_ids": np.zeros((REGIONS, 1), np.int16),
        "class_scores": np.full((REGIONS, 1), 0.5, np.float16),
        "attribute_ids": np.zeros((REGIONS, 0), np.int16),
        "attribute_scores": np.zeros((REGIONS, 0), np.float16),
    }
    with RegionStoreWriter(folder, EXTRACTOR, shard_bytes=2**20) as writer:
        for number in range(images):
            writer.add(Regions(image_id=f"{number:012}", width=640, height=480, **arrays))


def write_texts(folder: Path, images: int, tokenizer: Tokenizer) -> TextStore:
    """Tokenise one caption of each image."""
    source = folder / "captions.json"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(str(images))
    texts = [LabelledText(number, (f"{number:012}",), TEXTS[number % 3]) for number in range(images)]
    return text_store(folder, tokenizer, 40, [source], texts)


def write(folder: Path, images: int) -> dict[str, dict[str, float]]:
    """Write both stores and the pickled data set, and tell how long each took and the peak memory of it."""
    figures, started = {}, time.process_time()
    write_regions(folder / "regions", images)
    figures["regions"] = {"cpu_seconds": time.process_time() - started, "peak": megabytes()["peak"]}
    tokenizer, started = Tokenizer.train([*TEXTS, *EXTRACTOR.classes], 200), time.process_time()
    texts = write_texts(folder / "texts", images, tokenizer)
    figures["texts"] = {"cpu_seconds": time.process_time() - started, "peak": megabytes()["peak"]}
    processor = Processor(
        tokenizer=tokenizer, extractor=EXTRACTOR, max_regions=36, tag_tokens=20, tag_score=0.3, text_tokens=40
    )
    reader = ImageReader(RegionStore(folder / "regions"), processor.tags, processor.max_regions)
    source = CaptionSource(texts, reader, Seq2seqConfig(), tokenizer, seed=0)
    shape = BatchShape(
        objectives={OBJECTIVE: WordTargets}, text_start=processor.text_start, feature_width=WIDTH, classes=3
    )
    budgets = {"rows_per_step": 2048, "rows_per_micro_batch": 2048}
    steps = TrainingSteps(source, shape, seed=0, steps=10**6, **budgets, plans=folder / "plans")
    (folder / "data.pickle").write_bytes(pickle.dumps(steps))
    return figures


def load(folder: Path) -> dict[str, Any]:
    """Build batches as a loader process does, and tell what memory that took."""
    data = (folder / "data.pickle").read_bytes()
    before, started = megabytes(), time.process_time()
    steps = pickle.loads(data)
    opened = megabytes()
    steps[0]
    planned, seconds = megabytes(), time.process_time() - started
    for step in range(1, STEPS):
        steps[step]
    after = megabytes()

    def above(now: dict[str, float]) -> dict[str, float]:
        return {name: now[name] - before[name] for name in ("anonymous", "files")}

    figures = {"opened": above(opened), "first_step": above(planned), f"{STEPS}_steps": above(after)}
    return {**figures, "pickle": len(data) / 2**20, "peak": after["peak"], "cpu_seconds_to_first": seconds}


def start(folder: Path, images: int) -> dict[str, float]:
    """Begin a run of one step, or go on with the one that is there, and tell what memory that took."""
    captions = folder / "captions.jsonl"
    if not captions.exists():
        with captions.open("w") as file:
            for number in range(images):
                file.write(json.dumps({"image": f"{number:012}", "caption": TEXTS[number % 3]}) + "\n")
    content = {"task": "caption", "output": folder / "run", "regions": folder / "regions", "captions": captions}
    content |= {"model": {"layers": 1, "width": 16, "heads": 2, "inner_width": 16}, "inputs": {"vocabulary": 200}}
    content |= {"training": {"steps": 1, "rows_per_step": 1024, "rows_per_micro_batch": 1024}}
    before, started = megabytes(), time.process_time()
    run_training(CaptionConfig(**content))
    after = megabytes()
    grown = {"peak": after["peak"] - before["peak"], "anonymous": after["anonymous"] - before["anonymous"]}
    return grown | {"cpu_seconds": time.process_time() - started}


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Measure every size, once; `device` and `rounds` change nothing here."""
    sizes = {}
    for entries in (100, 1000) if small else (1000, 50_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            stages = {"write": (write, Path(folder), entries), "load": (load, Path(folder))}
            stages |= {name: (start, Path(folder), entries) for name in ("first start", "later start")}
            sizes[entries] = {name: in_fresh_process(*call) for name, call in stages.items()}
    return {"unit": "MB", "entries": sizes}
