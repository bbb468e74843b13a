"""The formats of a region store's files: manifest, index records, hashes of ids, checksums, int8 features."""

import hashlib
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from dimvl.errors import UserError
from dimvl.files import FileChecksum, Sha256, Strict, check_values, read_sealed, write_sealed
from dimvl.regions.records import Extractor

FeatureDtype = Literal["float16", "int8"]

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
        ("rows_checksum", "<u4"),  # CRC-32 of the image's rows as stored, array by array in the layout's order
        ("checksum", "<u4"),  # CRC-32 of this record up to here
    ]
)


Count = Annotated[int, Field(ge=0, lt=2**48)]
Columns = Annotated[int, Field(ge=0, lt=2**20)]


class ShardEntry(Strict):
    """One shard in the manifest."""

    file: str = Field(pattern=r"^shard-\d{5,}\.safetensors$")
    num_images: Count
    num_regions: Count
    sha256: Sha256


class Manifest(Strict):
    """The content of `manifest.json`.

    `index`, `ids` and `lookup` are the committed parts of growing files; `lookup` exists once a writer has finished.
    `class_columns` (K) and `attribute_columns` (A) are 0 until the first image is written.
    """

    format: Literal["dimvl-regions"] = "dimvl-regions"
    version: Literal[2] = 2
    extractor: Extractor
    feature_dtype: FeatureDtype
    class_columns: Columns
    attribute_columns: Columns
    num_images: Count
    num_regions: Count
    index: FileChecksum
    ids: FileChecksum
    lookup: FileChecksum | None
    shards: tuple[ShardEntry, ...]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Counts must agree with each other, so that the sizes of the files show whether they are true."""
        if not 1 <= self.extractor.feature_width < 2**20:
            raise ValueError(f"a feature width of {self.extractor.feature_width}")
        totals = {
            "num_images": sum(shard.num_images for shard in self.shards),
            "num_regions": sum(shard.num_regions for shard in self.shards),
        }
        wrong = [name for name, total in totals.items() if getattr(self, name) != total]
        if self.index.num_bytes != self.num_images * INDEX_DTYPE.itemsize:
            wrong.append("index")
        if self.lookup is not None and self.lookup.num_bytes != self.num_images * 16:
            wrong.append("lookup")
        if wrong:
            raise ValueError(f"{wrong[0]} does not agree with the other counts")
        return self

    @property
    def layout(self) -> dict[str, tuple[str, int]]:
        """Name, dtype and columns of the two arrays of a shard."""
        columns = sum(columns for _, columns in self.details.values())
        dtype = "<f2" if self.feature_dtype == "float16" else "|i1"
        return {"features": (dtype, self.extractor.feature_width), "details": ("<f4", columns)}

    @property
    def details(self) -> dict[str, tuple[str, int]]:
        """The columns of `details`, in order: name, dtype after reading, and number of columns.

        float32 holds all of them exactly, and one array is read in half the time of several.
        """
        scales: dict[str, tuple[str, int]] = {"feature_scales": ("<f4", 1)} if self.feature_dtype == "int8" else {}
        return {
            **scales,
            "boxes": ("<f4", 4),
            "class_ids": ("<i2", self.class_columns),
            "class_scores": ("<f2", self.class_columns),
            "attribute_ids": ("<i2", self.attribute_columns),
            "attribute_scores": ("<f2", self.attribute_columns),
        }


def first_difference(one: Extractor, other: Extractor) -> str | None:
    """Describe the first difference of two extractors, with both values; None if they are equal."""
    facts: list[dict[str, object]] = [
        {name: value for name, value in vars(extractor).items() if name not in ("parameters", "recipe")}
        | {f"parameters.{name}": value for name, value in extractor.parameters.items()}
        for extractor in (one, other)
    ]
    for name in facts[0] | facts[1]:
        values = [repr(extractor.get(name)) for extractor in facts]
        if values[0] != values[1]:  # a vocabulary may have thousands of names
            return f"{name} is " + " and ".join(text if len(text) <= 100 else f"{text[:100]}..." for text in values)
    return None


def quantise(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (R, F) float32 to int8 (R, F) and one float32 scale per row (R, 1): its largest value over 127.

    The error of a value is at most half a scale, `largest / 254`.
    """
    scales = (np.abs(features).max(axis=1, keepdims=True, initial=0) / np.float32(127)).astype(np.float32)
    divisors = np.where(scales > 0, scales, np.float32(1))
    return np.clip(np.rint(features / divisors), -127, 127).astype(np.int8), scales


