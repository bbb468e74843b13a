"""The HDF5 files of VLP (Zhou et al., AAAI 2020).

For each last three characters xyz of image ids, a file `{prefix}_feat{xyz}.h5` of features (R, F) and a file
`{prefix}_cls{xyz}.h5` of class probabilities (R, 1601), the background first; and boxes (R, 6) in one file for all
images, or in `{prefix}_bbox{xyz}.h5`: corners in pixels, class index (0 is the background), confidence.

Arrays must be in these files themselves: links, external storage and virtual arrays, by which HDF5 opens other files,
are refused.
"""

import contextlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.errors import UserError
from dimvl.files import open_regular
from dimvl.regions.importers.common import Assembler, Entry, Source, check_array
from dimvl.regions.importers.facts import others_than
from dimvl.regions.records import Regions
from dimvl.showing import short

PART = re.compile(r"(?P<prefix>.*)_(?P<kind>feat|cls|bbox)(?P<suffix>[^_]{3})\.h5")


def vlp_hdf5(path: Path, assembler: Assembler) -> Source:
    """Open the folder with the files, which may be in subfolders."""
    try:
        import h5py
    except ImportError:
        raise UserError("reading HDF5 needs the package h5py; pip install 'dimvl[import]'") from None
    files = sorted(file for file in path.rglob("*") if not file.is_dir())
    matches = {file: found for file in files if (found := PART.fullmatch(file.name))}
    features = [(file, found) for file, found in matches.items() if found["kind"] == "feat"]
    whole = [file for file in files if file not in matches and file.suffix == ".h5" and file.name[0] != "."]
    if not features:
        raise UserError(f"{path} has no files *_feat???.h5; give the folder with VLP's files")

    def place(kind: str, features: re.Match[str]) -> Path:
        """The file of a kind that belongs to a file of features: with its prefix, or the only one with its suffix."""
        suffix = features["suffix"]
        found = {file: one for file, one in matches.items() if (one["kind"], one["suffix"]) == (kind, suffix)}
        same = [file for file, one in found.items() if one["prefix"] == features["prefix"]]
        for candidates in (same, list(found), whole if kind == "bbox" else []):
            if len(candidates) == 1:
                return candidates[0]
        one = f", or one other .h5 file for all images (it has {len(whole)})" if kind == "bbox" else ""
        problem = f"has several files *_{kind}{suffix}.h5" if found else f"lacks the file *_{kind}{suffix}.h5{one}"
        raise UserError(f"{path} {problem}; give it one for {features.string}")

    def opened(stack: contextlib.ExitStack, file: Path) -> Any:
        open_regular(file, 2**62).close()
        try:
            return stack.enter_context(h5py.File(file, "r"))
        except Exception as error:
            raise UserError(f"{file} cannot be read as HDF5 ({error}); restore it") from None

    def entries() -> Iterator[Entry]:
        number = 0
        for file, found in features:
            with contextlib.ExitStack() as stack:
                feature_file = opened(stack, file)
                box_file = opened(stack, place("bbox", found))
                class_file = opened(stack, place("cls", found)) if len(assembler.classes) else None
                for image_id in _keys(feature_file, file):
                    number += 1
                    groups = (feature_file, box_file, class_file)
                    yield Entry(image_id, partial(_decode, assembler, image_id, *groups), number)

    total, boxes = 0, set()
    for file, found in features:
        boxes.add(place("bbox", found))
        with contextlib.ExitStack() as stack:
            total += len(_keys(opened(stack, file), file))
    with contextlib.ExitStack() as stack:
        without = sum(len(_keys(opened(stack, file), file)) for file in sorted(boxes)) - total
    passed_over: tuple[str, ...] = ()
    if without > 0:
        passed_over = (f"{without:,} images with boxes but without features",)
    others = sorted(str(file.relative_to(path)) for file in files if file not in matches and file not in boxes)
    passed_over += others_than("*_feat???.h5, *_cls???.h5 or *_bbox???.h5", others)
    left_out = sum("feat" in Path(name).name for name in others)
    return Source(path, entries, total, total, passed_over=passed_over, left_out=left_out)


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
    """Read an array of floats that is in the file itself."""
    import h5py

    link = file.get(image_id, getlink=True)
    found = file.get(image_id) if isinstance(link, h5py.HardLink) else None
    if link is not None and (found is None or getattr(found, "external", None) or getattr(found, "is_virtual", False)):
        raise UserError(
            f"image {short(image_id)} is in {file.filename} only as a link to another place or file, which is not "
            "followed; write the array itself there"
        )
    if not isinstance(found, h5py.Dataset) or found.dtype.kind != "f":
        raise UserError(f"image {short(image_id)} has no array of floats in {file.filename}; restore it")
    check_array(found.shape, found.dtype.itemsize)
    return found[()]
