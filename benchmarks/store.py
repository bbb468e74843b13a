"""Reading regions in random order into a packed batch: dimvl's store beside the formats of the field.

    python -m benchmarks store --rounds 25

Every format of `formats.py` is written from the same arrays in the same run, and every reader is checked against the
arrays. All fill the same batch of 64 images in memory that is reused: features, boxes, class and attribute ids and
scores. There are two kinds of batch: with features as they are `kept`, in float16 or in int8 with a scale per row,
which is how they go to dimvl's models; and in `float32`, which is the only kind that UNITER's reader makes.

- `warm`: CPU time of one process, so per core. `times_slower` is the ratio to dimvl in the same round.
- `images_per_wall_second` of one process. Warm: every file was read once before. Cold: the reader's files were dropped
  from the page cache (`posix_fadvise`; what the disk itself caches stays).

Needs h5py, lmdb and msgpack: pip install 'dimvl[import]'.
"""

import os
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import REGIONS, WIDTH
from benchmarks.formats import BATCH, LAYOUT, SLOW, Buffers, Reader, all_readers, arrays_of
from benchmarks.harness import interleaved, speeds

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


def draw_batches(images: int, count: int, generator: random.Random) -> list[list[int]]:
    """Draw batches of different images."""
    return [generator.sample(range(images), BATCH) for _ in range(count)]


def measure_warm(readers: dict[str, Reader], images: int, rounds: int) -> dict[str, dict[str, Any]]:
    """CPU time per image, by type of features and reader."""
    generator, buffers = random.Random(0), {dtype: Buffers(dtype) for dtype in (np.int8, np.float16, np.float32)}
    counts = {name: 2 if name in SLOW else 8 for name in readers}

    def reading(name: str, dtype: type, count: int) -> Callable[[], None]:
        def run() -> None:
            for batch in draw_batches(images, count, generator):
                readers[name].read(batch, buffers[dtype])

        return run

    kept = {name: reader.gives for name, reader in readers.items() if reader.gives != np.float32}
    found = {}
    for kind, dtypes in {"kept": kept, "float32": dict.fromkeys(readers, np.float32)}.items():
        for name, dtype in dtypes.items():
            reading(name, dtype, images // BATCH)()  # fills the page cache
        runs = {name: reading(name, dtype, counts[name]) for name, dtype in dtypes.items()}
        seconds = interleaved(runs, rounds)
        per_image = {name: spent / (counts[name] * BATCH) for name, spent in seconds.items()}
        found[kind] = speeds(per_image, "dimvl", "images_per_cpu_second")
    return found


def fill_page_cache(file: Path) -> None:
    """Read a file once."""
    with file.open("rb") as source, open(os.devnull, "wb") as target:
        shutil.copyfileobj(source, target)


def drop_from_page_cache(file: Path) -> None:
    """Write a file to disk and drop it from the page cache."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure_cold(readers: dict[str, Reader], images: int, rounds: int) -> dict[str, dict[str, int]]:
    """Images per second of wall time, by state of the page cache and reader."""
    generator = random.Random(2)
    states = {"warm": fill_page_cache, "cold": drop_from_page_cache}
    rates: dict[str, dict[str, list[float]]] = {state: {name: [] for name in readers} for state in states}
    for _ in range(rounds):
        for name in generator.sample(list(readers), len(readers)):
            reader = readers[name]
            for state, prepare in states.items():
                reader.close()
                for file in filter(Path.is_file, reader.folder.rglob("*")):
                    prepare(file)
                reader.open()
                buffers, drawn = Buffers(reader.gives), draw_batches(images, COLD_BATCHES, generator)
                started = time.monotonic()
                for batch in drawn:
                    reader.read(batch, buffers)
                rates[state][name].append(COLD_BATCHES * BATCH / (time.monotonic() - started))
    return {state: {name: round(float(np.median(found))) for name, found in by.items()} for state, by in rates.items()}


def megabytes(folder: Path) -> float:
    """Size of a folder's files on disk; the empty ends of sparse files do not count."""
    return round(sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()) / 1e6, 1)


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Write, check and read all formats; `device` has no effect."""
    images, cold_rounds = (2 * BATCH, 1) if small else (2000, 3)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
    readers = all_readers(folder)
    for reader in readers.values():
        reader.write(images)
        reader.open()
        check(reader)
    bytes_of_region = sum(np.dtype(dtype).itemsize * columns for dtype, columns in LAYOUT.values())
    return {
        "bytes_of_float16_arrays": images * REGIONS * bytes_of_region,
        **{"images": images, "regions": REGIONS, "feature_width": WIDTH, "batch": BATCH},
        "megabytes": {name: megabytes(reader.folder) for name, reader in readers.items()},
        "warm": measure_warm(readers, images, rounds),
        "images_per_wall_second": measure_cold(readers, images, cold_rounds),
    }
