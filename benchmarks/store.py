"""Reading regions in random order into a packed batch: dimvl's store beside the formats that the field uses.

    python benchmarks/store.py --out benchmarks/results/store.json

All formats are written from the same arrays in the same run: 36 regions of 2,048 float16 features with boxes, class and
attribute. Each reader is at its best reasonable setting, fills the same batch buffers, and is checked against the
arrays once. Variants take turns in a shuffled order within every round; a figure is the median over rounds.

- `images_per_cpu_second`: images over CPU seconds (user and system) of one process, which other load on the machine
  changes least: that is "per core".
- `cold`: images over wall seconds after the page cache of the variant's own files was dropped by `posix_fadvise`.
- `workers`: images over wall seconds, all worker processes together, warm.

Positions, keys, file names and line offsets are looked up beforehand, as a data set does once. TSV holds float32
features, as published files do. "LMDB msgpack, bytes" is the quickest that we know to make of LMDB: values of plain
bytes, read without a copy out of the map. "LMDB msgpack" is UNITER's way: values are copied, arrays carry dtype and
shape, features become a float32 tensor per image. Needs h5py, lmdb and msgpack: pip install 'dimvl[import]'.
"""

import argparse
import base64
import io
import json
import multiprocessing
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import h5py
import lmdb
import msgpack
import numpy as np
import torch

from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store import RegionStore
from dimvl.regions.store_writer import RegionStoreWriter

REGIONS, WIDTH, BATCH = 36, 2048, 64
SMALL = {
    "boxes": (np.float32, 4),
    "class_ids": (np.int16, 1),
    "class_scores": (np.float16, 1),
    "attribute_ids": (np.int16, 1),
    "attribute_scores": (np.float16, 1),
}
EXTRACTOR = Extractor(
    name="synthetic",
    fingerprint="0" * 64,
    parameters={},
    feature_width=WIDTH,
    classes=tuple(f"class {n}" for n in range(1600)),
    attributes=tuple(f"attribute {n}" for n in range(400)),
)
Read = Callable[[list[int]], None]


def arrays_of(number: int) -> dict[str, np.ndarray]:
    """Return the arrays of one image, drawn by its number."""
    generator = np.random.default_rng(number)
    corners = generator.random((REGIONS, 2, 2), dtype=np.float32)
    return {
        "features": generator.random((REGIONS, WIDTH), dtype=np.float32).astype(np.float16),
        "boxes": np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1),
        "class_ids": generator.integers(0, 1600, (REGIONS, 1), dtype=np.int16),
        "class_scores": generator.random((REGIONS, 1)).astype(np.float16),
        "attribute_ids": generator.integers(0, 400, (REGIONS, 1), dtype=np.int16),
        "attribute_scores": generator.random((REGIONS, 1)).astype(np.float16),
    }


def id_of(number: int) -> str:
    """Return an image id as long as those of COCO."""
    return f"{number:012}"


class Buffers:
    """The batch that every reader fills: allocated once and used again, as pinned memory is."""

    def __init__(self, feature_dtype: type = np.float16) -> None:
        rows = BATCH * REGIONS
        self.arrays = {"features": np.zeros((rows, WIDTH), feature_dtype)}
        self.arrays |= {name: np.zeros((rows, columns), dtype) for name, (dtype, columns) in SMALL.items()}

    def put(self, place: int, arrays: dict[str, np.ndarray]) -> None:
        """Copy one image's arrays to its place in the batch."""
        rows = slice(place * REGIONS, (place + 1) * REGIONS)
        for name, array in self.arrays.items():
            array[rows] = arrays[name]


