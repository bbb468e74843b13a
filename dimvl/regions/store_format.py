"""What the files of a region store hold: the manifest, the index records, and how an id is found.

`store.py` describes the folder and reads it, `store_writer.py` writes it.
"""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dimvl.errors import UserError
from dimvl.files import read_json
from dimvl.regions.records import Extractor

INDEX_DTYPE = np.dtype(
    [
        ("hash", "<u8"),  # of the id, see `hash_of_id`
        ("first_row", "<u8"),  # within the shard
        ("id_start", "<u8"),  # bytes into ids.bin
        ("id_length", "<u8"),
        ("shard", "<u4"),
        ("num_regions", "<u4"),
        ("width", "<u4"),  # pixels
        ("height", "<u4"),
    ]
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardEntry(_Strict):
    """One shard in the manifest."""

    file: str = Field(pattern=r"^shard-\d{5,}\.safetensors$")
    num_images: int = Field(ge=0)
    num_regions: int = Field(ge=0)
    sha256: str


class FileEntry(_Strict):
    """A file that grows, in the manifest: its committed length and the checksum of so many bytes."""

    num_bytes: int = Field(ge=0)
    sha256: str


class Manifest(_Strict):
    """What `manifest.json` says.

    `class_columns` (K) and `attribute_columns` (A) are 0 until the first image is written.
    """

    format: Literal["dimvl-regions"] = "dimvl-regions"
    version: Literal[1] = 1
    extractor: Extractor
    feature_dtype: Literal["float16"] = "float16"
    class_columns: int = Field(ge=0)
    attribute_columns: int = Field(ge=0)
    num_images: int = Field(ge=0)
    num_regions: int = Field(ge=0)
    index: FileEntry
    ids: FileEntry
    shards: tuple[ShardEntry, ...]

    @property
    def layout(self) -> dict[str, tuple[str, int]]:
        """Name, dtype and columns of the arrays of a shard."""
        return {
            "features": ("<f2", self.extractor.feature_width),
            "boxes": ("<f4", 4),
            "class_ids": ("<i2", self.class_columns),
            "class_scores": ("<f2", self.class_columns),
            "attribute_ids": ("<i2", self.attribute_columns),
            "attribute_scores": ("<f2", self.attribute_columns),
        }


def encode_id(image_id: str) -> bytes:
    """UTF-8 of an image id; a file name that is not UTF-8 keeps its own bytes, as Python's file names do."""
    return image_id.encode("utf-8", "surrogateescape")


def decode_id(encoded: bytes) -> str:
    """Undo `encode_id`."""
    return encoded.decode("utf-8", "surrogateescape")


def hash_of_id(encoded: bytes) -> int:
    """64-bit hash of an encoded image id, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def make_lookup(index: np.ndarray) -> np.ndarray:
    """Lookup (2, images) uint64 of an index: its hashes in rising order, and their positions."""
    order = np.argsort(index["hash"], kind="stable")
    return np.stack([index["hash"][order], order.astype(np.uint64)])


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the store in folder `path`.

    Raises:
        UserError: there is none, or it is not one this version understands.

    """
    file = path / "manifest.json"
    if not file.is_file():
        raise UserError(f"{path} is not a region store (it has no manifest.json); make one with `dimvl extract`")
    value = read_json(file)
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(
            f"{file} is not the manifest of a region store of version 1 ({where}: {first['msg']}); "
            "restore it, or extract the store again with this version of dimvl"
        ) from None
    in_shards = (sum(entry.num_images for entry in manifest.shards), sum(e.num_regions for e in manifest.shards))
    if in_shards != (manifest.num_images, manifest.num_regions):
        raise UserError(f"{file} is damaged: its counts disagree with its shards; restore it or extract again")
    return manifest
