"""Folders of .npz files, one per image and named by its id: UNITER's, and a plain layout of our own."""

import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from dimvl.errors import UserError
from dimvl.files import open_regular, reading
from dimvl.regions.importers.common import (
    ATTRIBUTES_KEPT,
    MAX_ARRAY,
    MAX_VALUE,
    Assembler,
    Entry,
    Source,
    check_array,
)
from dimvl.regions.importers.facts import SHOWN, others_than
from dimvl.regions.records import Regions
from dimvl.showing import short

UNITER = ("features", "norm_bb", "conf", "soft_labels")
PLAIN = ("features", "boxes", "size", "class_ids", "class_scores", "attribute_ids", "attribute_scores")
PARTS = ("ids", "scores")


def npz(path: Path, assembler: Assembler) -> Source:
    """Open a folder of .npz files in the plain layout; see docs/importing.md."""
    return _source(path, partial(_plain, assembler))


def uniter_npz(path: Path, assembler: Assembler) -> Source:
    """Open a folder of UNITER's .npz files; see `uniter_regions`."""
    return _source(path, partial(_uniter, assembler))


class Folder(NamedTuple):
    """What is in a folder of .npz files.

    Attributes:
        names: of the .npz files, at least one, sorted.
        others: of what is passed over: hidden files, folders, files with another ending; sorted.

    """

    names: list[str]
    others: list[str]


def files_of(path: Path) -> Folder:
    """List a folder of .npz files."""
    with reading(path), os.scandir(path) as found:
        files = {entry.name: not entry.is_dir() for entry in found}
    names = sorted(name for name, is_file in files.items() if is_file and name.endswith(".npz") and name[0] != ".")
    if not names:
        raise UserError(f"{path} has no .npz files; check the path")
    return Folder(names, sorted(name if files[name] else f"{name}/" for name in files.keys() - set(names)))


def read_npz(file: IO[bytes], names: tuple[str, ...], where: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read the arrays of an archive that are among `names`, and list the names of the others.

    Arrays of Python objects are refused, and arrays larger than the archive holds or than `MAX_ARRAY`, unread.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            arrays = {name: _array(archive, members[name]) for name in names if name in members}
            return arrays, sorted(members.keys() - arrays.keys())
    except Exception as error:  # damaged bytes make zip and numpy raise anything
        raise UserError(f"{where} is not an archive of plain arrays ({str(error)[:200]}); restore it") from None


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Read an array; its declared sizes are compared before memory is allocated."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{short(info.filename)} is compressed in a way that numpy does not write")
    if info.file_size > MAX_ARRAY:
        raise ValueError(f"{short(info.filename)} unpacks to more than {MAX_ARRAY:,} bytes")
    with archive.open(info) as member:
        data = io.BytesIO(member.read(info.file_size))  # without a size, zipfile unpacks any number of bytes
    version = np.lib.format.read_magic(data)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(data)
    if dtype.hasobject:
        raise ValueError(f"{short(info.filename)} contains Python objects, which are never unpickled")
    check_array(shape, dtype.itemsize)
    content = data.getbuffer()[data.tell() :]
    if len(content) != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise ValueError(f"{short(info.filename)} has {len(content):,} bytes for an array of shape {short(shape)}")
    return np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def uniter_regions(assembler: Assembler, image_id: str, arrays: Mapping[str, np.ndarray], others: list[str]) -> Regions:
    """Make regions of UNITER's arrays.

    Args:
        assembler: checks them.
        image_id: of the image.
        arrays: features (R, F); norm_bb (R, 6 or 7), fractions x1, y1, x2, y2, w, h and perhaps w * h; conf (R,) to
            sort by; soft_labels (R, 1 + classes), the background first.
        others: names of further arrays, for messages.

    """
    require(image_id, arrays, ("features", "norm_bb"), others)
    boxes = arrays["norm_bb"]
    if boxes.ndim != 2 or boxes.shape[1] not in (6, 7):
        raise UserError(f"image {image_id!r} has norm_bb of shape {boxes.shape}; it must have 6 or 7 columns")
    boxes = boxes.astype(np.float64)
    with np.errstate(invalid="ignore"):  # the assembler refuses infinite corners
        sides = boxes[:, 2:4] - boxes[:, :2]
    if np.isfinite(boxes).all() and np.abs(sides - boxes[:, 4:6]).max(initial=0) > 0.01:
        raise UserError(f"image {image_id!r} has norm_bb that is not x1, y1, x2, y2, w, h as fractions; convert it")
    if len(assembler.classes):
        require(image_id, arrays, ("soft_labels",), others)
    return assembler.regions(
        image_id,
        boxes=boxes[:, :4],
        features=arrays["features"],
        unit="fractions",
        confidence=arrays.get("conf"),
        classes=assembler.dense_classes(image_id, arrays["soft_labels"]) if "soft_labels" in arrays else None,
        class_columns=assembler.class_columns,
    )


def require(image_id: str, arrays: Mapping[str, np.ndarray], needed: tuple[str, ...], others: list[str]) -> None:
    """Refuse an image that lacks an array."""
    if missing := [name for name in needed if name not in arrays]:
        there = ", ".join([*arrays, *map(short, others[:SHOWN])]) or "none"
        raise UserError(
            f"image {image_id!r} has no array {missing[0]!r}: it has {there}, but needs {', '.join(needed)}; write it "
            "in a layout of docs/importing.md, or choose another --format"
        )


def _source(path: Path, decode: partial[Regions]) -> Source:
    names, others = files_of(path)

    def entries() -> Iterator[Entry]:
        for number, name in enumerate(names, start=1):
            yield Entry(name.removesuffix(".npz"), partial(decode, path / name), number)

    # A folder and a misnamed archive may contain features.
    left_out = sum(name.endswith("/") or ".npz" in name.lower() for name in others)
    return Source(path, entries, len(names), len(names), passed_over=others_than("*.npz", others), left_out=left_out)


def _uniter(assembler: Assembler, file: Path) -> Regions:
    with open_regular(file, MAX_VALUE) as opened:
        arrays, others = read_npz(opened, UNITER, str(file))
    return uniter_regions(assembler, file.name.removesuffix(".npz"), arrays, others)


def _plain(assembler: Assembler, file: Path) -> Regions:
    image_id = file.name.removesuffix(".npz")
    with open_regular(file, MAX_VALUE) as opened:
        arrays, others = read_npz(opened, PLAIN, str(file))
    kinds = {"class": assembler.classes, "attribute": assembler.attributes}
    used = [kind for kind, vocabulary in kinds.items() if len(vocabulary) or f"{kind}_ids" in arrays]
    require(image_id, arrays, ("features", "boxes", *(f"{kind}_{part}" for kind in used for part in PARTS)), others)
    named = {
        kind: (kinds[kind].of_lines(arrays[f"{kind}_ids"]), arrays[f"{kind}_scores"]) if kind in used else None
        for kind in kinds
    }
    size = arrays.get("size")
    if size is not None and (size.shape != (2,) or size.dtype.kind not in "iu"):
        raise UserError(
            f"image {image_id!r} has size of shape {size.shape} and type {size.dtype}; it must be two integers"
        )
    return assembler.regions(
        image_id,
        boxes=arrays["boxes"],
        features=arrays["features"],
        size=None if size is None else (int(size[0]), int(size[1])),
        classes=named["class"],
        class_columns=assembler.class_columns,
        attributes=named["attribute"],
        attribute_columns=ATTRIBUTES_KEPT,
    )
