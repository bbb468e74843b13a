"""The same synthetic regions in dimvl's store and in the formats that the field uses, each written and read.

Every image has 36 regions of 2,048 float16 features with boxes, class and attribute. Each reader is at the best setting
that we know. Positions, keys, file names and line offsets are looked up beforehand, as a data set does once.

- "LMDB msgpack" holds plain bytes, read without a copy out of the map: the quickest that we know to make of LMDB.
- "LMDB msgpack, UNITER" is read as UNITER's code does: values without a copy out of the map, arrays with dtype and
  shape, and of the features a float32 tensor per image.
- TSV holds float32 features, as published files do.
"""

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import lmdb
import msgpack
import numpy as np
import torch

from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter

REGIONS, WIDTH, BATCH = 36, 2048, 64
SMALL = {
    "boxes": (np.float32, 4),
    "class_ids": (np.int16, 1),
    "class_scores": (np.float16, 1),
    "attribute_ids": (np.int16, 1),
    "attribute_scores": (np.float16, 1),
}
LAYOUT = {"features": (np.float16, WIDTH), **SMALL}
EXTRACTOR = Extractor(
    name="synthetic",
    fingerprint="0" * 64,
    parameters={},
    feature_width=WIDTH,
    classes=tuple(f"class {n}" for n in range(1600)),
    attributes=tuple(f"attribute {n}" for n in range(400)),
)
Arrays = dict[str, np.ndarray]


def arrays_of(number: int) -> Arrays:
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

    def __init__(self, feature_dtype: type) -> None:
        rows = BATCH * REGIONS
        self.arrays = {"features": np.zeros((rows, WIDTH), feature_dtype)}
        if feature_dtype == np.int8:
            self.arrays["feature_scales"] = np.zeros((rows, 1), np.float32)
        self.arrays |= {name: np.zeros((rows, columns), dtype) for name, (dtype, columns) in SMALL.items()}

    def put(self, place: int, arrays: Arrays) -> None:
        """Copy one image's arrays to its place in the batch."""
        rows = slice(place * REGIONS, (place + 1) * REGIONS)
        for name, array in self.arrays.items():
            copy(array[rows], arrays[name])


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """Copy an array, with a cast where the types differ: torch casts ten times as fast as numpy."""
    if target.dtype == source.dtype:
        target[:] = source
    else:
        torch.from_numpy(target).copy_(torch.from_numpy(source))


class Reader:
    """One way to keep the arrays and to read them."""

    gives: type = np.float16  # type of features in a batch where float32 is not asked for

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, images: int) -> None:
        raise NotImplementedError

    def open(self) -> None:
        raise NotImplementedError

    def image(self, number: int) -> Arrays:
        """Arrays of one image, with as few copies as the format allows."""
        raise NotImplementedError

    def read(self, numbers: Sequence[int], buffers: Buffers) -> Arrays:
        """Read a batch into the buffers."""
        for place, number in enumerate(numbers):
            buffers.put(place, self.image(number))
        return buffers.arrays

    def close(self) -> None:
        pass


