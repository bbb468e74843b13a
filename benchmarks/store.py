"""Reading regions in random order into a packed batch: dimvl's store beside the formats that the field uses.

    python -m benchmarks store --rounds 25

All formats are written from the same arrays in the same run (`formats.py`), each reader is checked against the arrays
once, and all deliver the same: a batch of 64 images end to end in memory that is used again, with features, boxes,
class and attribute ids and scores. Two batches are asked for: with features as they are `kept`, in float16 or in int8
with a scale per row, which is how they go to dimvl's models; and in `float32`. UNITER's way gives float32 only.

- `warm`: processor time (user and system) of one process, which other load changes least; so "per core". Readers take
  turns in a shuffled order within every round. `times_slower` is the ratio to dimvl in the same round: median and
  10th to 90th percentile over rounds.
- `workers`: images over wall seconds, 1 to 4 processes together; warm with every file read once before, cold after the
  page cache of the reader's files was dropped (`posix_fadvise`; what the disk itself caches stays).

Needs h5py, lmdb and msgpack: pip install 'dimvl[import]'.
"""

import multiprocessing
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.formats import BATCH, LAYOUT, REGIONS, WIDTH, Buffers, Reader, all_readers, arrays_of
from benchmarks.harness import interleaved, ratio

WORKERS = (1, 2, 3, 4)
SLOW = ("LMDB npz", "npz files", "TSV base64")  # fewer batches a round
COLD_BATCHES = 8


def check(reader: Reader) -> None:
    """Compare one batch of each type with the arrays."""
    numbers = list(range(BATCH))[::-1]
    for dtype in (reader.gives, np.float32):
        found = dict(reader.read(numbers, Buffers(dtype)))
        if (scales := found.pop("feature_scales", None)) is not None:
            found["features"] = found["features"] * scales
        for name, array in found.items():
            wanted = np.concatenate([arrays_of(number)[name] for number in numbers]).astype(np.float32)
            atol = 0.004 if name == "features" and "int8" in str(reader.folder) else 0
            np.testing.assert_allclose(array.astype(np.float32), wanted, atol=atol)


def batches(images: int, count: int, generator: random.Random) -> list[list[int]]:
    """Draw batches of different images."""
    return [generator.sample(range(images), BATCH) for _ in range(count)]


def measure_warm(readers: dict[str, Reader], images: int, rounds: int) -> dict[str, dict[str, dict[str, object]]]:
    """Processor time per image, by type of features and reader."""
    generator, buffers = random.Random(0), {dtype: Buffers(dtype) for dtype in (np.int8, np.float16, np.float32)}
    result: dict[str, dict[str, dict[str, object]]] = {}
    for kind in ("kept", "float32"):
        dtypes = {name: reader.gives if kind == "kept" else np.float32 for name, reader in readers.items()}
        asked = {name: reader for name, reader in readers.items() if kind == "float32" or dtypes[name] != np.float32}
        counts = {name: 2 if name in SLOW else 8 for name in asked}
        for name, reader in asked.items():  # fill the page cache
            read_batches(reader, images, images // BATCH, generator, buffers[dtypes[name]])()
        seconds = interleaved(
            {
                name: read_batches(reader, images, counts[name], generator, buffers[dtypes[name]])
                for name, reader in asked.items()
            },
            rounds,
        )
        seconds = {name: values / (counts[name] * BATCH) for name, values in seconds.items()}
        result[kind] = {
            name: {
                "images_per_cpu_second": round(1 / float(np.median(values))),
                "times_slower": ratio(values, seconds["dimvl"]),
            }
            for name, values in seconds.items()
        }
    return result


def read_batches(
    reader: Reader, images: int, count: int, generator: random.Random, buffers: Buffers
) -> Callable[[], None]:
    """Return what reads so many batches, other ones at each call."""

    def run() -> None:
        for batch in batches(images, count, generator):
            reader.read(batch, buffers)

    return run


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def remember(folder: Path) -> None:
    """Read a folder's files into the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as stream:
                while stream.read(2**20):
                    pass


def work(reader: Reader, drawn: list[list[int]], barrier, queue) -> None:
    """Read batches in a worker process and tell when it began and ended."""
    reader.open()
    buffers = Buffers(reader.gives)
    barrier.wait()
    started = time.monotonic()
    for batch in drawn:
        reader.read(batch, buffers)
    queue.put((started, time.monotonic()))


def measure_workers(folder: Path, images: int, rounds: int) -> dict[str, dict[str, dict[int, int]]]:
    """Images over wall seconds of 1 to 4 processes, by state of the page cache and reader."""
    context, generator = multiprocessing.get_context("fork"), random.Random(2)
    readers = all_readers(folder)
    rates: dict = {state: {name: {n: [] for n in WORKERS} for name in readers} for state in ("warm", "cold")}
    for _ in range(rounds):
        for name in generator.sample(list(readers), len(readers)):
            for state, workers in [(state, n) for state in rates for n in WORKERS]:
                (forget if state == "cold" else remember)(readers[name].folder)
                count = COLD_BATCHES * (8 if state == "warm" and name not in SLOW else 1)
                drawn = batches(images, count, generator)
                barrier, queue = context.Barrier(workers), context.Queue()
                processes = [
                    context.Process(target=work, args=(readers[name], drawn[n::workers], barrier, queue))
                    for n in range(workers)
                ]
                for process in processes:
                    process.start()
                times = [queue.get() for _ in processes]
                for process in processes:
                    process.join()
                wall = max(end for _, end in times) - min(start for start, _ in times)
                rates[state][name][workers].append(count * BATCH / wall)
    return {
        state: {name: {n: round(float(np.median(values))) for n, values in of.items()} for name, of in by.items()}
        for state, by in rates.items()
        if rounds
    }


def megabytes(folder: Path) -> float:
    """Size of a folder's files as stored, sparse ends not counted."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()) / 1e6


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Write, check and read all formats; `device` changes nothing here."""
    images, worker_rounds = (2 * BATCH, 0) if small else (2000, 3)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
    with tempfile.TemporaryDirectory() as name:
        folder, sizes = Path(name), {}
        readers = all_readers(folder)
        for name, reader in readers.items():
            reader.write(images)
            reader.open()
            check(reader)
            sizes[name] = round(megabytes(reader.folder), 1)
        warm = measure_warm(readers, images, rounds)
        for reader in readers.values():
            reader.close()
        workers = measure_workers(folder, images, worker_rounds)
    columns = [np.dtype(dtype).itemsize * columns for dtype, columns in LAYOUT.values()]
    return {
        "bytes_of_float16_arrays": images * REGIONS * sum(columns),
        **{"images": images, "regions": REGIONS, "feature_width": WIDTH, "batch": BATCH},
        "megabytes": sizes,
        "warm": warm,
        "workers_images_per_second": workers,
    }
