"""What a source of images is. Only ids are kept in memory, never the images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from dimvl.regions.listing import PassedOver


class Part(NamedTuple):
    """One of several parts of a source.

    Attributes:
        number: which, from 1.
        of: how many there are.

    """

    number: int
    of: int

    def __str__(self) -> str:
        """As it is typed."""
        return f"{self.number}/{self.of}"

    @property
    def slice(self) -> slice:
        """Every `of`-th item."""
        return slice(self.number - 1, None, self.of)


class Packed:
    """An image in a file that holds several.

    Args:
        name: what messages call it.
        read: returns the bytes of the image file; safe in any thread. It may raise a `UserError`.

    """

    def __init__(self, name: str, read: Callable[[], bytes]) -> None:
        self.name = name
        self.read = read

    def __str__(self) -> str:
        """The name."""
        return self.name


class SourceImage(NamedTuple):
    """An image of a source, not yet read.

    Attributes:
        image_id: its id.
        source: a file, or an image in a file.
        position: how much of the source ends with it, in the source's unit.
        problem: why there is no image, in one sentence; empty for an image.

    """

    image_id: str
    source: Path | Packed
    position: float
    problem: str = ""


class ImageSource(ABC):
    """Images in an order that is always the same.

    Attributes:
        unit: what positions count, `images` or `MB`.
        total: size of the source in that unit.
        passed: what it has beside images; complete after an iteration.

    """

    unit = "images"
    total: float
    passed: PassedOver

    @abstractmethod
    def __iter__(self) -> Iterator[SourceImage]:
        """Yield the images, and what cannot be one with its `problem`."""

    @abstractmethod
    def part(self, part: Part) -> Self:
        """Return one of several parts, which together have each image once."""


class ListedImages(ImageSource):
    """Image files that are all known at the start.

    Args:
        images: ids, which must differ, and files.
        passed: what was passed over to find them.

    """

    def __init__(self, images: Sequence[tuple[str, Path]], passed: PassedOver | None = None) -> None:
        self.images = images
        self.total = len(images)
        self.passed = passed or PassedOver()

    def __iter__(self) -> Iterator[SourceImage]:
        """Yield them in order."""
        for place, (image_id, path) in enumerate(self.images, start=1):
            yield SourceImage(image_id, path, place)

    def part(self, part: Part) -> "ListedImages":
        """Return every N-th image."""
        return ListedImages(self.images[part.slice], self.passed)