class Store(Reader):
    """dimvl's region store: the rows of an image are read straight to their place in the batch."""

    def __init__(self, folder: Path, feature_dtype: str = "float16", check: bool = False) -> None:
        super().__init__(folder)
        self.feature_dtype, self.check = feature_dtype, check
        self.gives = np.dtype(feature_dtype).type

    def write(self, images: int) -> None:
        if (self.folder / "manifest.json").exists():  # the checked reader shares the files
            return
        with RegionStoreWriter(self.folder, EXTRACTOR, feature_dtype=self.feature_dtype) as writer:
            for number in range(images):
                writer.add(Regions(image_id=id_of(number), width=640, height=480, **arrays_of(number)))

    def open(self) -> None:
        self.store = RegionStore(self.folder, self.check)
        self.positions = self.store.positions(map(id_of, range(len(self.store))))
        self.kept = Buffers(self.gives)  # from where float32 is cast

    def read(self, numbers: Sequence[int], buffers: Buffers) -> Arrays:
        features = buffers.arrays["features"]
        casts = features.dtype == np.float32
        free = list((self.kept if casts else buffers).arrays.values())

        def allocate(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
            place = next(n for n, array in enumerate(free) if (array.shape, array.dtype) == (shape, dtype))
            return free.pop(place)

        packed = self.store.read_packed(self.positions[numbers], allocate=allocate)
        if not casts:
            return packed.arrays
        copy(features, packed.features)
        if packed.feature_scales is not None:  # torch multiplies three times as fast as numpy
            torch.from_numpy(features).mul_(torch.from_numpy(packed.feature_scales))
        return {name: packed.arrays[name] for name in SMALL} | {"features": features}


class Tsv(Reader):
    """Lines of base64 fields, read at line offsets that are kept in memory."""

    def write(self, images: int) -> None:
        self.folder.mkdir()
        offsets = [0]
        with (self.folder / "features.tsv").open("wb") as file:
            for number in range(images):
                arrays = arrays_of(number)
                arrays["features"] = arrays["features"].astype(np.float32)
                fields = [base64.b64encode(arrays[name].tobytes()) for name in LAYOUT]
                file.write(b"\t".join([id_of(number).encode(), b"640", b"480", *fields]) + b"\n")
                offsets.append(file.tell())
        np.save(self.folder / "offsets.npy", np.array(offsets))

    def open(self) -> None:
        self.file = (self.folder / "features.tsv").open("rb", buffering=0)
        self.offsets = np.load(self.folder / "offsets.npy").tolist()

    def image(self, number: int) -> Arrays:
        start, end = self.offsets[number : number + 2]
        fields = os.pread(self.file.fileno(), end - start, start).split(b"\t")[3:]
        dtypes = {name: dtype for name, (dtype, _) in LAYOUT.items()} | {"features": np.float32}
        return {
            name: np.frombuffer(base64.b64decode(field), dtypes[name]).reshape(REGIONS, -1)
            for name, field in zip(LAYOUT, fields, strict=True)
        }

    def close(self) -> None:
        self.file.close()


class Lmdb(Reader):
    """LMDB opened read-only, without lock; the subclasses make and read the values."""

    def write(self, images: int) -> None:
        environment = lmdb.open(str(self.folder), map_size=2**36, subdir=True)
        with environment.begin(write=True) as transaction:
            for number in range(images):
                transaction.put(id_of(number).encode(), self.value(arrays_of(number)))
        environment.close()

    def value(self, arrays: Arrays) -> bytes:
        raise NotImplementedError

    def open(self) -> None:
        self.environment = lmdb.open(
            str(self.folder), readonly=True, lock=False, readahead=False, meminit=False, create=False
        )
        self.transaction = self.environment.begin(buffers=True)
        self.keys = [id_of(number).encode() for number in range(self.environment.stat()["entries"])]

    def close(self) -> None:
        self.transaction.abort()
        self.environment.close()


class LmdbBytes(Lmdb):
    """Plain bytes by name."""

    def value(self, arrays: Arrays) -> bytes:
        return msgpack.packb({name: array.tobytes() for name, array in arrays.items()})

    def image(self, number: int) -> Arrays:
        fields = msgpack.unpackb(self.transaction.get(self.keys[number]), max_bin_len=2**30)
        return {
            name: np.frombuffer(fields[name], dtype).reshape(REGIONS, columns)
            for name, (dtype, columns) in LAYOUT.items()
        }


class LmdbArrays(Lmdb):
    """Arrays with dtype and shape, and a float32 tensor of the features, as UNITER's `DetectFeatLmdb` gives them."""

    gives = np.float32

    def value(self, arrays: Arrays) -> bytes:
        return msgpack.packb(
            {
                name: {"dtype": array.dtype.str, "shape": array.shape, "data": array.tobytes()}
                for name, array in arrays.items()
            }
        )

    @staticmethod
    def as_array(value: dict) -> dict | np.ndarray:
        """Turn an inner mapping into the array that it describes."""
        if "data" not in value:
            return value
        return np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])

    def image(self, number: int) -> Arrays:
        arrays = msgpack.unpackb(self.transaction.get(self.keys[number]), object_hook=self.as_array, max_bin_len=2**30)
        return arrays | {"features": torch.tensor(arrays["features"]).float().numpy()}


