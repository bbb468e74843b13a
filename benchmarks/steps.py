"""CPU time of the data part of a training step, from the store to the batch that the model takes.

    python -m benchmarks steps --rounds 15

`TrainingSteps` builds steps of captioning as in training: about 64 images with tags and five captions each.

- `formats`: the same steps with images from the formats of `formats.py`; everything after reading is the same. CPU time
  of one process, readers take turns, ratios to dimvl within a round.
- `workers`: 1 to 4 processes of torch's `DataLoader`, forked and spawned, over 1,000 and 50,000 images, and forked over
  1,000 images kept as int8: images per second of wall time and of the workers' CPU time, and each worker's own memory
  early and late. Mapped files are shared with the page cache and among workers.
"""

import itertools
import multiprocessing
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.data import caption_steps, make_processor
from benchmarks.formats import EXTRACTOR, SLOW, Reader, Store, all_readers
from benchmarks.harness import interleaved, memory, speeds
from dimvl.data.prefixes import ImageReader, PrefixImages, PrefixRegions, join_images
from dimvl.data.sampler import TrainingSteps
from dimvl.regions.records import Detections
from dimvl.regions.store import RegionStore

CAPTIONS, ROWS = 5, 64 * 110


class FormatImages(ImageReader):
    """Images read one by one from another format."""

    def __init__(self, reader: Reader, like: ImageReader) -> None:
        super().__init__(like.store, like.tags, like.max_regions)
        self.reader = reader

    def read(self, images: PrefixImages) -> list[PrefixRegions]:
        return [join_images([Detections(**self.reader.image(number))]) for number in images.positions.tolist()]


def make_steps(folder: Path, regions: Path, check: bool = False) -> TrainingSteps:
    """Return endless steps of captioning over a store."""
    return caption_steps(folder, RegionStore(regions, check), make_processor(EXTRACTOR, 2000), ROWS, CAPTIONS)


def measure_formats(folder: Path, images: int, rounds: int) -> dict[str, dict[str, Any]]:
    """CPU time of building steps in this process, by format."""
    steps = {}
    for name, reader in all_readers(folder).items():
        reader.write(images)
        reader.open()
        is_ours = isinstance(reader, Store)
        steps[name] = make_steps(folder, reader.folder if is_ours else folder / "float16", name == "dimvl, checked")
        if not is_ours:
            steps[name].source.images = FormatImages(reader, steps[name].source.images)
    wanted = steps["dimvl"][0].micro_batches[0]
    for name, made in steps.items():
        found = made[0].micro_batches[0]
        assert torch.equal(found.token_ids, wanted.token_ids)
        assert torch.equal(found.region_geometry, wanted.region_geometry)
        assert "int8" in name or torch.equal(found.region_features.float(), wanted.region_features.float())
    for made in steps.values():
        for number in range(images // 64):
            made[number]
    counts = {name: 1 if name in SLOW else 4 for name in steps}
    examples: dict[str, list[int]] = {name: [] for name in steps}
    builds = {name: build_steps(made, counts[name], examples[name]) for name, made in steps.items()}
    seconds = interleaved(builds, rounds)
    per_image = {name: values / examples[name][-rounds:] for name, values in seconds.items()}
    return speeds(per_image, "dimvl", "images_per_cpu_second")


def build_steps(steps: TrainingSteps, count: int, examples: list[int]) -> Callable[[], None]:
    """Return a function that builds the next `count` steps and appends their number of examples."""
    numbers = itertools.count()

    def run() -> None:
        examples.append(sum(steps[next(numbers)].examples for _ in range(count)))

    return run


def look_at(process: int) -> dict[str, float]:
    """Memory of a process in MB, its own and mapped files, and its CPU seconds so far."""
    files = memory(process)["files"] / 2**20
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return {"own": round(private), "files": round(files), "cpu": sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")}


def load(data: bytes, method: str, workers: int, count: int, queue) -> None:
    """Run a loader in a fresh process, which opens the pickled steps, and report its speed and memory."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, on purpose
    torch.set_num_threads(1)
    loader = DataLoader(
        pickle.loads(data), batch_size=None, sampler=range(count), num_workers=workers, multiprocessing_context=method
    )
    first, last = 4 * workers, count - 1 - 2 * workers  # while all workers are busy
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
    """Speed and memory of loader processes, by number of images, start method, number of processes and dtype."""
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


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Build steps from all formats, and in loader processes; `device` has no effect."""
    stores = [(1000, "float16"), (1000, "int8"), (50_000, "float16")]
    images, stores, count = (64, [], 0) if small else (2000, stores, 120)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
    formats = measure_formats(folder, images, rounds)
    return {"images": images, "formats": formats, "workers": measure_workers(folder, stores, count)}
