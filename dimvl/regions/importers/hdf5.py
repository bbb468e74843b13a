"""The HDF5 files of VLP (Zhou et al., AAAI 2020).

For each last three characters xyz of image ids, a file `{prefix}_feat{xyz}.h5` of features (R, F) and a file
`{prefix}_cls{xyz}.h5` of class probabilities (R, 1601), the background first; and boxes (R, 6) in one file for all
images, or in `{prefix}_bbox{xyz}.h5`: corners in pixels, class index (0 is the background), confidence.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.errors import UserError
from dimvl.regions.importers.common import Assembler, Entry, Source
from dimvl.regions.records import Regions

PART = re.compile(r"(?P<prefix>.*)_(?P<kind>feat|cls|bbox)(?P<suffix>[^_]{3})\.h5")

MAX_NUMBERS = 2**28
"""Of an array: a small file may claim any shape."""


def vlp_hdf5(path: Path, assembler: Assembler) -> Source:
    """Open the folder with the files, which may be in subfolders."""
    try:
        import h5py
    except ImportError:
        raise UserError("reading HDF5 needs the package h5py; pip install 'dimvl[import]'") from None
    files = sorted(path.rglob("*.h5"))
    matches = {file: PART.fullmatch(file.name) for file in files}
    parts = {(found["kind"], found["suffix"]): file for file, found in matches.items() if found}
    features = [(file, found["suffix"]) for file, found in matches.items() if found and found["kind"] == "feat"]
    whole = [file for file, found in matches.items() if not found]
    if not features:
        raise UserError(f"{path} has no files *_feat???.h5; give the folder with VLP's files")

    def place(kind: str, suffix: str) -> Path:
        found = parts.get((kind, suffix))
        if found is None and kind == "bbox" and len(whole) == 1:
            return whole[0]
        if found is None:
            one = f", or one other .h5 file for all images (it has {len(whole)})" if kind == "bbox" else ""
            raise UserError(f"{path} lacks the file *_{kind}{suffix}.h5{one}; add it")
        return found

    def opened(stack: contextlib.ExitStack, file: Path) -> Any:
        try:
            return stack.enter_context(h5py.File(file, "r"))
        except Exception as error:
            raise UserError(f"{file} cannot be read as HDF5 ({error}); restore it") from None

    def entries() -> Iterator[Entry]:
        number = 0
        for file, suffix in features:
            with contextlib.ExitStack() as stack:
                feature_file = opened(stack, file)
                box_file = opened(stack, place("bbox", suffix))
                class_file = opened(stack, place("cls", suffix)) if len(assembler.classes) else None
                for image_id in _keys(feature_file, file):
                    number += 1
                    groups = (feature_file, box_file, class_file)
                    yield Entry(image_id, partial(_decode, assembler, image_id, *groups), number)

    total = 0
    for file, suffix in features:
        place("bbox", suffix)
        with contextlib.ExitStack() as stack:
            total += len(_keys(opened(stack, file), file))
    return Source(path, entries, total, total)


def _keys(group: Any, file: Path) -> list[str]:
    try:
        return list(group)
    except Exception as error:
        raise UserError(f"{file} is damaged ({error}); restore it") from None


def _decode(assembler: Assembler, image_id: str, feature_file: Any, box_file: Any, class_file: Any) -> Regions:
    features, boxes = _read(feature_file, image_id), _read(box_file, image_id)
    if boxes.ndim != 2 or boxes.shape[1] != 6:
        raise UserError(f"image {image_id!r} has boxes of shape {boxes.shape}, not (R, 6); restore them")
    classes = None if class_file is None else assembler.dense_classes(image_id, _read(class_file, image_id))
    return assembler.regions(
        image_id,
        boxes=boxes[:, :4],
        features=features,
        confidence=boxes[:, 5],
        classes=classes,
        class_columns=assembler.class_columns,
    )


def _read(file: Any, image_id: str) -> np.ndarray:
    """Read an array of floats."""
    import h5py

    found = file.get(image_id)
    if not isinstance(found, h5py.Dataset) or found.dtype.kind != "f" or math.prod(found.shape) > MAX_NUMBERS:
        raise UserError(f"image {image_id!r} has no array of floats in {file.filename}; restore it")
    return found[()]
