"""What the data part of a training step costs, from the store to the batch that the model takes.

    python -m benchmarks steps --rounds 15

Optimiser steps of captioning are built by `TrainingSteps`, as in training: about 64 images of 36 regions of 2,048
float16 features, tags, five captions behind each. `formats` builds the same steps with images read from the formats of
the field (`formats.py`) and everything behind reading as it is; processor time of one process, readers in turn, ratios
to dimvl within a round. `workers` builds them in 1 to 4 processes of torch's `DataLoader`, forked and spawned, over
1,000 and 50,000 images, and forked over 1,000 images kept as int8; it tells images per wall second and per processor
second of the workers, and the memory that each worker has to itself early and late. Mapped files are shared with the
page cache and among workers.
"""

import itertools
import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.formats import EXTRACTOR, Reader, Store, all_readers, id_of
from benchmarks.harness import interleaved, ratio
from dimvl.config import Seq2seqConfig
from dimvl.data.batch import CaptionTargets
from dimvl.data.examples import BatchShape, ImageReader, PrefixImages, PrefixRegions, join_images
from dimvl.data.processor import Processor
from dimvl.data.sampler import TrainingSteps
from dimvl.data.text_store import LabelledText, text_store
from dimvl.data.tokenizer import Tokenizer
from dimvl.regions.records import Detections
from dimvl.regions.store import RegionStore
from dimvl.tasks.captioning import OBJECTIVE, CaptionSource

CAPTIONS, ROWS = 5, 64 * 110
TEXTS = ("a small red circle left of a large blue square", "there are two blue stars", "the star is above a circle")
SLOW = ("LMDB npz", "npz files", "TSV base64")


class FormatImages(ImageReader):
    """Images read one by one from another format."""

    def __init__(self, reader: Reader, like: ImageReader) -> None:
        super().__init__(like.store, like.tags, like.max_regions)
        self.reader = reader

    def read(self, images: PrefixImages) -> list[PrefixRegions]:
        return [join_images([Detections(**self.reader.image(number))]) for number in images.positions.tolist()]


def make_steps(folder: Path, regions: Path, check: bool = False) -> TrainingSteps:
    """Return endless steps of captioning over a store."""
    store = RegionStore(regions, check)
    tokenizer = Tokenizer.train([*TEXTS, *EXTRACTOR.classes, *EXTRACTOR.attributes], 2000)
    source = folder / f"captions-{len(store)}.json"
    source.write_text(str(len(store)))
    numbered = [(image, number) for image in range(len(store)) for number in range(CAPTIONS)]
    texts = [LabelledText(CAPTIONS * image + n, (id_of(image),), TEXTS[(image + n) % 3]) for image, n in numbered]
    captions = text_store(folder / "texts", tokenizer, 40, [source], texts)
    processor = Processor(
        tokenizer=tokenizer, extractor=EXTRACTOR, max_regions=36, tag_tokens=20, tag_score=0.3, text_tokens=40
    )
    images = ImageReader(store, processor.tags, processor.max_regions)
    shape = BatchShape(
        objectives={OBJECTIVE: CaptionTargets},
        text_start=processor.text_start,
        feature_width=EXTRACTOR.feature_width,
        classes=len(EXTRACTOR.classes),
    )
    examples = CaptionSource(captions, images, Seq2seqConfig(captions=CAPTIONS), tokenizer, seed=0)
    budgets = {"rows_per_step": ROWS, "rows_per_micro_batch": ROWS}
    return TrainingSteps(examples, shape, seed=0, steps=10**6, **budgets, plans=folder / f"plans-{len(store)}")


