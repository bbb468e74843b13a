"""Arrays that are computed once for all processes and later runs, and kept in a file."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dimvl.errors import UserError
from dimvl.files.checksums import read_sealed_as, sha256, write_sealed
from dimvl.files.reading import Strict
from dimvl.files.writing import atomic_path, locked

logger = logging.getLogger(__name__)


class Sealed(Strict):
    """The content of the file beside the array: its checksum."""

    sha256: str


def kept_array(folder: Path, name: str, parts: Sequence[object], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Map the file of an array; compute and write it first if it is not there or is damaged.

    Args:
        folder: of the file.
        name: what it begins with.
        parts: all that the array depends on; the file is named after them.
        compute: gives the array. Other processes wait for it. If its file cannot be written, each keeps it in memory.

    """
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:20]
    file = folder / f"{name}-{digest}.npy"
    with locked(folder):
        if not _is_sound(file):
            array = compute()
            try:
                with atomic_path(file) as temporary:
                    with temporary.open("wb") as opened:
                        np.save(opened, array, allow_pickle=False)
                    write_sealed(file.with_suffix(".json"), {"sha256": sha256(temporary)})
            except UserError as error:
                logger.warning("%s; each process computes and keeps its own %s", error, name)
                return array
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def _is_sound(file: Path) -> bool:
    try:
        return file.exists() and read_sealed_as(file.with_suffix(".json"), Sealed, "").sha256 == sha256(file)
    except UserError:
        return False
