"""Pictures through a detector into a region store: `dimvl extract`, and the demo's first reading of its pictures.

Pictures are decoded ahead in threads (decoders work outside Python's lock), so that the detector does not wait. Batches
are cut from the pictures that can be read, in their order, and a shard ends where a batch ends (unless one batch fills
more than a shard); so neither the threads nor an interruption change what a batch is, and with it not a bit of what is
stored.
"""

import logging
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from dimvl.callbacks import Progress
from dimvl.errors import UserError
from dimvl.files import read_json
from dimvl.regions.detectors.given_boxes import GivenBoxes
from dimvl.regions.images import load_image_in_thread, quiet_decoders
from dimvl.regions.records import Detections, Regions
from dimvl.regions.store.format import check_space
from dimvl.regions.store.writer import RegionStoreWriter

log = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class Detector(Protocol):
    """Whatever turns pictures into regions; `dimvl.regions.detectors.base.RegionDetector` says more."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Turn an upright RGB picture into what `detect_prepared` takes."""

    def detect_prepared(
        self, arrays: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None
    ) -> Sequence[Detections]:
        """Regions of prepared pictures; with `boxes`, of those boxes (R, 4) of each picture, as fractions."""


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What an extraction did.

    Attributes:
        done: pictures whose regions were written.
        already: pictures that the store had.
        skipped: pictures that could not be read or looked at, each with the reason.

    """

    done: int = 0
    already: int = 0
    skipped: list[tuple[Path, str]] = field(default_factory=list)


class _Picture(NamedTuple):
    image_id: str
    path: Path
    width: int
    height: int
    array: np.ndarray
    boxes: np.ndarray | None


def extract(
    images: Collection[tuple[str, Path]],
    detector: Detector,
    writer: RegionStoreWriter,
    *,
    batch_size: int = 16,
    workers: int = 1,
    progress: Progress | None = None,
    boxes: GivenBoxes | Mapping[str, np.ndarray] | None = None,
) -> ExtractReport:
    """Write the regions of pictures that the store does not have yet.

    A picture that cannot be read, or on which the detector fails, is logged, counted and left out.

    Args:
        images: image ids and picture files.
        detector: see `Detector`.
        writer: an open store.
        batch_size: pictures that the detector sees at once.
        workers: threads that decode pictures ahead.
        progress: called with pictures dealt with and in total; those that the store has are dealt with at once.
        boxes: boxes by image id, fractions, to be used in place of the detector's own.

    Raises:
        UserError: the store cannot be written, there is no room for it, the device's memory is too small for the
            batch, or the detector gives values that are not finite.

    """
    given = boxes if boxes is None or isinstance(boxes, GivenBoxes) else GivenBoxes(boxes=boxes)
    todo = [(image_id, path) for image_id, path in images if image_id not in writer]
    already, done = len(images) - len(todo), 0
    skipped: list[tuple[Path, str]] = []
    output = _Output(writer, len(todo))
    if progress is not None:
        progress(already, len(images))
    with quiet_decoders():
        for dealt_with, regions in detect_files(todo, detector, skipped, batch_size, workers, given):
            output.write(regions)
            done += len(regions)
            if progress is not None:
                progress(already + dealt_with, len(images))
    return ExtractReport(done=done, already=already, skipped=skipped)


def detect_files(
    images: Sequence[tuple[str, Path]],
    detector: Detector,
    skipped: list[tuple[Path, str]],
    batch_size: int,
    workers: int,
    given: GivenBoxes | None = None,
) -> Iterator[tuple[int, list[Regions]]]:
    """Look at pictures, a batch at a time, in their order; to be called within `quiet_decoders`.

    A picture that cannot be read, or on which the detector fails, is logged and left out.

    Args:
        images: image ids and picture files.
        detector: see `Detector`.
        skipped: grows by each picture that is left out, with the reason.
        batch_size: pictures that the detector sees at once.
        workers: threads that decode pictures ahead.
        given: boxes to be used in place of the detector's own.

    Yields:
        After each picture, how many are dealt with and the regions of the batch that it ends; none if it ends none.

    """
    batch: list[_Picture] = []
    for number, (path, loaded) in enumerate(_loaded(images, detector, given, workers, batch_size), start=1):
        regions: list[Regions] = []
        if isinstance(loaded, UserError):
            _skip(path, str(loaded), skipped)
        else:
            batch.append(loaded)
        if len(batch) == batch_size or (batch and number == len(images)):
            regions, batch = _regions(batch, detector, given, skipped), []
        yield number - len(batch), regions


def images_of_folder(folder: Path) -> list[tuple[str, Path]]:
    """Pictures of a folder, as `pictures_of_folder`; the id of a picture is its name without the suffix.

    Raises:
        UserError: there is no such folder, no picture in it, or two pictures would have one id.

    """
    return _without_doubles([(file.stem, file) for file in pictures_of_folder(folder)])


def pictures_of_folder(folder: Path) -> list[Path]:
    """Pictures of a folder (not of those in it), sorted by name.

    Raises:
        UserError: there is no such folder, or no picture in it.

    """
    if not folder.is_dir():
        raise UserError(f"picture folder {folder} does not exist or is no folder; check the path")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise UserError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}); check the path")
    return files


def images_of_coco(annotations: Path, image_folder: Path) -> list[tuple[str, Path]]:
    """Pictures that a COCO annotation file lists; the id of a picture is its integer id as text.

    Raises:
        UserError: the file is missing, lists no images, or one twice.

    """
    value = read_json(annotations)
    try:
        listed = [(str(int(image["id"])), image_folder / image["file_name"]) for image in value["images"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(
            f'{annotations} has no list "images" with an integer "id" and a "file_name" each; '
            "give a COCO annotation file"
        ) from None
    if not listed:
        raise UserError(f"{annotations} lists no images; give another file")
    return _without_doubles(listed)


class _Output:
    """Writes batches, each into one shard, after a look at the space that all of them will take."""

    def __init__(self, writer: RegionStoreWriter, images: int) -> None:
        self.writer = writer
        self.images = images
        self.waiting = 0
        self.checked = False

    def write(self, batch: list[Regions]) -> None:
        if not batch:
            return
        if not self.checked:
            check_space(
                self.writer.path,
                self.images,
                sum(map(len, batch)) / len(batch),
                batch[0].features.shape[1],
                feature_dtype=self.writer.manifest.feature_dtype,
                class_columns=batch[0].class_ids.shape[1],
                attribute_columns=batch[0].attribute_ids.shape[1],
            )
            self.checked = True
        # At least what the writer counts: it keeps all but the features as float32.
        size = sum(regions.features.nbytes for regions in batch)
        size += 4 * sum(array.size for regions in batch for name, array in regions.arrays.items() if name != "features")
        if self.waiting and self.waiting + size >= self.writer.shard_bytes:
            self.writer.flush()
            self.waiting = 0
        for regions in batch:
            self.writer.add(regions)
        self.waiting += size


def _loaded(
    images: Sequence[tuple[str, Path]], detector: Detector, given: GivenBoxes | None, workers: int, ahead: int
) -> Iterator[tuple[Path, "_Picture | UserError"]]:
    """Read pictures in threads, at most `ahead` and one for each thread before they are asked for; in order."""

    def load(image_id: str, path: Path) -> "_Picture | UserError":
        try:
            picture = load_image_in_thread(path)
            boxes = None if given is None else given.of(image_id, *picture.size)
        except UserError as error:
            return error
        try:
            return _Picture(image_id, path, *picture.size, detector.prepare(picture), boxes)
        except (ValueError, RuntimeError, OverflowError, MemoryError, ZeroDivisionError) as error:
            return UserError(f"picture {path} of {picture.width} x {picture.height} pixels cannot be scaled ({error})")

    waiting: deque[tuple[Path, Future[_Picture | UserError]]] = deque()
    pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="picture")
    try:
        for image_id, path in images:
            waiting.append((path, pool.submit(load, image_id, path)))
            if len(waiting) > ahead + workers:
                path, future = waiting.popleft()
                yield path, future.result()
        while waiting:
            path, future = waiting.popleft()
            yield path, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _regions(
    batch: Sequence[_Picture], detector: Detector, given: GivenBoxes | None, skipped: list[tuple[Path, str]]
) -> list[Regions]:
    """Detect in a batch; where that fails, in each picture alone, leaving out those that it fails on."""
    boxes = None if given is None else [picture.boxes for picture in batch if picture.boxes is not None]
    try:
        found = detector.detect_prepared([picture.array for picture in batch], boxes)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the device's memory is too small for {len(batch)} pictures at once ({str(error).splitlines()[0]}); "
            "give a smaller batch size or longest side"
        ) from None
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        if len(batch) == 1:
            _skip(batch[0].path, f"picture {batch[0].path}: the detector fails on it ({error})", skipped)
            return []
        return [regions for picture in batch for regions in _regions([picture], detector, given, skipped)]
    results = []
    for picture, seen in zip(batch, found, strict=True):
        named = seen if given is None else given.named(picture.image_id, seen)
        results.append(Regions(image_id=picture.image_id, width=picture.width, height=picture.height, **named.arrays))
    return results


def _skip(path: Path, reason: str, skipped: list[tuple[Path, str]]) -> None:
    log.warning("skipped: %s", reason)
    skipped.append((path, reason))


def _without_doubles(images: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    seen: dict[str, Path] = {}
    for image_id, path in images:
        if image_id in seen:
            raise UserError(f"pictures {seen[image_id]} and {path} have the same id {image_id!r}; rename one")
        seen[image_id] = path
    return images
