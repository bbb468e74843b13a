"""What a Predictor takes as images, and their regions.

An image is a file, its address on the web, its bytes, an open file, pixels, or its regions. A tuple of images is one
input, and a list or any other sequence of inputs is a batch. Here the images of a batch become regions, each once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.errors import UserError
from dimvl.files import is_url
from dimvl.regions.detectors.base import RegionExtractor
from dimvl.regions.detectors.load import is_no_detector
from dimvl.regions.extract import Skip, detect_images, skipping
from dimvl.regions.extractors.load import load_extractor
from dimvl.regions.images import image_from, quiet_decoders
from dimvl.regions.records import Extractor, Origin, Regions
from dimvl.regions.remote import Remote
from dimvl.trained_model import TrainedModel

ImageInput = str | Path | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray | Tensor | Regions
"""One image: its file, its address (a str that begins with http:// or https://), the bytes of a file, an open binary
file, pixels as in `dimvl.regions.images.image_from`, or its regions. A server must not pass on a str of a request."""
Input = ImageInput | tuple[ImageInput, ...]
"""One image, or a tuple of several that are one input."""
Inputs = Sequence[Input]
"""A batch: a list or any other sequence of inputs, except a tuple."""
Skipped = list[tuple[int, str]]
"""The inputs of a batch that were skipped: the place of each, from 0, and the reason."""
AT_ONCE = 32  # images in one call of the detector
READERS = 2  # threads that read images ahead


def is_batch(images: object) -> bool:
    """Return whether several inputs are given: any sequence, except those that are one image and tuples."""
    return isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview | tuple)


def listed(images: Any) -> list[Any]:
    """Return the inputs as a list."""
    return list(images) if is_batch(images) else [images]


def images_of(one: Any) -> tuple[Any, ...]:
    """Return the images of an input."""
    return one if isinstance(one, tuple) else (one,)


class RegionFinder:
    """A model's detector, which is loaded with the first image.

    Args:
        trained: the model, which knows its extractor.
        folder: folder of the detector.

    """

    def __init__(self, trained: TrainedModel, folder: Path) -> None:
        self._trained = trained
        self._folder = folder

    @cached_property
    def detector(self) -> RegionExtractor:
        """The detector, on the model's device.

        Raises:
            UserError: it cannot be loaded, or is not the one that the model was trained with.

        """
        if is_no_detector(self._folder):
            raise UserError(
                f"{self._folder.parent} has no detector, so it takes no images; export the run with its detector, or "
                "give regions: a store, to the commands that have --regions, or Regions in Python"
            )
        detector = load_extractor(self._folder)
        self._trained.processor.check_extractor(detector.extractor, str(self._folder))
        return detector.to(self._trained.device).for_prediction()

    @cached_property
    def _extractor(self) -> Extractor:
        """What the detector says of itself, asked once: its fingerprint is a hash of all its weights."""
        return self.detector.extractor

    def find(self, inputs: Sequence[Sequence[ImageInput]], skipped: Skipped | None) -> list[list[Regions]]:
        """Find the regions of the images of each input; an image that occurs twice is processed once.

        Args:
            inputs: the images of each input; those that are regions already stay as they are.
            skipped: receives each input with an image that cannot be read or on which the detector fails; that input
                then has no regions. Without it, such an image is an error.

        Raises:
            UserError: as said, or as `detector`.

        """
        named: dict[str | int, tuple[str, ImageInput]] = {}  # each image once, with the name of its first place
        for place, images in enumerate(inputs):
            for number, image in enumerate(images):
                named.setdefault(_key(image), (_name(image, inputs, place, number), image))
        found = {key: image for key, (_, image) in named.items() if isinstance(image, Regions)}
        todo = {name: (key, source_of(image)) for key, (name, image) in named.items() if key not in found}
        failed: dict[str | int, str] = {}

        def skip(image: ImageInput | Remote, reason: str) -> None:
            if skipped is None:
                raise UserError(reason)
            failed[_key(image)] = reason

        for _, regions in self._detect([(name, image) for name, (_, image) in todo.items()], skip):
            for one in regions:
                key, image = todo[one.image_id]
                found[key] = self._from(image, one)
        result: list[list[Regions]] = []
        for place, images in enumerate(inputs):
            keys = [_key(image) for image in images]
            if skipped is not None and (bad := [key for key in keys if key in failed]):
                skipped.append((place, failed[bad[0]]))
                result.append([])
            else:
                result.append([found[key] for key in keys])
        return result

    def of_files(
        self, files: Sequence[Path | str], skipped: list[tuple[Path | str, str]], progress: Progress | None
    ) -> Iterator[list[Regions]]:
        """Do what `Predictor.regions_of_files` does."""
        for done, regions in self._detect([(str(file), source_of(file)) for file in files], skipping(skipped)):
            if regions:
                yield [self._from(one.image_id, one) for one in regions]
            if progress is not None:
                progress(done, len(files))

    def _detect(self, images: Sequence[tuple[str, Any]], skip: Skip) -> Iterator[tuple[int, list[Regions]]]:
        if images:
            with quiet_decoders():
                yield from detect_images(images, self.detector, skip, AT_ONCE, READERS)

    def _from(self, image: ImageInput, regions: Regions) -> Regions:
        """Add what notebooks need to show the regions; an open file is not read again."""
        known = None if hasattr(image, "read") else image
        return replace(regions, origin=Origin(self._extractor, known))


def source_of(image: Any) -> Any:
    """Return what the detector's readers take: of an address, the image that it leads to."""
    return Remote(image) if is_url(image) else image


def image_at(image: ImageInput) -> Image.Image:
    """Return an image as RGB, upright; raises `UserError` if it has no pixels or cannot be read."""
    if isinstance(image, Regions):
        raise UserError(f"{image.image_id} is given as regions, which have no pixels; give the image")
    return image_from(source_of(image), f"image {image}" if isinstance(image, str | Path) else "the image")


def _key(image: ImageInput | Remote) -> str | int:
    """Return a key that is equal for inputs that are the same image."""
    return str(image) if isinstance(image, str | Path | Remote) else id(image)


def _name(image: ImageInput, inputs: Sequence[Sequence[ImageInput]], place: int, number: int) -> str:
    """Return what messages call an image: its path, or where it is in a list or a tuple."""
    if isinstance(image, str | Path):
        return str(image)
    own, batch = f"{number + 1} of {len(inputs[place])}", f"{place + 1} of {len(inputs)}"
    return own if len(inputs) == 1 else batch if len(inputs[place]) == 1 else f"{own} in input {batch}"