class LmdbNpz(Lmdb):
    """An npz file in each value."""

    def value(self, arrays: Arrays) -> bytes:
        with io.BytesIO() as stream:
            np.savez(stream, **arrays)
            return stream.getvalue()

    def image(self, number: int) -> Arrays:
        with np.load(io.BytesIO(self.transaction.get(self.keys[number])), allow_pickle=False) as found:
            return {name: found[name] for name in LAYOUT}


class Hdf5(Reader):
    """One HDF5 file of flat contiguous arrays that is kept open; rows are read straight into the batch."""

    def write(self, images: int) -> None:
        self.folder.mkdir()
        with h5py.File(self.folder / "features.h5", "w") as file:
            for name, (dtype, columns) in LAYOUT.items():
                file.create_dataset(name, (images * REGIONS, columns), dtype)
            for number in range(images):
                for name, array in arrays_of(number).items():
                    file[name][number * REGIONS : (number + 1) * REGIONS] = array

    def open(self) -> None:
        self.file = h5py.File(self.folder / "features.h5", "r")
        self.sets = {name: self.file[name] for name in LAYOUT}

    def image(self, number: int) -> Arrays:
        arrays = {name: np.empty((REGIONS, columns), dtype) for name, (dtype, columns) in LAYOUT.items()}
        self.fill(arrays, 0, number)
        return arrays

    def fill(self, arrays: Arrays, place: int, number: int) -> None:
        source, target = (slice(n * REGIONS, (n + 1) * REGIONS) for n in (number, place))
        for name, array in arrays.items():
            self.sets[name].read_direct(array[target], source)

    def read(self, numbers: Sequence[int], buffers: Buffers) -> Arrays:
        if buffers.arrays["features"].dtype != np.float16:  # HDF5 casts slower than torch
            return super().read(numbers, buffers)
        for place, number in enumerate(numbers):
            self.fill(buffers.arrays, place, number)
        return buffers.arrays

    def close(self) -> None:
        self.file.close()


class NpzFiles(Reader):
    """A folder with one uncompressed npz file per image."""

    def write(self, images: int) -> None:
        self.folder.mkdir()
        for number in range(images):
            np.savez(self.folder / f"{id_of(number)}.npz", **arrays_of(number))

    def open(self) -> None:
        self.names = sorted(os.path.join(self.folder, name) for name in os.listdir(self.folder))

    def image(self, number: int) -> Arrays:
        with np.load(self.names[number], allow_pickle=False) as found:
            return {name: found[name] for name in LAYOUT}


def all_readers(folder: Path) -> dict[str, Reader]:
    """Return every reader by name, dimvl's first."""
    return {
        "dimvl": Store(folder / "float16"),
        "dimvl, checked": Store(folder / "float16", check=True),
        "dimvl, int8": Store(folder / "int8", "int8"),
        "LMDB msgpack": LmdbBytes(folder / "lmdb-bytes"),
        "LMDB msgpack, UNITER": LmdbArrays(folder / "lmdb-arrays"),
        "LMDB npz": LmdbNpz(folder / "lmdb-npz"),
        "HDF5 kept open": Hdf5(folder / "hdf5"),
        "npz files": NpzFiles(folder / "npz"),
        "TSV base64": Tsv(folder / "tsv"),
    }
