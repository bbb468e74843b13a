"""Pictures through a detector into a region store: `dimvl extract`, and the demo's first reading of its pictures."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from dimvl.errors import UserError
from dimvl.files import read_json
from dimvl.regions.images import load_image
from dimvl.regions.records import Regions
from dimvl.regions.store_writer import RegionStoreWriter

log = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class Detections(Protocol):
    """What a detector saw in one picture: the arrays of `Regions`."""

    @property
    def boxes(self) -> np.ndarray:
        """(R, 4) float32 fractions."""

    @property
    def features(self) -> np.ndarray:
        """(R, F) float16."""

    @property
    def class_ids(self) -> np.ndarray:
        """(R, K) int16."""

    @property
    def class_scores(self) -> np.ndarray:
        """(R, K) float16."""

    @property
    def attribute_ids(self) -> np.ndarray:
        """(R, A) int16."""

    @property
    def attribute_scores(self) -> np.ndarray:
        """(R, A) float16."""


class Detector(Protocol):
    """Whatever turns pictures into regions."""

    def detect(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray] | None = None) -> Sequence[Detections]:
        """Regions of upright RGB pictures; with `boxes`, of those boxes (R, 4) of each picture, as fractions."""


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What an extraction did.

    Attributes:
        done: pictures whose regions were written.
        already: pictures that the store had.
        skipped: pictures that could not be read, each with the reason.

    """

    done: int = 0
    already: int = 0
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def extract(
    images: Collection[tuple[str, Path]],
    detector: Detector,
    writer: RegionStoreWriter,
    *,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
    boxes: Mapping[str, np.ndarray] | None = None,
) -> ExtractReport:
    """Write the regions of pictures that the store does not have yet.

    A picture that cannot be read is logged, counted and left out.

    Args:
        images: image ids and picture files.
        detector: see `Detector`.
        writer: an open store.
        batch_size: pictures that the detector sees at once.
        progress: called with pictures dealt with and in total.
        boxes: boxes (R, 4) by image id, fractions, to be used in place of the detector's own.

    Raises:
        UserError: the store cannot be written or the detector gives values that are not finite.

    """
    done, already = 0, 0
    skipped: list[tuple[Path, str]] = []
    batch: list[tuple[str, Image.Image]] = []
    for number, (image_id, path) in enumerate(images, start=1):
        if image_id in writer:
            already += 1
        else:
            try:
                picture = load_image(path)
                if boxes is not None and image_id not in boxes:
                    raise UserError(f"no boxes are given for image {image_id!r}; add them or leave the image out")
                batch.append((image_id, picture))
            except UserError as error:
                log.warning("skipped: %s", error)
                skipped.append((path, str(error)))
        if len(batch) == batch_size or (batch and number == len(images)):
            _write(batch, detector, writer, boxes)
            done += len(batch)
            batch = []
        if progress is not None:
            progress(number - len(batch), len(images))
    return ExtractReport(done=done, already=already, skipped=skipped)


def images_of_folder(folder: Path) -> list[tuple[str, Path]]:
    """Pictures of a folder (not of those in it), sorted by name; the id of a picture is its name without the suffix.

    Raises:
        UserError: there is no such folder, no picture in it, or two pictures would have one id.

    """
    if not folder.is_dir():
        raise UserError(f"picture folder {folder} does not exist; check the path")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise UserError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}); check the path")
    return _without_doubles([(file.stem, file) for file in files])


def images_of_coco(annotations: Path, image_folder: Path) -> list[tuple[str, Path]]:
    """Pictures that a COCO annotation file lists; the id of a picture is its integer id as text.

    Raises:
        UserError: the file is missing, lists no images, or one twice.

    """
    value = read_json(annotations)
    try:
        listed = [(str(int(image["id"])), image_folder / image["file_name"]) for image in value["images"]]
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f'{annotations} has no list "images" with an integer "id" and a "file_name" each; '
            "give a COCO annotation file"
        ) from None
    if not listed:
        raise UserError(f"{annotations} lists no images; give another file")
    return _without_doubles(listed)


def _write(
    batch: list[tuple[str, Image.Image]],
    detector: Detector,
    writer: RegionStoreWriter,
    boxes: Mapping[str, np.ndarray] | None,
) -> None:
    pictures = [picture for _, picture in batch]
    given = None if boxes is None else [boxes[image_id] for image_id, _ in batch]
    for (image_id, picture), found in zip(batch, detector.detect(pictures, boxes=given), strict=True):
        writer.add(
            Regions(
                image_id=image_id,
                width=picture.width,
                height=picture.height,
                boxes=found.boxes,
                features=found.features,
                class_ids=found.class_ids,
                class_scores=found.class_scores,
                attribute_ids=found.attribute_ids,
                attribute_scores=found.attribute_scores,
            )
        )


def _without_doubles(images: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    seen: dict[str, Path] = {}
    for image_id, path in images:
        if image_id in seen:
            raise UserError(f"pictures {seen[image_id]} and {path} have the same id {image_id!r}; rename one")
        seen[image_id] = path
    return images