def measure_formats(folder: Path, images: int, rounds: int) -> dict[str, dict[str, object]]:
    """Processor time of building steps in this process, by format."""
    steps = {}
    for name, reader in all_readers(folder).items():
        reader.write(images)
        reader.open()
        steps[name] = make_steps(
            folder, reader.folder if isinstance(reader, Store) else folder / "float16", name == "dimvl, checked"
        )
        if not isinstance(reader, Store):
            steps[name].source.images = FormatImages(reader, steps[name].source.images)
    wanted = steps["dimvl"][0].micro_batches[0]
    for name, made in steps.items():
        found = made[0].micro_batches[0]
        assert torch.equal(found.token_ids, wanted.token_ids) and torch.equal(
            found.region_geometry, wanted.region_geometry
        )
        assert "int8" in name or torch.equal(found.region_features.float(), wanted.region_features.float())
    for made in steps.values():
        for number in range(images // 64):
            made[number]
    counts = {name: 1 if name in SLOW else 4 for name in steps}
    examples: dict[str, list[int]] = {name: [] for name in steps}
    builds = {name: build_steps(made, counts[name], examples[name]) for name, made in steps.items()}
    seconds = interleaved(builds, rounds)
    per_image = {name: values / examples[name][-rounds:] for name, values in seconds.items()}
    return {
        name: {
            "images_per_cpu_second": round(1 / float(np.median(values))),
            "times_slower": ratio(values, per_image["dimvl"]),
        }
        for name, values in per_image.items()
    }


def build_steps(steps: TrainingSteps, count: int, examples: list[int]) -> Callable[[], None]:
    """Return what builds so many steps, the next ones at each call, and notes how many examples those had."""
    numbers = itertools.count()

    def run() -> None:
        examples.append(sum(steps[next(numbers)].examples for _ in range(count)))

    return run


def look_at(process: int) -> dict[str, float]:
    """Memory of a process in MB, its own and mapped files, and its processor seconds so far."""
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    files = next(int(line.split()[1]) for line in status if line.startswith("RssFile")) / 1024
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return {"own": round(private), "files": round(files), "cpu": sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")}


def load(data: bytes, method: str, workers: int, count: int, queue) -> None:
    """Run a loader in a fresh process, which opens the pickled steps, and tell what came of it."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more than there are cores, on purpose
    torch.set_num_threads(1)
    steps = pickle.loads(data)
    loader = DataLoader(
        steps, batch_size=None, sampler=range(count), num_workers=workers, multiprocessing_context=method
    )
    first, last = 4 * workers, count - 1 - 2 * workers  # from when all are at work to before the first has ended
    examples, looks = 0, {}
    for number, step in enumerate(loader):
        examples += step.examples if first < number <= last else 0
        if number in (first, last):
            processes = sorted(child.pid for child in multiprocessing.active_children())
            looks[number] = time.monotonic(), list(map(look_at, processes))
    (started, early), (ended, late) = looks[first], looks[last]
    seconds = sum(after["cpu"] - before["cpu"] for before, after in zip(early, late, strict=True))
    found = {
        "images_per_second": round(examples / (ended - started)),
        "images_per_cpu_second": round(examples / seconds),
        **{f"own_mb_after_{n}_steps": [each["own"] for each in seen] for n, (_, seen) in looks.items()},
        "files_mb": [each["files"] for each in late],
    }
    queue.put(found)


def measure_workers(folder: Path, stores: list[tuple[int, str]], count: int) -> dict[int, Mapping[str, object]]:
    """Speed and memory of loader processes, by number of images, and by method, number of processes and int8."""
    context = multiprocessing.get_context("spawn")
    result: dict[int, dict[str, object]] = {}
    for images, dtype in stores:
        regions = folder / f"{dtype}-of-{images}"
        Store(regions, dtype).write(images)
        data = pickle.dumps(make_steps(folder, regions))
        found = result.setdefault(images, {"pickled_bytes": len(data)})
        methods, kind = (("fork",), ", int8") if dtype == "int8" else (("fork", "spawn"), "")
        for method, workers in itertools.product(methods, (1, 2, 3, 4)):
            queue = context.Queue()
            process = context.Process(target=load, args=(data, method, workers, count, queue))
            process.start()
            found[f"{method} {workers}{kind}"] = queue.get()
            process.join()
        shutil.rmtree(regions)
    return result


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Build steps from all formats, and in loader processes; `device` changes nothing here."""
    stores = [(1000, "float16"), (1000, "int8"), (50_000, "float16")]
    images, stores, count = (64, [], 0) if small else (2000, stores, 120)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        formats = measure_formats(folder, images, rounds)
        workers = measure_workers(folder, stores, count)
    return {"images": images, "formats": formats, "workers": workers}