def encode_id(image_id: str) -> bytes:
    """UTF-8 of an image id, or the bytes of a file name that is not UTF-8; a `UserError` if it is not valid text."""
    if not isinstance(image_id, str):
        raise UserError(f"image id {image_id!r} is not a string; write a number as its digits")
    try:
        return image_id.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise UserError(f"image id {image_id!r} has half a surrogate pair; replace it with a character") from None


def decode_id(encoded: bytes) -> str:
    """Undo `encode_id`."""
    return encoded.decode("utf-8", "surrogateescape")


def number_of(image_id: str) -> str | None:
    """The number at the end of an id, as in COCO's annotations: `71` for `COCO_train2014_000000000071`."""
    found = re.search(r"[0-9]{1,18}$", image_id)
    return str(int(found[0])) if found else None


def differ_in_prefix(one: str, other: str) -> bool:
    """Whether two ids are one number, and one of them nothing else: `71` and `COCO_train2014_000000000071`."""
    digits = any(text.isascii() and text.isdecimal() for text in (one, other))
    return one != other and digits and number_of(one) == number_of(other)


def hash_of_id(encoded: bytes) -> int:
    """64-bit hash of an encoded image id, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def checksum_of_rows(arrays: Iterable[Any]) -> int:
    """CRC-32 of one image's rows, array by array; it detects every flipped bit."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(array, checksum)
    return checksum


def checksum_of_record(record: np.void) -> int:
    """CRC-32 of an index record without its own checksum."""
    return zlib.crc32(record.tobytes()[: -INDEX_DTYPE["checksum"].itemsize])


def make_lookup(index: np.ndarray) -> np.ndarray:
    """Lookup (2, images) uint64 of an index: its hashes in rising order, and their positions."""
    order = np.argsort(index["hash"], kind="stable")
    return np.stack([index["hash"][order], order.astype(np.uint64)])


def index_problem(index: np.ndarray, manifest: Manifest) -> str | None:
    """Say what an index (images,) describes that does not exist; None if it agrees with the manifest."""
    if not len(index):
        return None
    if index["shard"].max() >= len(manifest.shards):
        return "a shard that does not exist"
    rows = np.array([shard.num_regions for shard in manifest.shards], dtype=np.uint64)[index["shard"]]
    if (index["num_regions"] > rows).any() or (index["first_row"] > rows - index["num_regions"]).any():
        return "regions that do not exist"
    num_bytes = np.uint64(manifest.ids.num_bytes)
    if (index["id_length"] > num_bytes).any() or (index["id_start"] > num_bytes - index["id_length"]).any():
        return "ids that do not exist"
    return None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of the store in folder `path`, whole or not at all."""
    content = manifest.model_dump(mode="json")
    for name in ("parts", "recipe"):  # a detector alone is described as in versions before 0.2, whose runs compare it
        if not content["extractor"][name]:
            del content["extractor"][name]
    write_sealed(path / "manifest.json", content)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a store's folder; a `UserError` if it is missing, damaged or of another version."""
    file = path / "manifest.json"
    if not file.is_file():
        raise UserError(f"{path} is not a region store (it has no manifest.json); make one with `dimvl extract`")
    remedy = "restore it from a copy, or extract the store again with this version of dimvl"
    return check_values(read_sealed(file, remedy), Manifest, file, remedy)


def feature_bytes(feature_width: int, feature_dtype: FeatureDtype) -> int:
    """Bytes of the features of one region, with the float32 scale of int8."""
    return feature_width + 4 if feature_dtype == "int8" else 2 * feature_width


def estimated_bytes(
    images: int,
    regions_per_image: float,
    feature_width: int,
    *,
    feature_dtype: FeatureDtype = "float16",
    class_columns: int = 1,
    attribute_columns: int = 0,
) -> int:
    """Size on disk of a store before it is written; with the maximum of regions per image, an upper bound."""
    row_bytes = feature_bytes(feature_width, feature_dtype) + 16 + 8 * (class_columns + attribute_columns)
    per_image = INDEX_DTYPE.itemsize + 16 + 32  # index, lookup, and the id with its share of the manifest
    return int(images * (regions_per_image * row_bytes + per_image))