class Store:
    """dimvl's region store."""

    def __init__(self, folder: Path, feature_dtype: str = "float16", check: bool = False) -> None:
        self.folder, self.feature_dtype, self.check = folder, feature_dtype, check

    def write(self, images: int) -> None:
        if (self.folder / "manifest.json").exists():  # the checked reader shares the files
            return
        with RegionStoreWriter(self.folder, EXTRACTOR, feature_dtype=self.feature_dtype) as writer:
            for number in range(images):
                writer.add(Regions(image_id=id_of(number), width=640, height=480, **arrays_of(number)))

    def open(self) -> None:
        self.store = RegionStore(self.folder, self.check)
        self.buffers = Buffers(np.float32 if self.feature_dtype == "int8" else np.float16)
        self.positions = self.store.positions([id_of(number) for number in range(len(self.store))])
        self.by_shape = {(array.shape[1], array.dtype.str): [] for array in self.buffers.arrays.values()}
        for name, array in self.buffers.arrays.items():
            self.by_shape[array.shape[1], array.dtype.str].append(name)

    def read(self, numbers: list[int]) -> None:
        taken: dict[tuple[int, str], int] = {}

        def allocate(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
            key = (shape[1], dtype.str)
            taken[key] = taken.get(key, -1) + 1
            return self.buffers.arrays[self.by_shape[key][taken[key]]]

        packed = self.store.read_packed(self.positions[numbers], allocate)
        self.batch = {name: getattr(packed, name) for name in self.buffers.arrays}


class Tsv:
    """Lines of base64 fields with float32 features, read at line offsets that are kept in memory."""

    FIELDS = ("features", *SMALL)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, images: int) -> None:
        self.folder.mkdir()
        offsets = [0]
        with (self.folder / "features.tsv").open("wb") as file:
            for number in range(images):
                arrays = arrays_of(number)
                arrays["features"] = arrays["features"].astype(np.float32)
                fields = [base64.b64encode(arrays[name].tobytes()) for name in self.FIELDS]
                file.write(b"\t".join([id_of(number).encode(), b"640", b"480", *fields]) + b"\n")
                offsets.append(file.tell())
        np.save(self.folder / "offsets.npy", np.array(offsets))

    def open(self) -> None:
        self.file = (self.folder / "features.tsv").open("rb", buffering=0)
        self.offsets = np.load(self.folder / "offsets.npy").tolist()
        self.buffers = Buffers(np.float32)

    def read(self, numbers: list[int]) -> None:
        for place, number in enumerate(numbers):
            start, end = self.offsets[number : number + 2]
            fields = os.pread(self.file.fileno(), end - start, start).split(b"\t")[3:]
            arrays = {}
            for name, field in zip(self.FIELDS, fields, strict=True):
                dtype, columns = (np.float32, WIDTH) if name == "features" else SMALL[name]
                arrays[name] = np.frombuffer(base64.b64decode(field), dtype).reshape(REGIONS, columns)
            self.buffers.put(place, arrays)
        self.batch = self.buffers.arrays


class Lmdb:
    """LMDB opened read-only, without lock and readahead; values are msgpack or npz."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind

    def write(self, images: int) -> None:
        environment = lmdb.open(str(self.folder), map_size=2**36, subdir=True)
        with environment.begin(write=True) as transaction:
            for number in range(images):
                arrays = arrays_of(number)
                if self.kind == "bytes":
                    value = msgpack.packb({name: array.tobytes() for name, array in arrays.items()})
                elif self.kind == "arrays":
                    described = {
                        name: {"dtype": array.dtype.str, "shape": array.shape, "data": array.tobytes()}
                        for name, array in arrays.items()
                    }
                    value = msgpack.packb(described)
                else:
                    with io.BytesIO() as stream:
                        np.savez(stream, **arrays)
                        value = stream.getvalue()
                transaction.put(id_of(number).encode(), value)
        environment.close()

    def open(self) -> None:
        self.environment = lmdb.open(
            str(self.folder), readonly=True, lock=False, readahead=False, meminit=False, create=False
        )
        self.transaction = self.environment.begin(buffers=self.kind == "bytes")
        self.keys = [id_of(number).encode() for number in range(self.environment.stat()["entries"])]
        self.buffers = Buffers(np.float32 if self.kind == "arrays" else np.float16)

    @staticmethod
    def as_array(value: dict) -> dict | np.ndarray:
        """Turn an inner mapping into the array that it describes."""
        if "data" not in value:
            return value
        return np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])

    def read(self, numbers: list[int]) -> None:
        for place, number in enumerate(numbers):
            value = self.transaction.get(self.keys[number])
            if self.kind == "arrays":
                arrays = msgpack.unpackb(value, object_hook=self.as_array)
                arrays["features"] = torch.tensor(arrays["features"]).float().numpy()
            elif self.kind == "bytes":
                fields = msgpack.unpackb(value, max_bin_len=2**30)
                arrays = {
                    name: np.frombuffer(fields[name], array.dtype).reshape(REGIONS, -1)
                    for name, array in self.buffers.arrays.items()
                }
            else:
                with np.load(io.BytesIO(value), allow_pickle=False) as found:
                    arrays = {name: found[name] for name in self.buffers.arrays}
            self.buffers.put(place, arrays)
        self.batch = self.buffers.arrays

    def close(self) -> None:
        self.transaction.abort()
        self.environment.close()


class Hdf5:
    """One HDF5 file of flat contiguous arrays that is kept open; rows are read straight into the batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, images: int) -> None:
        self.folder.mkdir()
        with h5py.File(self.folder / "features.h5", "w") as file:
            for name, array in Buffers().arrays.items():
                file.create_dataset(name, (images * REGIONS, array.shape[1]), array.dtype)
            for number in range(images):
                for name, array in arrays_of(number).items():
                    file[name][number * REGIONS : (number + 1) * REGIONS] = array

    def open(self) -> None:
        self.file = h5py.File(self.folder / "features.h5", "r")
        self.buffers = Buffers()
        self.sets = {name: self.file[name] for name in self.buffers.arrays}

    def read(self, numbers: list[int]) -> None:
        for place, number in enumerate(numbers):
            source = np.s_[number * REGIONS : (number + 1) * REGIONS]
            target = np.s_[place * REGIONS : (place + 1) * REGIONS]
            for name, array in self.buffers.arrays.items():
                self.sets[name].read_direct(array, source, target)
        self.batch = self.buffers.arrays

    def close(self) -> None:
        self.file.close()


