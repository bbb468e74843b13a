"""Which images a model was trained on, so that evaluation on them is noticed.

RUN/trained_on.npy is a sorted array (I,) uint64 with a hash of each image; runs that start from a run, and its exports,
inherit it. Images are identified by their ids in the store, normalised by `canonical_id`: images of different data sets
with the same id count as one image.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dimvl.data.matching import coco_number, without_ending
from dimvl.errors import UserError
from dimvl.files import RESTORE, atomic_path, read_bytes
from dimvl.regions.store.format import encode_id, hash_of_id

FILE = "trained_on.npy"
NOTHING = np.zeros(0, dtype=np.uint64)


def canonical_id(image_id: str) -> str:
    """Reduce a COCO file name to its number, and any other file name to the name without extension."""
    return coco_number(image_id) or without_ending(image_id)


def hash_images(image_ids: Iterable[str]) -> np.ndarray:
    """Hashes (B,) uint64 of images, in the given order."""
    return np.fromiter((hash_of_id(encode_id(canonical_id(image))) for image in image_ids), dtype=np.uint64)


def write_trained_on(folder: Path, image_ids: Iterable[str], earlier: np.ndarray) -> None:
    """Write which images a run is trained on.

    Args:
        folder: the run's folder.
        image_ids: the run's own images.
        earlier: hashes of the images that its initial checkpoint was trained on.

    """
    copy_trained_on(folder, np.union1d(hash_images(image_ids), earlier))


def copy_trained_on(folder: Path, hashes: np.ndarray) -> None:
    """Write hashes that are already sorted."""
    with atomic_path(folder / FILE) as temporary:
        temporary.write_bytes(_as_file(hashes))


def _as_file(hashes: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, hashes, allow_pickle=False)
    return content.getvalue()


def read_trained_on(folder: Path) -> np.ndarray:
    """Read the hashes of a run or an export.

    Raises:
        UserError: the file is missing or damaged.

    """
    content = read_bytes(folder / FILE)
    header = len(_as_file(NOTHING))
    if len(content) >= header and len(content) % NOTHING.itemsize == 0:
        hashes = np.frombuffer(content, NOTHING.dtype, offset=header)
        if _as_file(hashes) == content:
            return hashes
    raise UserError(f"{folder / FILE} is damaged: it is not a list of hashes; {RESTORE}")


def trained_images(image_ids: Sequence[str], hashes: np.ndarray) -> list[str]:
    """Return the images in `image_ids` that were trained on, each once; `hashes` (I,) are sorted."""
    asked = hash_images(image_ids)
    known = np.searchsorted(hashes, asked, side="right") > np.searchsorted(hashes, asked)
    return list(dict.fromkeys(image for image, trained in zip(image_ids, known, strict=True) if trained))
