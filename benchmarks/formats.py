"""The same synthetic regions in dimvl's store and in the formats of the field, each written and read at its best.

Each image has its own arrays, with 1,600 classes and 400 attributes. Positions, keys, file names and line offsets are
looked up beforehand, as a data set does once. LMDB is opened read-only, without locks and without readahead.

- "LMDB msgpack" holds plain bytes that are read without a copy: the fastest use of LMDB that we know.
- "LMDB msgpack, UNITER" is read as UNITER's `DetectFeatLmdb` does: arrays with dtype and shape, without a copy, and
  then a float32 tensor of each image's features.
- TSV holds float32 features, as published files do.
"""

import base64
import io
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import lmdb
import msgpack
import numpy as np
import torch

from benchmarks.data import REGIONS, WIDTH, image_id, make_extractor, random_regions
from dimvl.regions.records import Regions
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter

BATCH = 64
SMALL = {
    "boxes": (np.float32, 4),
    "class_ids": (np.int16, 1),
    "class_scores": (np.float16, 1),
    "attribute_ids": (np.int16, 1),
    "attribute_scores": (np.float16, 1),
}
LAYOUT = {"features": (np.float16, WIDTH), **SMALL}
EXTRACTOR = make_extractor(WIDTH, [f"class {n}" for n in range(1600)], [f"attribute {n}" for n in range(400)])
SLOW = ("LMDB npz", "TSV base64")  # these read fewer batches per round
Arrays = dict[str, np.ndarray]


def arrays_of(number: int) -> Arrays:
    """Return the arrays of one image, drawn with its number as the seed."""
    return random_regions(number, REGIONS, EXTRACTOR)


class Buffers:
    """The batch that every reader fills: allocated once and reused, as pinned memory is."""

    def __init__(self, feature_dtype: type) -> None:
        rows = BATCH * REGIONS
        self.arrays = {"features": np.zeros((rows, WIDTH), feature_dtype)}
        if feature_dtype == np.int8:
            self.arrays["feature_scales"] = np.zeros((rows, 1), np.float32)
        self.arrays |= {name: np.zeros((rows, columns), dtype) for name, (dtype, columns) in SMALL.items()}

    def put(self, place: int, arrays: Arrays) -> None:
        """Copy one image's arrays to its place in the batch."""
        for name, array in self.arrays.items():
            copy(array[rows_of(place)], arrays[name])


def rows_of(place: int) -> slice:
    """Rows of one image in a batch or in a flat array."""
    return slice(place * REGIONS, (place + 1) * REGIONS)


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """Copy an array, with torch where the types differ: it casts ten times as fast as numpy."""
    if target.dtype == source.dtype:
        target[:] = source
    else:
        torch.from_numpy(target).copy_(torch.from_numpy(source))


class Reader:
    """One format, with methods `write` a number of images, `open`, and `image`, the arrays of one image.

    Attributes:
        gives: type of the features unless float32 is requested.
        file: what is open and has to be closed, if anything.

    """

    gives: type = np.float16
    file: Any = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, numbers: Sequence[int], buffers: Buffers) -> Arrays:
        """Read a batch into the buffers."""
        for place, number in enumerate(numbers):
            buffers.put(place, self.image(number))
        return buffers.arrays

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class Store(Reader):
    """dimvl's region store, which reads the rows of an image directly to their place in the batch."""

    def __init__(self, folder: Path, feature_dtype: str = "float16", check: bool = False) -> None:
        super().__init__(folder)
        self.feature_dtype, self.check = feature_dtype, check
        self.gives = np.dtype(feature_dtype).type

    def write(self, images: int) -> None:
        if (self.folder / "manifest.json").exists():  # the checked reader uses the same files
            return
        with RegionStoreWriter(self.folder, EXTRACTOR, feature_dtype=self.feature_dtype) as writer:
            for number in range(images):
                writer.add(Regions(image_id=image_id(number), width=640, height=480, **arrays_of(number)))

    def open(self) -> None:
        self.store = RegionStore(self.folder, self.check)
        self.positions = self.store.positions(map(image_id, range(len(self.store))))
        self.kept = Buffers(self.gives)  # read into this before a cast to float32

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

    types = {name: dtype for name, (dtype, _) in LAYOUT.items()} | {"features": np.float32}

    def write(self, images: int) -> None:
        self.folder.mkdir()
        offsets = [0]
        with (self.folder / "features.tsv").open("wb") as file:
            for number in range(images):
                arrays = arrays_of(number)
                fields = [base64.b64encode(arrays[name].astype(dtype).tobytes()) for name, dtype in self.types.items()]
                file.write(b"\t".join([image_id(number).encode(), b"640", b"480", *fields]) + b"\n")
                offsets.append(file.tell())
        np.save(self.folder / "offsets.npy", np.array(offsets))

    def open(self) -> None:
        self.file = (self.folder / "features.tsv").open("rb", buffering=0)
        self.offsets = np.load(self.folder / "offsets.npy").tolist()

    def image(self, number: int) -> Arrays:
        start, end = self.offsets[number : number + 2]
        fields = os.pread(self.file.fileno(), end - start, start).split(b"\t")[3:]
        return {
            name: np.frombuffer(base64.b64decode(field), dtype).reshape(REGIONS, -1)
            for (name, dtype), field in zip(self.types.items(), fields, strict=True)
        }