class NpzFiles:
    """A folder with one uncompressed npz file per image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, images: int) -> None:
        self.folder.mkdir()
        for number in range(images):
            np.savez(self.folder / f"{id_of(number)}.npz", **arrays_of(number))

    def open(self) -> None:
        self.names = sorted(os.path.join(self.folder, name) for name in os.listdir(self.folder))
        self.buffers = Buffers()

    def read(self, numbers: list[int]) -> None:
        for place, number in enumerate(numbers):
            with np.load(self.names[number], allow_pickle=False) as found:
                self.buffers.put(place, {name: found[name] for name in self.buffers.arrays})
        self.batch = self.buffers.arrays


def variants(folder: Path) -> dict[str, Store | Tsv | Lmdb | Hdf5 | NpzFiles]:
    """Return all readers by name."""
    return {
        "dimvl": Store(folder / "float16"),
        "dimvl, checked": Store(folder / "float16", check=True),
        "dimvl, int8 to float32": Store(folder / "int8", "int8"),
        "LMDB msgpack": Lmdb(folder / "lmdb-arrays", "arrays"),
        "LMDB msgpack, bytes": Lmdb(folder / "lmdb-bytes", "bytes"),
        "LMDB npz": Lmdb(folder / "lmdb-npz", "npz"),
        "HDF5 kept open": Hdf5(folder / "hdf5"),
        "npz files": NpzFiles(folder / "npz"),
        "TSV base64": Tsv(folder / "tsv"),
    }


def check(reader: Store | Tsv | Lmdb | Hdf5 | NpzFiles) -> None:
    """Compare one batch with the arrays."""
    numbers = list(range(BATCH))[::-1]
    reader.read(numbers)
    for name, array in reader.batch.items():
        wanted = np.concatenate([arrays_of(number)[name] for number in numbers]).astype(np.float32)
        np.testing.assert_allclose(array.astype(np.float32), wanted, atol=0.004 if "int8" in str(reader.folder) else 0)


def batches(images: int, count: int, generator: random.Random) -> list[list[int]]:
    """Draw batches of different images."""
    return [generator.sample(range(images), BATCH) for _ in range(count)]


def warm(readers: dict, images: int, rounds: int) -> dict[str, float]:
    """Images over CPU seconds of one process."""
    generator, rates = random.Random(0), {name: [] for name in readers}
    for reader in readers.values():
        for batch in batches(images, images // BATCH, generator):  # fill the page cache
            reader.read(batch)
    for _ in range(rounds):
        for name in generator.sample(list(readers), len(readers)):
            drawn = batches(images, 2 if "npz" in name or "TSV" in name else 8, generator)
            started = time.process_time()
            for batch in drawn:
                readers[name].read(batch)
            rates[name].append(len(drawn) * BATCH / (time.process_time() - started))
    return {name: median(values) for name, values in rates.items()}


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def cold(folder: Path, images: int, rounds: int) -> dict[str, float]:
    """Images over wall seconds with nothing in the page cache."""
    generator = random.Random(1)
    rates: dict[str, list[float]] = {name: [] for name in variants(folder)}
    for _ in range(rounds):
        for name in generator.sample(list(rates), len(rates)):
            reader = variants(folder)[name]
            forget(reader.folder)
            reader.open()
            drawn = batches(images, 4, generator)
            started = time.perf_counter()
            for batch in drawn:
                reader.read(batch)
            rates[name].append(len(drawn) * BATCH / (time.perf_counter() - started))
            getattr(reader, "close", lambda: None)()
    return {name: median(values) for name, values in rates.items()}


def work(folder: Path, name: str, images: int, seconds: float, seed: int, barrier, queue) -> None:
    """Read for some seconds in a worker process and tell the number of images."""
    reader, generator, done = variants(folder)[name], random.Random(seed), 0
    reader.open()
    reader.read(generator.sample(range(images), BATCH))
    barrier.wait()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        reader.read(generator.sample(range(images), BATCH))
        done += BATCH
    queue.put(done / (seconds + time.perf_counter() - end))


def with_workers(folder: Path, images: int, seconds: float, rounds: int) -> dict[str, dict[int, float]]:
    """Images over wall seconds with 1 to 4 processes."""
    context, generator = multiprocessing.get_context("fork"), random.Random(2)
    rates: dict[str, dict[int, list[float]]] = {name: {n: [] for n in (1, 2, 3, 4)} for name in variants(folder)}
    for _ in range(rounds):
        for name in generator.sample(list(rates), len(rates)):
            for workers in (1, 2, 3, 4):
                barrier, queue = context.Barrier(workers), context.Queue()
                processes = [
                    context.Process(target=work, args=(folder, name, images, seconds, seed, barrier, queue))
                    for seed in range(workers)
                ]
                for process in processes:
                    process.start()
                rates[name][workers].append(sum(queue.get() for _ in processes))
                for process in processes:
                    process.join()
    return {name: {n: median(values) for n, values in of.items()} for name, of in rates.items()}


def megabytes(folder: Path) -> float:
    """Size of a folder's files as stored, sparse ends not counted."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()) / 1e6


