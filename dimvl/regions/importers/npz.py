"""Folders of .npz files, one per image and named by its id: UNITER's, and a plain layout of our own."""

import os
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from dimvl.errors import UserError
from dimvl.regions.importers.common import ATTRIBUTES_KEPT, Assembler, Entry, Source
from dimvl.regions.records import Regions

MAX_BYTES = 2**30
"""Of an archive after unpacking: a small file may claim to unpack to any size."""

UNITER = ("features", "norm_bb", "conf", "soft_labels")
PLAIN = ("features", "boxes", "size", "class_ids", "class_scores", "attribute_ids", "attribute_scores")


def npz(path: Path, assembler: Assembler) -> Source:
    """Open a folder of .npz files in the plain layout; see docs/importing.md."""
    return _source(path, partial(_plain, assembler))


def uniter_npz(path: Path, assembler: Assembler) -> Source:
    """Open a folder of UNITER's .npz files; see `uniter_regions`."""
    return _source(path, partial(_uniter, assembler))


def files_of(folder: Path) -> list[str]:
    """Names of a folder's .npz files, at least one, sorted."""
    try:
        with os.scandir(folder) as found:
            names = sorted(entry.name for entry in found if entry.name.endswith(".npz"))
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read ({error.strerror}); check the path") from None
    if not names:
        raise UserError(f"{folder} has no .npz files; check the path")
    return names


def read_npz(file: IO[bytes] | Path, names: tuple[str, ...], where: str) -> dict[str, np.ndarray]:
    """Read the arrays of an archive that are among `names`; arrays of Python objects are refused."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info.file_size for info in archive.infolist()}
        if sum(members.get(f"{name}.npy", 0) for name in names) > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES:,} bytes")
        if not isinstance(file, Path):
            file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names if name in arrays.files}
    except Exception as error:  # damaged bytes make zip and numpy raise anything
        reason = "it contains Python objects, which are never unpickled" if "pickle" in str(error) else str(error)
        raise UserError(f"{where} is not an archive of plain arrays ({reason}); restore it") from None


def uniter_regions(assembler: Assembler, image_id: str, arrays: Mapping[str, np.ndarray]) -> Regions:
    """Make regions of UNITER's arrays.

    Args:
        assembler: checks them.
        image_id: of the image.
        arrays: features (R, F); norm_bb (R, 6 or 7), fractions x1, y1, x2, y2, w, h and perhaps w * h; conf (R,) to
            sort by; soft_labels (R, 1 + classes), the background first.

    """
    require(image_id, arrays, ("features", "norm_bb"))
    boxes = arrays["norm_bb"]
    if boxes.ndim != 2 or boxes.shape[1] not in (6, 7):
        raise UserError(f"image {image_id!r} has norm_bb of shape {boxes.shape}; it must have 6 or 7 columns")
    boxes = boxes.astype(np.float64)
    with np.errstate(invalid="ignore"):  # the assembler refuses infinite corners
        sides = boxes[:, 2:4] - boxes[:, :2]
    if np.isfinite(boxes).all() and np.abs(sides - boxes[:, 4:6]).max(initial=0) > 0.01:
        raise UserError(f"image {image_id!r} has norm_bb that is not x1, y1, x2, y2, w, h as fractions; convert it")
    if len(assembler.classes):
        require(image_id, arrays, ("soft_labels",))
    return assembler.regions(
        image_id,
        boxes=boxes[:, :4],
        features=arrays["features"],
        unit="fractions",
        confidence=arrays.get("conf"),
        classes=assembler.dense_classes(image_id, arrays["soft_labels"]) if "soft_labels" in arrays else None,
        class_columns=assembler.class_columns,
    )


def require(image_id: str, arrays: Mapping[str, np.ndarray], names: tuple[str, ...]) -> None:
    """Refuse an image that lacks an array."""
    for name in names:
        if name not in arrays:
            raise UserError(
                f"image {image_id!r} has no array {name!r} (it has {', '.join(sorted(arrays)) or 'none'}); restore "
                "it or choose another --format"
            )


def _source(path: Path, decode: partial[Regions]) -> Source:
    names = files_of(path)

    def entries() -> Iterator[Entry]:
        for number, name in enumerate(names, start=1):
            yield Entry(name.removesuffix(".npz"), partial(decode, path / name), number)

    return Source(path, entries, len(names), len(names))


def _uniter(assembler: Assembler, file: Path) -> Regions:
    return uniter_regions(assembler, file.name.removesuffix(".npz"), read_npz(file, UNITER, str(file)))


def _plain(assembler: Assembler, file: Path) -> Regions:
    image_id, arrays = file.name.removesuffix(".npz"), read_npz(file, PLAIN, str(file))
    needed = ["features", "boxes", *(["class_ids"] if len(assembler.classes) else [])]
    require(image_id, arrays, (*needed, *(["attribute_ids"] if len(assembler.attributes) else [])))
    for kind in ("class", "attribute"):
        if f"{kind}_ids" in arrays:
            require(image_id, arrays, (f"{kind}_scores",))
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
        classes=(arrays["class_ids"], arrays["class_scores"]) if "class_ids" in arrays else None,
        class_columns=assembler.class_columns,
        attributes=(arrays["attribute_ids"], arrays["attribute_scores"]) if "attribute_ids" in arrays else None,
        attribute_columns=ATTRIBUTES_KEPT,
    )