class Lmdb(Reader):
    """LMDB with values made by `pack` and read by `unpack`."""

    def __init__(self, folder: Path, pack: Callable[[Arrays], bytes], unpack: Callable[[Any], Arrays]) -> None:
        super().__init__(folder)
        self.pack, self.unpack = pack, unpack
        self.gives = np.float32 if unpack is unpack_arrays else np.float16

    def write(self, images: int) -> None:
        with lmdb.open(str(self.folder), map_size=2**36) as environment, environment.begin(write=True) as transaction:
            for number in range(images):
                transaction.put(image_id(number).encode(), self.pack(arrays_of(number)))

    def open(self) -> None:
        settings = {"readonly": True, "lock": False, "readahead": False, "meminit": False, "create": False}
        self.file = lmdb.open(str(self.folder), **settings)
        self.transaction = self.file.begin(buffers=True)
        self.keys = [image_id(number).encode() for number in range(self.file.stat()["entries"])]

    def image(self, number: int) -> Arrays:
        return self.unpack(self.transaction.get(self.keys[number]))


unpack_map = partial(msgpack.unpackb, max_bin_len=2**30)


def pack_bytes(arrays: Arrays) -> bytes:
    """Plain bytes by name."""
    return msgpack.packb({name: array.tobytes() for name, array in arrays.items()})


def unpack_bytes(value: Any) -> Arrays:
    """Read the bytes as arrays."""
    fields = unpack_map(value)
    return {name: np.frombuffer(fields[name], dtype).reshape(REGIONS, -1) for name, (dtype, _) in LAYOUT.items()}


def pack_arrays(arrays: Arrays) -> bytes:
    """Arrays with dtype and shape, in the layout of msgpack_numpy."""
    fields = {
        name: {"dtype": array.dtype.str, "shape": array.shape, "data": array.tobytes()}
        for name, array in arrays.items()
    }
    return msgpack.packb(fields)


def unpack_arrays(value: Any) -> Arrays:
    """Read the arrays, and make a float32 tensor of the features."""

    def as_array(field: dict) -> dict | np.ndarray:
        if "data" not in field:
            return field
        return np.frombuffer(field["data"], field["dtype"]).reshape(field["shape"])

    arrays = unpack_map(value, object_hook=as_array)
    return arrays | {"features": torch.tensor(arrays["features"]).float().numpy()}


def pack_npz(arrays: Arrays) -> bytes:
    """Make an uncompressed npz file."""
    with io.BytesIO() as stream:
        np.savez(stream, **arrays)
        return stream.getvalue()


def unpack_npz(value: Any) -> Arrays:
    """Read the file."""
    with np.load(io.BytesIO(value), allow_pickle=False) as found:
        return {name: found[name] for name in LAYOUT}


class Hdf5(Reader):
    """One HDF5 file of flat contiguous arrays that is kept open; rows are read directly into the batch."""

    def write(self, images: int) -> None:
        self.folder.mkdir()
        with h5py.File(self.folder / "features.h5", "w") as file:
            for name, (dtype, columns) in LAYOUT.items():
                file.create_dataset(name, (images * REGIONS, columns), dtype)
            for number in range(images):
                for name, array in arrays_of(number).items():
                    file[name][rows_of(number)] = array

    def open(self) -> None:
        self.file = h5py.File(self.folder / "features.h5", "r")
        self.sets = {name: self.file[name] for name in LAYOUT}

    def image(self, number: int) -> Arrays:
        arrays = {name: np.empty((REGIONS, columns), dtype) for name, (dtype, columns) in LAYOUT.items()}
        self.fill(arrays, 0, number)
        return arrays

    def fill(self, arrays: Arrays, place: int, number: int) -> None:
        for name, array in arrays.items():
            self.sets[name].read_direct(array[rows_of(place)], rows_of(number))

    def read(self, numbers: Sequence[int], buffers: Buffers) -> Arrays:
        if buffers.arrays["features"].dtype != np.float16:  # HDF5 casts more slowly than torch
            return super().read(numbers, buffers)
        for place, number in enumerate(numbers):
            self.fill(buffers.arrays, place, number)
        return buffers.arrays


def all_readers(folder: Path) -> dict[str, Reader]:
    """Return every reader by name, dimvl's first."""
    return {
        "dimvl": Store(folder / "float16"),
        "dimvl, checked": Store(folder / "float16", check=True),
        "dimvl, int8": Store(folder / "int8", "int8"),
        "LMDB msgpack": Lmdb(folder / "lmdb-bytes", pack_bytes, unpack_bytes),
        "LMDB msgpack, UNITER": Lmdb(folder / "lmdb-arrays", pack_arrays, unpack_arrays),
        "LMDB npz": Lmdb(folder / "lmdb-npz", pack_npz, unpack_npz),
        "HDF5 kept open": Hdf5(folder / "hdf5"),
        "TSV base64": Tsv(folder / "tsv"),
    }
