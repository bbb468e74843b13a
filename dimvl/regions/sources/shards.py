"""Several files of images as one source: the tar files of WebDataset, Parquet files."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import NamedTuple, Self

from dimvl.files import open_regular
from dimvl.regions.listing import PassedOver
from dimvl.regions.sources.base import ImageSource, Packed, Part, SourceImage

LARGEST_SHARD = 2**62
MEGABYTE = 10**6


class ShardImage(NamedTuple):
    """An image of a shard.

    Attributes:
        image_id: its id.
        image: how it is read.
        end: bytes of the shard up to its end.
        problem: why there is no image; empty for an image.
        checksum: CRC-32 of its bytes, where they are at hand.

    """

    image_id: str
    image: Packed
    end: int
    problem: str = ""
    checksum: int | None = None


class ShardText(NamedTuple):
    """A text of a shard.

    Attributes:
        image_id: the id of its image.
        text: what should be the text.
        place: where it is, for messages.

    """

    image_id: str
    text: object
    place: str


class Shards(ImageSource):
    """Files of images, read one after the other.

    Of images with one id the first is used; the others are problems, or counted if their bytes are equal and at hand.
    For that the ids are kept in memory, about 150 bytes per image.

    Args:
        files: the shards, in order.

    Raises:
        UserError: one of them is not a regular file, or cannot be opened.

    """

    unit = "MB"

    def __init__(self, files: Sequence[Path]) -> None:
        self.passed = PassedOver()
        self._every = Part(1, 1)
        self._refused: set[tuple[Path, str]] = set()
        self._set_files(files)

    def _set_files(self, files: Sequence[Path]) -> None:
        self.files = files
        self._sizes = []
        for file in files:
            with open_regular(file, LARGEST_SHARD) as opened:
                self._sizes.append(os.fstat(opened.fileno()).st_size)
        self.total = sum(self._sizes) / MEGABYTE

    def __iter__(self) -> Iterator[SourceImage]:
        """Yield the images of all shards; of several with one id the first."""
        self.passed = PassedOver()
        self._refused = set()
        seen: dict[str, int] = {}
        before, count = 0, 0
        for number, (file, size) in enumerate(zip(self.files, self._sizes, strict=True)):
            for found in self.images_in(file):
                count += 1
                if (count - self._every.number) % self._every.of:
                    continue
                problem = found.problem
                content = number if found.checksum is None else number << 32 | found.checksum
                if not problem and (first := seen.setdefault(found.image_id, content)) is not content:
                    if found.checksum is not None and first & 0xFFFFFFFF == found.checksum:
                        self.passed.repeated += 1
                        continue
                    other = self.files[first if found.checksum is None else first >> 32]
                    self._refused.add((file, found.image_id))
                    problem = f"{found.image} has the id {found.image_id!r} of an earlier image, in {other}; rename it"
                yield SourceImage(found.image_id, found.image, (before + found.end) / MEGABYTE, problem)
            before += size

    def part(self, part: Part) -> Self:
        """Return every N-th shard, or every N-th image where there are fewer shards than parts."""
        result = copy(self)
        result.passed = PassedOver()
        if len(self.files) >= part.of:
            result._set_files(self.files[part.slice])
        else:
            result._every = part
        return result

    def texts(self, field: str | None) -> Iterator[ShardText]:
        """Yield the texts of all shards but those of images whose id was refused; see `texts_in`."""
        for file in self.files:
            for text in self.texts_in(file, field):
                if (file, text.image_id) not in self._refused:
                    yield text

    @abstractmethod
    def images_in(self, file: Path) -> Iterator[ShardImage]:
        """Yield the images of a shard, and count in `passed` what else it has."""

    @abstractmethod
    def texts_in(self, file: Path, field: str | None) -> Iterator[ShardText]:
        """Yield the texts of a shard.

        Args:
            file: the shard.
            field: where they are: a field of `KEY.json`, a column; None for the usual place.

        Raises:
            UserError: a Parquet file has no such column, or is damaged.

        """
