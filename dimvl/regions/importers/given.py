"""The file of image sizes that may accompany a source."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dimvl.errors import UserError
from dimvl.fields import COCO, identifier, pixels, records
from dimvl.files import read_json
from dimvl.regions.store.format import number_of
from dimvl.showing import short

MATCHES = ("id", "file_name", "number")
SHOWN = 3


class ClashError(UserError):
    """What ends an import instead of skipping one image, since going on would pair images with wrong values."""


class _Listed(NamedTuple):
    """An image of a file of sizes."""

    image_id: str
    file_name: str
    size: tuple[int, int]


class Sizes:
    """Widths and heights of images from a COCO file, for sources without them.

    An image is found by its id, by the file name (with or without folders and ending), and by the number at the end of
    its id. If these find images of different sizes, only `match` can decide.

    Args:
        path: the file.
        match: the only rule to use, one of `MATCHES`; None for all.

    Raises:
        UserError: the file cannot be read or has another form.

    """

    def __init__(self, path: Path, match: str | None = None) -> None:
        if match not in (None, *MATCHES):
            raise UserError(f"--match is {match}; give {', '.join(MATCHES)}")
        self.path = path
        self.match = match
        self._used: set[_Listed] = set()
        self._by_id: dict[str, list[_Listed]] = {}
        self._by_name: dict[str, list[_Listed]] = {}
        for place, image in records(path, read_json(path), "images", ("id", "width", "height"), COCO):
            size = pixels(image, "width", place), pixels(image, "height", place)
            listed = _Listed(str(identifier(image["id"], "id", place)), str(image.get("file_name", "")), size)
            _add(self._by_id, [listed.image_id], listed)
            _add(self._by_name, _names(listed.file_name), listed)

    def of(self, image_id: str) -> tuple[int, int]:
        """Width and height of an image.

        Raises:
            UserError: the file lacks the image.
            ClashError: the file has two images of different sizes that it may be.

        """
        found = self._found(image_id)
        if not found:
            rule = f" by {self.match}" if self.match else ""
            raise UserError(f"sizes {self.path} lack image {short(image_id)}{rule}; give a file that lists it")
        if len({listed.size for listed in found}) > 1:
            raise ClashError(
                f"sizes {self.path} have more than one image for an id of the source: "
                f"{'; '.join(islice(self._disagreements(image_id), SHOWN))}; "
                f"say with --match which rule is right ({', '.join(MATCHES)}), or give sizes of this source's images"
            )
        self._used.update(found)
        return found[0].size

    @property
    def unused(self) -> int:
        """Number of images in the file whose size was not asked for."""
        return len(set(chain.from_iterable(self._by_id.values()))) - len(self._used)

    def _found(self, image_id: str) -> list[_Listed]:
        """Images that the rules find, best rule first."""
        rules = {
            "id": self._by_id.get(image_id, ()),
            "file_name": self._by_name.get(image_id, ()),
            "number": self._by_id.get(number_of(image_id) or "", ()),
        }
        return list(chain.from_iterable(rules[name] for name in MATCHES if self.match in (None, name)))

    def _disagreements(self, image_id: str) -> Iterator[str]:
        """Describe ids for which the rules find images of different sizes, first that of an image."""
        told = set()
        for text in dict.fromkeys(chain([image_id], self._by_name, self._by_id)):
            found = dict.fromkeys(self._found(text))
            if len({listed.size for listed in found}) > 1 and frozenset(found) not in told:
                told.add(frozenset(found))
                yield f"{short(text)} may be {' or '.join(map(_description, islice(found, SHOWN)))}"


def _description(listed: _Listed) -> str:
    name = f" ({short(listed.file_name)})" if listed.file_name else ""
    return f"id {short(listed.image_id)}{name} of {listed.size[0]} x {listed.size[1]}"


def _add(table: dict[str, list[_Listed]], keys: Iterable[str], listed: _Listed) -> None:
    for key in keys:
        table.setdefault(key, []).append(listed)


def _names(file_name: str) -> set[str]:
    """The texts that name a file: with and without its folders, with and without its ending."""
    path = PurePosixPath(file_name)
    return {file_name, str(path.with_suffix("")), path.name, path.stem} if path.name else set()
