"""Runs images through a detector into a region store: `dimvl extract`, and the demo's extraction.

Threads decode images ahead (decoders release Python's lock), so that the detector does not wait. Batches contain the
readable images in their order, and a shard ends where a batch ends (unless one batch fills more than a shard). So
neither threads nor interruptions change the batches, nor a bit of the store.
"""

import logging
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dimvl.callbacks import Progress
from dimvl.errors import UserError
from dimvl.regions.detectors.base import RegionDetector
from dimvl.regions.detectors.given_boxes import GivenBoxes
from dimvl.regions.images import load_image_in_thread, quiet_decoders
from dimvl.regions.records import Regions
from dimvl.regions.store.writer import RegionStoreWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """The result of an extraction.

    Attributes:
        done: images whose regions were written.
        already: images that were in the store before.
        skipped: images that could not be read or processed, each with the reason.

    """

    done: int = 0
    already: int = 0
    skipped: list[tuple[Path, str]] = field(default_factory=list)


class _Loaded(NamedTuple):
    image_id: str
    path: Path
    width: int
    height: int
    array: np.ndarray
    boxes: np.ndarray | None


def extract(
    images: Collection[tuple[str, Path]],
    detector: RegionDetector,
    writer: RegionStoreWriter,
    *,
    batch_size: int = 16,
    workers: int = 1,
    progress: Progress | None = None,
    boxes: GivenBoxes | Mapping[str, np.ndarray] | None = None,
) -> ExtractReport:
    """Write the regions of images that the store does not have yet.

    Images that cannot be read, or on which the detector fails, are logged and skipped. It is logged if the detector
    knows nothing in most images.

    Args:
        images: image ids and files.
        detector: finds the regions.
        writer: an open store.
        batch_size: images per forward pass.
        workers: threads that decode images ahead.
        progress: called with the images processed and in total; those in the store count as processed.
        boxes: boxes by image id, as fractions, to be described in place of the detector's own.

    Raises:
        UserError: the store cannot be written, its disk or the device's memory is too small, or the detector returns
            values that are not finite.

    """
    given = boxes if boxes is None or isinstance(boxes, GivenBoxes) else GivenBoxes(boxes=boxes)
    todo = [(image_id, path) for image_id, path in images if image_id not in writer]
    already, done, unknown, pending = len(images) - len(todo), 0, 0, 0
    skipped: list[tuple[Path, str]] = []
    if progress is not None:
        progress(already, len(images))
    with quiet_decoders():
        for processed, regions in detect_files(todo, detector, skipped, batch_size, workers, given):
            if regions and not done:
                writer.check_space(len(todo), regions)
            pending = _write(regions, writer, pending)
            done += len(regions)
            unknown += sum(not (found.class_ids >= 0).any() for found in regions)
            if progress is not None:
                progress(already + processed, len(images))
    if unknown * 2 > done:
        log.warning(
            "%s found no object of its %d classes in %d of %d images; check that it is made for such images",
            *(writer.manifest.extractor.name, len(writer.manifest.extractor.classes), unknown, done),
        )
    return ExtractReport(done=done, already=already, skipped=skipped)


def detect_files(
    images: Sequence[tuple[str, Path]],
    detector: RegionDetector,
    skipped: list[tuple[Path, str]],
    batch_size: int,
    workers: int,
    given: GivenBoxes | None = None,
) -> Iterator[tuple[int, list[Regions]]]:
    """Find the regions of images, batch by batch, in their order; call it within `quiet_decoders`.

    The arguments are those of `extract`; `skipped` receives each image that cannot be read or processed, with the
    reason.

    Yields:
        After each image, the number of processed images, and the regions of the batch that it completes, if any.

    """
    batch: list[_Loaded] = []
    for number, (path, loaded) in enumerate(_loaded(images, detector, given, workers, batch_size), start=1):
        regions: list[Regions] = []
        if isinstance(loaded, UserError):
            _skip(path, str(loaded), skipped)
        else:
            batch.append(loaded)
        if len(batch) == batch_size or (batch and number == len(images)):
            regions, batch = _regions(batch, detector, given, skipped), []
        yield number - len(batch), regions


def _write(batch: list[Regions], writer: RegionStoreWriter, pending: int) -> int:
    """Write a batch into one shard; takes and returns the bytes of the batches in the current shard."""
    # At least the bytes that the writer counts: it stores all arrays but the features as float32.
    size = sum(regions.features.nbytes for regions in batch)
    size += 4 * sum(array.size for regions in batch for name, array in regions.arrays.items() if name != "features")
    if pending and pending + size >= writer.shard_bytes:
        writer.flush()
        pending = 0
    for regions in batch:
        writer.add(regions)
    return pending + size


def _loaded(
    images: Sequence[tuple[str, Path]], detector: RegionDetector, given: GivenBoxes | None, workers: int, ahead: int
) -> Iterator[tuple[Path, _Loaded | UserError]]:
    """Read images in threads, in order; at most `ahead` and one per thread wait to be processed."""

    def load(image_id: str, path: Path) -> _Loaded | UserError:
        try:
            image = load_image_in_thread(path)
            boxes = None if given is None else given.of(image_id, *image.size)
        except UserError as error:
            return error
        try:
            return _Loaded(image_id, path, *image.size, detector.prepare(image), boxes)
        except (ValueError, RuntimeError, OverflowError, MemoryError, ZeroDivisionError) as error:
            return UserError(f"image {path} of {image.width} x {image.height} pixels cannot be scaled ({error})")

    waiting: deque[tuple[Path, Future[_Loaded | UserError]]] = deque()
    pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="image")
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
    batch: Sequence[_Loaded], detector: RegionDetector, given: GivenBoxes | None, skipped: list[tuple[Path, str]]
) -> list[Regions]:
    """Process a batch; if that fails, process each image alone and skip those on which the detector fails."""
    boxes = None if given is None else [image.boxes for image in batch if image.boxes is not None]
    try:
        found = detector.detect_prepared([image.array for image in batch], boxes)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the device's memory is too small for {len(batch)} images at once ({str(error).splitlines()[0]}); "
            "give a smaller batch size or longest side"
        ) from None
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        if len(batch) == 1:
            _skip(batch[0].path, f"image {batch[0].path}: the detector fails on it ({error})", skipped)
            return []
        return [regions for image in batch for regions in _regions([image], detector, given, skipped)]
    results = []
    for image, seen in zip(batch, found, strict=True):
        named = seen if given is None else given.named(image.image_id, seen)
        results.append(Regions(image_id=image.image_id, width=image.width, height=image.height, **named.arrays))
    return results


def _skip(path: Path, reason: str, skipped: list[tuple[Path, str]]) -> None:
    log.warning("skipped: %s", reason)
    skipped.append((path, reason))
