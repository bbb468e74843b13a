"""TSV files: their lines, and bottom-up-attention features in LXMERT's columns.

Arrays are base64 of raw little-endian numbers. A `.lineidx` file beside a TSV has the byte offset of each line. With
it, only the ids of images in the store are read, and not their lines; without it, the whole file is read.
"""

import binascii
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dimvl.errors import UserError
from dimvl.regions.importers.common import Assembler, Entry, Source
from dimvl.regions.records import Regions

MAX_LINE = 2**28
"""Bytes per line. 1,000 regions of 2,048 floats take 11 million."""

MAX_KEY = 1024
"""Bytes per image id."""


@dataclass(frozen=True)
class Line:
    """One line of a TSV file.

    Attributes:
        number: counted from 1.
        key: the first column, "" if it cannot be an id.
        columns: reads and splits the line; valid until the next line is requested.
        position: bytes of the file up to its end.

    """

    number: int
    key: str
    columns: Callable[[], list[bytes]]
    position: int


class TsvFile:
    """A TSV file, with the offsets of its lines if a `.lineidx` file exists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.num_bytes = path.stat().st_size
            self.offsets = self._read_offsets(path.with_suffix(".lineidx"))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from None

    def lines(self) -> Iterator[Line]:
        """Lines that are not blank."""
        try:
            with self.path.open("rb") as file:
                yield from self._streamed(file) if self.offsets is None else self._indexed(file.fileno(), self.offsets)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}); check the disk") from None

    def line_at(self, offset: int) -> list[bytes]:
        """Columns of the line at a byte offset."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return _split(file.readline(MAX_LINE))

    def _streamed(self, file: io.BufferedReader) -> Iterator[Line]:
        number, position = 0, 0
        while line := file.readline(MAX_LINE):
            number, position = number + 1, position + len(line)
            if len(line) == MAX_LINE:
                raise UserError(
                    f"{self.path} has a line of over {MAX_LINE:,} bytes; give a file with one image per line"
                )
            if line.strip():
                yield Line(number, _key(line[: MAX_KEY + 1]), partial(_split, line), position)

    def _indexed(self, descriptor: int, offsets: np.ndarray) -> Iterator[Line]:
        ends = np.append(offsets[1:], self.num_bytes)
        for number, (start, end) in enumerate(zip(offsets.tolist(), ends.tolist(), strict=True), start=1):
            if end - start >= MAX_LINE:
                raise UserError(
                    f"{self.path} has a line of over {MAX_LINE:,} bytes; give a file with one image per line"
                )
            head = os.pread(descriptor, min(MAX_KEY + 1, end - start), start)
            if head.strip():
                yield Line(number, _key(head), partial(_read_columns, descriptor, start, end), end)

    def _read_offsets(self, file: Path) -> np.ndarray | None:
        if not file.is_file():
            return None
        try:
            offsets = np.array(file.read_bytes().split(), dtype=np.int64)
        except (ValueError, OverflowError):
            offsets = np.array([-1])
        rising = len(offsets) and offsets[0] == 0 and np.all(np.diff(offsets) > 0) and offsets[-1] < self.num_bytes
        if not rising or not self._begin_lines(offsets):
            raise UserError(f"{file} does not fit {self.path.name}; delete it, since it is not necessary")
        return offsets

    def _begin_lines(self, offsets: np.ndarray) -> bool:
        """Whether a line end precedes the offsets, checked at a few of them."""
        checked = offsets[1:][:: max(1, len(offsets) // 16)].tolist()
        with self.path.open("rb") as file:
            return all(os.pread(file.fileno(), 1, offset - 1) == b"\n" for offset in checked)


def _read_columns(descriptor: int, start: int, end: int) -> list[bytes]:
    return _split(os.pread(descriptor, end - start, start))


def _split(line: bytes) -> list[bytes]:
    return line.rstrip(b"\r\n").split(b"\t")


def _key(head: bytes) -> str:
    """Decode the first column from the start of a line; "" if it cannot be an id."""
    key, tab, _ = head.partition(b"\t")
    try:
        return key.decode("utf-8-sig").strip() if tab else ""
    except UnicodeDecodeError:
        return ""


def source_of(path: Path, tsv: TsvFile, decode: Callable[[Line], Regions]) -> Source:
    """Make a source of a file's lines."""

    def entries() -> Iterator[Entry]:
        for line in tsv.lines():
            position = line.number if tsv.offsets is not None else line.position // 10**6
            if line.key:
                yield Entry(line.key, partial(decode, line), position)
            else:
                yield Entry(f"line {line.number}", partial(_refuse_key, tsv, line), position)

    if tsv.offsets is not None:
        return Source(path, entries, len(tsv.offsets), len(tsv.offsets))
    first = next(tsv.lines(), None)
    images = 0 if first is None else tsv.num_bytes // first.position
    return Source(path, entries, images, tsv.num_bytes // 10**6 + 1, "MB")


def _refuse_key(tsv: TsvFile, line: Line) -> Regions:
    raise UserError(f"line {line.number} of {tsv.path} does not start with an image id and a tab; correct or delete it")


def array_of(line: Line, name: str, column: bytes, dtype: str, count: int | None = None) -> np.ndarray:
    """Decode a column of `count` numbers, or of any number of them."""
    where = f"line {line.number} (image {line.key!r}): {name}"
    try:
        raw = binascii.a2b_base64(column, strict_mode=True)
    except binascii.Error as error:
        raise UserError(f"{where} is not base64 ({error}); the line is damaged or cut off, restore it") from None
    size = np.dtype(dtype).itemsize
    if len(raw) % size or (count is not None and len(raw) != count * size):
        expected = "numbers" if count is None else f"{count:,} numbers"
        raise UserError(f"{where} has {len(raw):,} bytes for {expected} of {size} bytes each; restore the line")
    return np.frombuffer(raw, dtype=dtype)


def matrix_of(line: Line, name: str, column: bytes, rows: int) -> np.ndarray:
    """Decode a column to (rows, any) float32."""
    values = array_of(line, name, column, "<f4")
    if values.size % max(rows, 1) or (values.size and not rows):
        raise UserError(
            f"line {line.number} (image {line.key!r}): {name} has {values.size:,} numbers for {rows} boxes; restore it"
        )
    return values.reshape(rows, values.size // rows if rows else 0)


def integer_of(line: Line, name: str, column: bytes) -> int:
    """Decode a column with an integer in digits."""
    try:
        return int(column)
    except ValueError:
        raise UserError(
            f"line {line.number} (image {line.key!r}): {name} is {column[:20]!r}, not an integer; restore the line"
        ) from None


def lxmert_tsv(path: Path, assembler: Assembler) -> Source:
    """Bottom-up-attention features in LXMERT's ten columns, or in the six of the original publication.

    The ten: img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features; ids are
    int64, the rest float32. The six: image_id, image_w, image_h, num_boxes, boxes, features.
    """
    return source_of(path, TsvFile(path), partial(_lxmert, assembler))


def _lxmert(assembler: Assembler, line: Line) -> Regions:
    columns = line.columns()
    names: list[bytes] = []  # encoded ids and scores of classes and attributes
    if len(columns) == 6:
        _, width, height, count, boxes, features = columns
    elif len(columns) == 10:
        _, height, width, *names, count, boxes, features = columns
    else:
        raise UserError(
            f"line {line.number} (image {line.key!r}) has {len(columns)} columns, not 10 (or 6); the line is cut off "
            "or the file is of another format"
        )
    rows = integer_of(line, "num_boxes", count)
    if not 0 <= rows <= 10**6:
        raise UserError(f"line {line.number} (image {line.key!r}) has num_boxes {rows}; restore the line")
    fields = (("objects_id", "<i8"), ("objects_conf", "<f4"), ("attrs_id", "<i8"), ("attrs_conf", "<f4"))
    arrays = [array_of(line, name, column, dtype, rows) for column, (name, dtype) in zip(names, fields, strict=False)]
    return assembler.regions(
        line.key,
        boxes=array_of(line, "boxes", boxes, "<f4", 4 * rows).reshape(rows, 4),
        features=matrix_of(line, "features", features, rows),
        size=(integer_of(line, "img_w", width), integer_of(line, "img_h", height)),
        classes=(arrays[0], arrays[1]) if arrays else None,
        attributes=(arrays[2], arrays[3]) if arrays else None,
        attribute_columns=1,
    )
