"""UNITER's LMDB: the arrays of its .npz files, as an archive or in msgpack, each under its file's name.

In msgpack an array is a map of nd, type, kind, shape and data (raw bytes), as the package msgpack_numpy writes it. That
package would unpickle arrays of kind O; here they are refused.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import math
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.errors import UserError
from dimvl.files import open_regular
from dimvl.regions.importers.common import MAX_VALUE, Assembler, Entry, Source, check_array
from dimvl.regions.importers.npz import UNITER, read_npz, uniter_regions
from dimvl.regions.records import Regions
from dimvl.showing import short

KEYS = b"__keys__"  # a list of all names, which is not an image

MAX_SIDES = 256
MAX_PARTS = 1_000
"""Arrays and maps of msgpack, and values in each; a record has 5 maps. A byte can become 60 in memory."""

TIMEOUT = 60.0
"""Seconds without a reply after which a file is considered damaged; a sleeping disk takes ten."""


def uniter_lmdb(path: Path, assembler: Assembler) -> Source:
    """Open data.mdb, or the folder that contains it."""
    if not all(importlib.util.find_spec(name) for name in ("lmdb", "msgpack")):
        raise UserError("reading LMDB needs the packages lmdb and msgpack; pip install 'dimvl[import]'")
    file = path / "data.mdb" if path.is_dir() else path
    open_regular(file, 2**62).close()
    with _Reader(file) as reader:
        images = reader.total - bool(reader.names)
        named = _count(reader.names)

    def entries() -> Iterator[Entry]:
        with _Reader(file) as reader:
            for number, key in enumerate(reader.keys(), start=1):
                if key != KEYS:
                    name = key.decode("utf-8", "surrogateescape").removesuffix(".npz")
                    yield Entry(name, partial(_decode, assembler, name, reader), number)

    missing = max(named - images, 0)
    passed_over = (f"{missing:,} images that __keys__ of {file.name} lists but that are not in it",) if missing else ()
    return Source(path, entries, images, reader.total, passed_over=passed_over, left_out=missing)


def _count(names: bytes) -> int:
    """Number of names in the value of `__keys__`; 0 if it is of another form."""
    try:
        found = json.loads(names)
    except (ValueError, RecursionError):
        return 0
    return len(found) if isinstance(found, list) else 0


class _Reader:
    """Sends requests to a process of `lmdb_reader.py`, which ends with this context; a `UserError` if it fails."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> "_Reader":
        command = [sys.executable, "-m", "dimvl.regions.importers.lmdb_reader", str(self.file)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        try:
            self.total, self.names = int(self._reply()), self._reply()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def keys(self) -> Iterator[bytes]:
        """All keys in order; at most as many as the file declares, because a damaged tree may contain a cycle."""
        key = self.ask(b"f")
        for _ in range(self.total):
            if not key:
                return
            yield key
            key = self.ask(b"n")
        if key:
            raise UserError(
                f"{self.file} is damaged: it has more than the {self.total:,} entries it declares; restore it"
            )

    def ask(self, request: bytes) -> bytes:
        """Send a request and return the reply."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing reply is an error below
            self._process.stdin.write(request)
        return self._reply()

    def _reply(self) -> bytes:
        length = int.from_bytes(self._receive(8), "little")
        if length > MAX_VALUE:
            raise UserError(f"{self.file} is damaged: it has a value of {length:,} bytes; restore it")
        return self._receive(length)

    def _receive(self, count: int) -> bytes:
        assert self._process.stdout is not None and self._process.stderr is not None
        received = bytearray()
        while len(received) < count:
            answers, _, _ = select.select([self._process.stdout], [], [], TIMEOUT)
            part = self._process.stdout.read(count - len(received)) if answers else b""
            if not part:
                self._process.kill()
                reason = self._process.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise UserError(f"{self.file} cannot be read as LMDB ({reason or 'damaged'}); restore it")
            received += part
        return bytes(received)


def _decode(assembler: Assembler, image_id: str, reader: _Reader) -> Regions:
    value = reader.ask(b"v")
    if value.startswith(b"PK"):
        arrays, others = read_npz(io.BytesIO(value), UNITER, f"image {short(image_id)}")
    else:
        arrays, others = unpack(value, image_id)
    return uniter_regions(assembler, image_id, arrays, others)


def unpack(value: bytes, image_id: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read UNITER's arrays from msgpack, and the names of others; arrays of Python objects are refused."""
    import msgpack

    parts = itertools.count()

    def counted(part: Any) -> Any:
        if next(parts) >= MAX_PARTS:
            raise ValueError(f"it has more than {MAX_PARTS:,} parts")
        return part

    limits = {"max_array_len": MAX_SIDES, "max_map_len": MAX_SIDES, "list_hook": counted, "object_hook": counted}
    try:
        record = msgpack.unpackb(value, raw=False, strict_map_key=False, **limits)
        if not isinstance(record, dict):
            raise ValueError("it is not a map of arrays")
        arrays = {name: _array(record[name]) for name in UNITER if name in record}
        return arrays, sorted(map(str, record.keys() - arrays.keys()))
    except Exception as error:  # damaged bytes make msgpack raise anything
        reason = str(error)[:200]
        raise UserError(f"image {short(image_id)} is not msgpack of plain arrays ({reason}); restore it") from None


def _array(packed: Any) -> np.ndarray:
    fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in packed.items()}
    if fields.get("kind") in (b"O", "O", b"V", "V"):
        raise ValueError("it contains Python objects, which are never unpickled")
    kind = fields["type"].decode() if isinstance(fields["type"], bytes) else fields["type"]
    if fields.get("nd") is not True or not re.fullmatch(r"[<>|=]?[fiub][1248]", kind):
        raise ValueError(f"arrays of type {short(kind)} are not supported")
    shape, dtype = tuple(fields["shape"]), np.dtype(kind)
    if any(not isinstance(side, int) or side < 0 for side in shape):
        raise ValueError(f"the shape {short(shape)} is not valid")
    check_array(shape, dtype.itemsize)
    if math.prod(shape) * dtype.itemsize != len(fields["data"]):
        raise ValueError(f"{len(fields['data']):,} bytes do not make an array of shape {short(shape)}")
    return np.frombuffer(fields["data"], dtype=dtype).reshape(shape)
