"""The files of an index of images.

    index.json               what the index contains, with a checksum of itself; replacing this file commits a change
    part-00000-16384.safetensors   number and images of a part: `ARRAYS`

N images of a part, W width. A part holds its embeddings twice: in float32, by which images are ranked, and as int8
codes with a scale per row, which a search reads first since they have a quarter of the bytes. `errors` is the length of
what the codes leave out, by which the search knows whom to compare in float32.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dimvl.errors import UserError
from dimvl.files import FileChecksum, Sha256, Strict, check_values, read_sealed, sha256, write_sealed
from dimvl.files.weights import load_weights
from dimvl.regions.store.format import decode_id, encode_id
from dimvl.trained_model import TrainedModel, model_fingerprint

MANIFEST = "index.json"
PART_IMAGES = 16_384
"""Images of a whole part: 21 MB at width 256."""
LARGEST_CODE = 127
UNIT = 1e-3
"""By how much the length of an embedding may differ from 1."""
REMEDY = "rebuild the index with `dimvl index`, in another folder"


class PartEntry(Strict):
    """A part in the manifest."""

    file: str = Field(pattern=r"^part-\d{5,}-\d+\.safetensors$")
    num_images: Annotated[int, Field(ge=1, le=PART_IMAGES)]
    content: FileChecksum


class Manifest(Strict):
    """The content of `index.json`.

    Attributes:
        model: fingerprint of the model, see `model_fingerprint`.
        model_name: folder of the model, for messages.
        store: folder of the region store, whose images the index has.
        width: W of the embeddings.

    """

    format: Literal["dimvl-index"] = "dimvl-index"
    version: Literal[1] = 1
    model: Sha256
    model_name: str
    store: str
    width: Annotated[int, Field(ge=1, le=2**16)]
    parts: tuple[PartEntry, ...]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return sum(part.num_images for part in self.parts)


class Part(NamedTuple):
    """N images.

    Attributes:
        ids: the ids of the images as UTF-8, end to end, uint8.
        id_ends: (N,) int64 where each id ends.
        checksums: (N,) int64 of the regions that were embedded, as the store has them.
        embeddings: (N, W) float32 of unit length.
        codes: (N, W) int8; a row times its scale is about the embedding.
        scales: (N,) float32.
        errors: (N,) float32 length of embedding minus scaled codes.

    """

    ids: Tensor
    id_ends: Tensor
    checksums: Tensor
    embeddings: Tensor
    codes: Tensor
    scales: Tensor
    errors: Tensor

    @classmethod
    def of(cls, image_ids: Sequence[str], checksums: Tensor, embeddings: Tensor) -> "Part":
        """Make a part of images with checksums (N,) and embeddings (N, W)."""
        encoded = [encode_id(image_id) for image_id in image_ids]
        ids = torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy())
        ends = torch.tensor([len(one) for one in encoded]).cumsum(0)
        return cls(ids, ends, checksums, embeddings, *quantise(embeddings))

    def image_id(self, place: int) -> str:
        """Id of an image."""
        start = int(self.id_ends[place - 1]) if place else 0
        return decode_id(bytes(self.ids[start : int(self.id_ends[place])].tolist()))

    def image_ids(self) -> list[str]:
        """Ids of all images."""
        ids, ends = self.ids.numpy().tobytes(), self.id_ends.tolist()
        return [decode_id(ids[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def quantise(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return int8 codes, scales and errors, as in `Part`, of rows (N, W)."""
    scales = rows.abs().amax(1).div(LARGEST_CODE).clamp(min=1e-30)
    codes = (rows / scales[:, None]).round().to(torch.int8)
    return codes, scales, (rows - codes * scales[:, None]).norm(dim=1)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an index; a `UserError` if it is missing, damaged or of another version."""
    file = folder / MANIFEST
    if not file.is_file():
        raise UserError(f"{folder} is not an index of images (it has no {MANIFEST}); make one with `dimvl index`")
    return check_values(read_sealed(file, REMEDY), Manifest, file, REMEDY)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all."""
    write_sealed(folder / MANIFEST, manifest.model_dump(mode="json"))


def check_model(folder: Path, manifest: Manifest, trained: TrainedModel) -> None:
    """Refuse a model that cannot search, or an index of another model; embeddings of two models cannot be compared.

    Raises:
        UserError: as said.

    """
    check_aligned(trained)
    if manifest.model != model_fingerprint(trained):
        raise UserError(
            f"{folder} was made by a different model ({manifest.model_name}) from {trained.weights.parent}; give the "
            "model that made it, or make an index with this model in another folder"
        )


def check_aligned(trained: TrainedModel) -> None:
    """Refuse a model that was not trained to align images and texts."""
    if not trained.processor.aligns:
        raise UserError(
            f"the model {trained.weights.parent} cannot search: it was not trained to align images and texts; give one "
            "that was, by objectives.shares.contrastive in pretraining or by the task retrieve"
        )


def check_parts(folder: Path, manifest: Manifest) -> None:
    """Compare all parts with their checksums.

    Raises:
        UserError: one is missing or damaged.

    """
    for part in manifest.parts:
        file = folder / part.file
        if not file.is_file() or file.stat().st_size != part.content.num_bytes or sha256(file) != part.content.sha256:
            raise UserError(f"{file} is missing or damaged: it does not match its checksum; {REMEDY}")


def read_part(folder: Path, manifest: Manifest, entry: PartEntry) -> Part:
    """Open a part by memory map.

    Raises:
        UserError: it is missing, or does not have the arrays that the manifest says.

    """
    file, count = folder / entry.file, entry.num_images
    arrays = load_weights(file, REMEDY)
    rows, wide = (count,), (count, manifest.width)
    forms = {"id_ends": (torch.int64, rows), "checksums": (torch.int64, rows), "embeddings": (torch.float32, wide)}
    forms |= {"codes": (torch.int8, wide), "scales": (torch.float32, rows), "errors": (torch.float32, rows)}
    forms |= {"ids": (torch.uint8, (len(arrays.get("ids", ())),))}
    if {name: (array.dtype, tuple(array.shape)) for name, array in arrays.items()} != forms:
        raise UserError(f"{file} is damaged or of another version; {REMEDY}")
    ends = arrays["id_ends"].numpy()
    if (np.diff(ends, prepend=0) < 0).any() or ends[-1] != len(arrays["ids"]):
        raise UserError(f"{file} is damaged: it describes ids that do not exist; {REMEDY}")
    part = Part(**arrays)
    if not ((part.scales > 0) & (part.errors >= 0) & (part.scales + part.errors).isfinite()).all():
        raise UserError(f"{file} is damaged: it has scales or errors that no codes have; {REMEDY}")
    return part
