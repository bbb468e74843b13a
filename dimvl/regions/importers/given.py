"""Files that accompany a source: vocabularies of class and attribute names, and sizes of images."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dimvl.errors import UserError
from dimvl.files import read_json

MAX_NAMES = 2**15 - 1  # ids are int16


@dataclass(frozen=True)
class Vocabulary:
    """Names by id; line k of the file names id k - 1. Commas separate synonyms, of which the first is the name.

    Attributes:
        names: by id.
        ids: by name and synonym.

    """

    names: tuple[str, ...] = ()
    ids: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.names)

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """Read a UTF-8 text file with one name per line."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"vocabulary {path} cannot be read ({error}); give a text file with one name per line"
            ) from None
        if not 0 < len(lines) <= MAX_NAMES:
            raise UserError(f"vocabulary {path} has {len(lines):,} names; give 1 to {MAX_NAMES:,}, one per line")
        ids: dict[str, int] = {}
        names = []
        for number, line in enumerate(lines):
            words = [word.strip() for word in line.split(",")]
            if not words[0]:
                raise UserError(
                    f"vocabulary {path} has no name in line {number + 1}; add it, because line k names id k - 1"
                )
            names.append(words[0])
            for word in words:
                ids.setdefault(word, number)
        return cls(tuple(names), ids)


class Sizes:
    """Widths and heights of images from a COCO file, for sources without them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._by_id: dict[str, tuple[int, int]] = {}
        self._by_name: dict[str, tuple[int, int]] = {}
        value = read_json(path)
        try:
            for image in value["images"]:
                size = int(image["width"]), int(image["height"])
                self._by_id[str(image["id"])] = size
                if "file_name" in image:
                    self._by_name[Path(image["file_name"]).stem] = size
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UserError(
                f'{path} has no list "images" with "id", "width" and "height" each; give a COCO annotation file'
            ) from None

    def of(self, image_id: str) -> tuple[int, int]:
        """Width and height of an image, found by file name, by id, or by the number at the end of its id."""
        found = self._by_name.get(image_id) or self._by_id.get(image_id) or self._by_id.get(number_of(image_id) or "")
        if found is None:
            raise UserError(f"sizes {self.path} lack image {image_id!r}; give a file that lists it")
        return found


def number_of(image_id: str) -> str | None:
    """The number at the end of an id, as in COCO's annotations: `71` for `COCO_train2014_000000000071`."""
    found = re.search(r"[0-9]{1,18}$", image_id)
    return str(int(found[0])) if found else None
