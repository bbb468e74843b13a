"""Runs images through a detector into a region store: `dimvl extract`, and the demo's extraction.

Threads decode images ahead (decoders release Python's lock), so that the detector does not wait. Batches contain the
readable images in their order, and a shard ends where a batch ends (unless one batch fills more than a shard). So
neither threads nor interruptions change the batches, nor a bit of the store.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dimvl.callbacks import Progress
from dimvl.errors import UserError
from dimvl.regions.detectors.base import RegionExtractor
from dimvl.regions.detectors.given_boxes import GivenBoxes
from dimvl.regions.images import image_in_thread, quiet_decoders
from dimvl.regions.records import Regions
from dimvl.regions.remote import Remote
from dimvl.regions.sources.base import ImageSource, ListedImages, Packed
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
    skipped: list[tuple[object, str]] = field(default_factory=list)


Skip = Callable[[Any, str], None]
"""What to do with a source that cannot be read or processed, and the reason; what it raises ends the work."""


class _Loaded(NamedTuple):
    image_id: str
    source: object
    width: int
    height: int
    array: Any
    boxes: np.ndarray | None


def extract(
    images: ImageSource | Sequence[tuple[str, Path]],
    detector: RegionExtractor,
    writer: RegionStoreWriter,
    *,
    batch_size: int = 16,
    workers: int = 1,
    progress: Progress | None = None,
    boxes: GivenBoxes | Mapping[str, np.ndarray] | None = None,
) -> ExtractReport:
    """Write the regions of images that the store does not have yet.

    Images that cannot be read, or on which the detector fails, are logged and skipped. It is logged if the detector
    knows nothing in most images, or most have no given boxes. A grid has no classes, and nothing is missing then.

    Args:
        images: a source of images, or image ids and files.
        detector: finds the regions.
        writer: an open store.
        batch_size: images per forward pass.
        workers: threads that decode images ahead.
        progress: called with how much of the source is processed and its total, in its unit; images in the store count
            as processed.
        boxes: boxes by image id, as fractions, to be described in place of the detector's own.

    Raises:
        UserError: the store cannot be written, its disk or the device's memory is too small, or the detector returns
            values that are not finite.

    """
    given = boxes if boxes is None or isinstance(boxes, GivenBoxes) else GivenBoxes(boxes=boxes)
    todo = _Todo(images if isinstance(images, ImageSource) else ListedImages(images), writer, progress)
    done, unknown, pending = 0, 0, 0
    with quiet_decoders():
        for processed, regions in detect_images(todo, detector, todo.skip, batch_size, workers, given):
            if regions and not done:
                writer.check_space(todo.remaining(), regions, exact=todo.source.unit == "images")
            pending = _write(regions, writer, pending)
            done += len(regions)
            if given is None:
                unknown += sum(not (found.class_ids >= 0).any() for found in regions)
            else:
                unknown += sum(not len(given.boxes[found.image_id]) for found in regions)
            todo.processed(processed)
    todo.end()
    if unknown * 2 > done and given is not None:
        log.warning(
            "no box is given for %d of %d images, of which the only region is the whole image; check that the boxes "
            "belong to these images",
            *(unknown, done),
        )
    elif unknown * 2 > done and writer.manifest.extractor.classes:  # a grid has none
        log.warning(
            "%s found no object of its %d classes in %d of %d images; check that it is made for such images, or lower "
            "the threshold",
            *(writer.manifest.extractor.name, len(writer.manifest.extractor.classes), unknown, done),
        )
    return ExtractReport(done=done, already=todo.already, skipped=todo.skipped)


class _Todo:
    """The images of a source that a store lacks, and how far they are processed.

    Attributes:
        already: images that the store has, of those that were looked at.
        skipped: images that could not be read or processed, each with the reason.

    """

    def __init__(self, source: ImageSource, writer: RegionStoreWriter, progress: Progress | None) -> None:
        self.source, self.writer, self.progress = source, writer, progress
        self.already, self.skipped = 0, list[tuple[object, str]]()
        self.skip = skipping(self.skipped)
        self._started, self._processed = 0, 0
        self._ends: deque[float] = deque()  # positions of images that are started and not processed
        self._read, self._done = 0.0, 0.0  # positions

    def __iter__(self) -> Iterator[tuple[str, object]]:
        for image in self.source:
            if image.problem:
                self.skip(image.source, image.problem)
            elif image.image_id in self.writer:
                self.already += 1
            else:
                if not self._started:
                    self._show(self._read)
                self._started += 1
                self._ends.append(image.position)
                yield image.image_id, image.source
            self._read = image.position

    def remaining(self) -> int:
        """Return how many images are to be written; exact if the source counts images."""
        read = self._ends[-1] if self._ends else self._read
        return round((self.already + self._started) * self.source.total / read) - self.already

    def processed(self, number: int) -> None:
        """Report that this number of images is processed."""
        for _ in range(number - self._processed):
            self._done = self._ends.popleft()
        self._processed = number
        self._show(self._done)

    def end(self) -> None:
        """Report that everything is processed."""
        if self._done < self.source.total:
            self._show(math.ceil(self.source.total))

    def _show(self, position: float) -> None:
        if self.progress is not None:
            self.progress(math.floor(position), math.ceil(self.source.total))


def skipping(skipped: list[tuple[Any, str]]) -> Skip:
    """Return what logs a file that is skipped, and appends it to `skipped` with the reason."""

    def skip(file: Path, reason: str) -> None:
        log.warning("skipped: %s", reason)
        skipped.append((file, reason))

    return skip


def detect_images(
    images: Iterable[tuple[str, object]],
    detector: RegionExtractor,
    skip: Skip,
    batch_size: int,
    workers: int,
    given: GivenBoxes | None = None,
) -> Iterator[tuple[int, list[Regions]]]:
    """Find the regions of images, batch by batch, in their order; call it within `quiet_decoders`.

    Args:
        images: the id of each image, and its source: a file or another that `image_from` takes.
        detector: finds the regions.
        skip: called with the source of an image that cannot be read or processed, and the reason.
        batch_size: images per forward pass.
        workers: threads that decode images ahead.
        given: boxes to be described in place of the detector's own.

    Yields:
        After each image, the number of processed images, and the regions of the batch that it completes, if any.

    """
    batch: list[_Loaded] = []
    read = _loaded(images, detector, given, workers, batch_size)
    for number, (source, loaded, last) in enumerate(read, start=1):
        regions: list[Regions] = []
        if isinstance(loaded, UserError):
            skip(source, str(loaded))
        else:
            batch.append(loaded)
        if len(batch) == batch_size or (batch and last):
            regions, batch = _regions(batch, detector, given, skip), []
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
    images: Iterable[tuple[str, object]], detector: RegionExtractor, given: GivenBoxes | None, workers: int, ahead: int
) -> Iterator[tuple[object, _Loaded | UserError, bool]]:
    """Read images in threads, in order, each with whether it is the last; at most `ahead` and one per thread wait."""

    def load(image_id: str, source: object) -> _Loaded | UserError:
        try:
            image = image_in_thread(source.read() if isinstance(source, Packed) else source, _name(image_id, source))
            boxes = None if given is None else given.of(image_id, *image.size)
        except UserError as error:
            return error
        try:
            return _Loaded(image_id, source, *image.size, detector.prepare(image), boxes)
        except (ValueError, RuntimeError, OverflowError, MemoryError, ZeroDivisionError) as error:
            name = _name(image_id, source)
            return UserError(f"{name} of {image.width} x {image.height} pixels cannot be scaled ({error}); resize it")

    waiting: deque[tuple[object, Future[_Loaded | UserError]]] = deque()
    pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="image")
    try:
        for image_id, source in images:
            waiting.append((source, pool.submit(load, image_id, source)))
            if len(waiting) > ahead + workers:
                source, future = waiting.popleft()
                yield source, future.result(), False
        while waiting:
            source, future = waiting.popleft()
            yield source, future.result(), not waiting
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _regions(
    batch: Sequence[_Loaded], detector: RegionExtractor, given: GivenBoxes | None, skip: Skip
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
            [image] = batch
            skip(image.source, f"{_name(image.image_id, image.source)}: the detector fails on it ({error})")
            return []
        return [regions for image in batch for regions in _regions([image], detector, given, skip)]
    results = []
    for image, seen in zip(batch, found, strict=True):
        named = seen if given is None else given.named(image.image_id, seen, detector)
        results.append(Regions(image_id=image.image_id, width=image.width, height=image.height, **named.arrays))
    return results


def _name(image_id: str, source: object) -> str:
    """Return what messages call an image."""
    return f"image {source if isinstance(source, str | Path | Packed | Remote) else image_id}"