def main() -> None:
    """Measure everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where to write the files; by default a temporary folder")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        readers = variants(folder)
        sizes = {}
        for name, reader in readers.items():
            reader.write(options.images)
            reader.open()
            check(reader)
            sizes[name] = megabytes(reader.folder)
        rates = warm(readers, options.images, options.rounds)
        for reader in readers.values():
            getattr(reader, "close", lambda: None)()
        del readers
        from_disk = cold(folder, options.images, max(1, options.rounds // 5))
        parallel = with_workers(folder, options.images, 0.5, max(1, options.rounds // 5))
    finally:
        shutil.rmtree(folder)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    result = {
        "command": "python benchmarks/store.py",
        "date": str(date.today()),
        "hardware": f"{os.cpu_count()}-core {model or platform.machine()}",
        "load_average": os.getloadavg(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "torch", "h5py", "lmdb", "msgpack")},
        "bytes_of_float16_arrays": options.images
        * REGIONS
        * (2 * WIDTH + sum(np.dtype(dtype).itemsize * columns for dtype, columns in SMALL.values())),
        "images": options.images,
        "regions": REGIONS,
        "feature_width": WIDTH,
        "batch": BATCH,
        "rounds": options.rounds,
        "readers": {
            name: {
                "megabytes": round(sizes[name], 1),
                "images_per_cpu_second": round(rates[name]),
                "times_slower_than_dimvl": round(rates["dimvl"] / rates[name], 2),
                "cold_images_per_second": round(from_disk[name]),
                "workers_images_per_second": {n: round(rate) for n, rate in parallel[name].items()},
            }
            for name in rates
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
