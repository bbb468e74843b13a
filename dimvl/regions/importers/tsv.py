"""TSV files: their lines, and bottom-up-attention features in LXMERT's columns.

Arrays are base64 of raw little-endian numbers, whose size in bytes the file does not say. Where their count is known,
it tells the size; see `float_type` for features.

A `.lineidx` file beside a TSV has the byte offset of each line. It is followed only if it has every line of the file.
"""

import binascii
import io
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dimvl.errors import UserError
from dimvl.files import open_regular, read_bytes, reading
from dimvl.regions.importers.common import MAX_REGIONS, Assembler, Entry, Source
from dimvl.regions.importers.given import ClashError
from dimvl.regions.records import Regions

log = logging.getLogger(__name__)

MAX_LINE = 2**27
"""Bytes per line. 1,000 regions of 2,048 floats take 11 million."""

QUICKLY_READ = 2**28
"""Bytes of a file whose lines are counted in advance, in a fifth of a second."""

MAX_FILE = 2**62
MAX_INDEX = 2**30
"""Bytes of a `.lineidx` file; one of 50 million lines has half."""

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
    """A TSV file, with the offsets of its lines if a `.lineidx` file exists and is wanted."""

    def __init__(self, path: Path, *, indexed: bool = True) -> None:
        self.path = path
        with open_regular(path, MAX_FILE) as file:
            self.num_bytes = os.fstat(file.fileno()).st_size
        self.index = path.with_suffix(".lineidx")
        self.offsets = self._read_offsets() if indexed and os.path.lexists(self.index) else None

    def lines(self) -> Iterator[Line]:
        """Lines that are not blank."""
        with open_regular(self.path, MAX_FILE) as file, reading(self.path):
            yield from self._streamed(file) if self.offsets is None else self._indexed(file.fileno(), self.offsets)

    def line_at(self, offset: int) -> list[bytes]:
        """Columns of the line at a byte offset."""
        with open_regular(self.path, MAX_FILE) as file:
            file.seek(offset)
            return _split(file.readline(MAX_LINE))

    def _streamed(self, file: io.BufferedReader) -> Iterator[Line]:
        number, position = 0, 0
        while line := file.readline(MAX_LINE):
            number, position = number + 1, position + len(line)
            if len(line) == MAX_LINE:
                raise self._too_long()
            if line.strip():
                yield Line(number, _key(line[: MAX_KEY + 1]), partial(_split, line), position)

    def _indexed(self, descriptor: int, offsets: np.ndarray) -> Iterator[Line]:
        ends = np.append(offsets[1:], self.num_bytes)
        for number, (start, end) in enumerate(zip(offsets.tolist(), ends.tolist(), strict=True), start=1):
            if end - start >= MAX_LINE:
                raise self._too_long()
            head = os.pread(descriptor, min(MAX_KEY + 1, end - start), start)
            if head.strip():
                yield Line(number, _key(head), partial(self._columns, descriptor, start, end), end)

    def _columns(self, descriptor: int, start: int, end: int) -> list[bytes]:
        if not self._is_line(descriptor, start, end):
            raise self._unfit()
        return _split(os.pread(descriptor, end - start, start))

    def _is_line(self, descriptor: int, start: int, end: int) -> bool:
        """Whether one line, and nothing else, is between two offsets."""
        before = os.pread(descriptor, 1, start - 1) if start else b"\n"
        content = os.pread(descriptor, min(end - start, MAX_LINE), start)
        closed = content.endswith(b"\n") or end == self.num_bytes
        return before == b"\n" and closed and b"\n" not in content.rstrip(b"\r\n")

    def _read_offsets(self) -> np.ndarray:
        data = read_bytes(self.index, MAX_INDEX)
        try:
            offsets = np.array(data.split(), dtype=np.int64)
        except (ValueError, OverflowError):
            offsets = np.array([-1])
        rising = len(offsets) and offsets[0] == 0 and np.all(np.diff(offsets) > 0) and offsets[-1] < self.num_bytes
        if not rising:
            raise self._unfit()
        # The other lines are checked when they are read. An index that is older than the file shows at its end.
        ends = np.append(offsets[1:], self.num_bytes)
        with open_regular(self.path, MAX_FILE) as file:
            for place in {*range(0, len(offsets), max(1, len(offsets) // 16)), len(offsets) - 1}:
                if not self._is_line(file.fileno(), int(offsets[place]), int(ends[place])):
                    raise self._unfit()
        return offsets

    def _unfit(self) -> ClashError:
        return ClashError(
            f"{self.index} does not fit {self.path.name}: it does not have the offset of every line; delete it, since "
            "it is not necessary"
        )

    def _too_long(self) -> UserError:
        return UserError(f"{self.path} has a line of over {MAX_LINE:,} bytes; give a file with one image per line")


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
    exact = tsv.num_bytes <= QUICKLY_READ
    lines = tsv.lines()
    first = next(lines, None)
    images = 0 if first is None else (1 + sum(1 for _ in lines) if exact else tsv.num_bytes // first.position)
    return Source(path, entries, images, tsv.num_bytes // 10**6 + 1, "MB", exact=exact)


def _refuse_key(tsv: TsvFile, line: Line) -> Regions:
    raise UserError(f"line {line.number} of {tsv.path} does not start with an image id and a tab; correct or delete it")


def decoded(line: Line, name: str, column: bytes) -> bytes:
    """Decode the base64 of a column."""
    try:
        return binascii.a2b_base64(column, strict_mode=True)
    except binascii.Error as error:
        raise UserError(
            f"{_where(line, name)} is not base64 ({error}); the line is damaged or cut off, restore it"
        ) from None


def array_of(line: Line, name: str, column: bytes, dtypes: tuple[str, ...], count: int) -> np.ndarray:
    """Decode a column of `count` numbers, of that type among `dtypes` whose size fits; the first is the usual one."""
    raw = decoded(line, name, column)
    for dtype in dtypes:
        if len(raw) == count * np.dtype(dtype).itemsize:
            return np.frombuffer(raw, dtype=dtype)
    size = np.dtype(dtypes[0]).itemsize
    raise UserError(
        f"{_where(line, name)} has {len(raw):,} bytes for {count:,} numbers of {size} bytes each; restore the line"
    )


def features_of(assembler: Assembler, line: Line, raw: bytes, rows: int) -> np.ndarray:
    """Features (rows, any) of the bytes of all rows; their type is recognised once for all images of a source."""
    if assembler.float_type is None and (found := float_type(raw)) is not None:
        assembler.float_type = found
        if found != FLOATS[0]:
            log.warning(
                "the features of image %r are %s, not float32 as usual in this format, and are read as such",
                *(line.key, np.dtype(found).name),
            )
    dtype = np.dtype(assembler.float_type or FLOATS[0])
    numbers, rest = divmod(len(raw), dtype.itemsize)
    if rest or numbers % max(rows, 1) or (numbers and not rows):
        raise UserError(
            f"{_where(line, 'features')} has {len(raw):,} bytes, which are not rows of {dtype.name} for {rows} boxes; "
            "restore the line"
        )
    return np.frombuffer(raw, dtype=dtype).reshape(rows, numbers // rows if rows else 0)


FLOATS = ("<f4", "<f2", "<f8")
INTEGERS = ("<i8", "<i4")
EVIDENCE = 8
"""Nonzero numbers that a guess at their type needs, in each of two samples."""
SAMPLE = 2**18


def float_type(raw: bytes) -> str | None:
    """Recognise float16, float32 or float64 in the bytes of features; None if there are too few.

    In the right type, numbers at even and odd places look alike. Read as half their size they do not, since one half
    has sign and exponent and the other the end of the mantissa; read as twice their size, they spread over many powers
    of two, since the mantissa of one becomes the end of the exponent. On 9,000 made-up samples (dense and sparse, wide
    and narrow, rounded) of 64 to 6,144 numbers, no type but the right one fitted. If none fits, it is float32 as usual.
    """
    raw = raw[: min(SAMPLE, len(raw) // 8 * 8)]
    few = np.count_nonzero(np.frombuffer(raw, dtype=FLOATS[0])) < 4 * EVIDENCE
    found = [dtype for dtype in sorted(FLOATS) if _alike(np.frombuffer(raw, dtype=dtype))]
    return found[0] if found else None if few else FLOATS[0]


def _alike(values: np.ndarray) -> bool:
    """Whether numbers at even and at odd places are finite, of sizes within few powers of two, and equally varied."""
    kinds, spreads = [], []
    with np.errstate(invalid="ignore"):  # of the wrong type
        values = values.astype(np.float64)
    for part in (values[0::2], values[1::2]):
        sizes = np.abs(part[part != 0])
        if len(sizes) < EVIDENCE or not np.isfinite(sizes).all():
            return False
        kinds.append(len(np.unique(part)))
        spreads.append(np.log2(sizes).std())
    same = abs(spreads[0] - spreads[1]) < 1.5 and 2 * min(kinds) > max(kinds)
    return bool(same and max(spreads) < 6)


def _where(line: Line, name: str) -> str:
    return f"line {line.number} (image {line.key!r}): {name}"


def integer_of(line: Line, name: str, column: bytes) -> int:
    """Decode a column with an integer in digits."""
    try:
        return int(column)
    except ValueError:
        raise UserError(f"{_where(line, name)} is {column[:20]!r}, not an integer; restore the line") from None


def lxmert_tsv(path: Path, assembler: Assembler) -> Source:
    """Bottom-up-attention features in LXMERT's ten columns, or in the six of the original publication.

    The ten: img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features; ids are
    int64, the rest float32; ids do not count the background. The six: image_id, image_w, image_h, num_boxes, boxes,
    features.
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
    if not 0 <= rows <= MAX_REGIONS:
        raise UserError(f"{_where(line, 'num_boxes')} is {rows}, not 0 to {MAX_REGIONS:,}; restore the line")
    fields = (("objects_id", INTEGERS), ("objects_conf", FLOATS), ("attrs_id", INTEGERS), ("attrs_conf", FLOATS))
    arrays = [array_of(line, name, column, types, rows) for column, (name, types) in zip(names, fields, strict=False)]
    return assembler.regions(
        line.key,
        boxes=array_of(line, "boxes", boxes, FLOATS, 4 * rows).reshape(rows, 4),
        features=features_of(assembler, line, decoded(line, "features", features), rows),
        size=(integer_of(line, "img_w", width), integer_of(line, "img_h", height)),
        classes=(arrays[0], arrays[1]) if arrays else None,
        attributes=(arrays[2], arrays[3]) if arrays else None,
        attribute_columns=1,
    )
