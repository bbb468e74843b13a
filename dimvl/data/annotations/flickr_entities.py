r"""Phrases of Flickr30k Entities (Plummer et al., ICCV 2015), read from the published `annotations.zip`.

`Sentences/ID.txt` has five captions, in which phrases are marked: `[/EN#283585/people A young child] is climbing`.
`Annotations/ID.xml` has the image's size and the boxes of these entities, corners x1, y1, x2, y2. Entities without a
box (the whole scene, what is not visible) are left out, as in the published protocol; entity 0 is not in the image.
"""

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from xml.parsers import expat

from dimvl.data.annotations.phrases import Box, Phrase, Size, check_inside, check_number, corners
from dimvl.errors import UserError
from dimvl.fields import Once, identifier, lines, words
from dimvl.files import open_regular

MARKED = re.compile(r"\[/EN#([0-9]+)/(\S+) ([^\[\]]+)\]")
SENTENCES = re.compile(r"(?:.*/)?Sentences/([^/]+)\.txt")
LARGEST = 2**20
"""Bytes of one unpacked file; the largest published one has 20,000."""
DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, KeyError, OSError, EOFError, ValueError)
"""What Python's reader of archives raises."""
REMEDY = "give the annotations.zip of Flickr30k Entities as published"


def entity_phrases(path: Path, images: Path | None) -> list[Phrase]:
    """Read the phrases of all images, or of those that a list names, in the order of the archive.

    Raises:
        UserError: not such an archive, a file in it that is too large, not XML or of another form, a box outside its
            image, or an image of the list that it lacks.

    """
    wanted = None if images is None else _listed(images)
    result: list[Phrase] = []
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                found = [(name, match[1]) for name in archive.namelist() if (match := SENTENCES.fullmatch(name))]
                known = {image for _, image in found}
                if not found:
                    raise UserError(f"{path} has no folder Sentences; {REMEDY}")
                if wanted is not None and (lacking := [image for image in wanted if image not in known]):
                    raise UserError(f"{path} has no sentences of image {lacking[0]} of {images}; give the list of it")
                for name, image in found:
                    if wanted is None or image in wanted:
                        result += _phrases(path, archive, name, image, len(result))
                        check_number(len(result), path)
        except DAMAGED as error:
            raise UserError(f"{path} cannot be read as an archive ({error}); {REMEDY}") from None
    return result


def _listed(path: Path) -> dict[str, None]:
    once, found = Once("image"), dict[str, None]()
    for number, line in lines(path):
        image = str(identifier(line.strip(), "image", f"{path}, line {number}"))
        once.check(image, f"{path}, line {number}")
        found[image] = None
    return found


def _phrases(path: Path, archive: zipfile.ZipFile, name: str, image: str, first: int) -> Iterator[Phrase]:
    place = f"{path}: {name}"
    annotations = name[: -len(f"Sentences/{image}.txt")] + f"Annotations/{image}.xml"
    size, boxes = _boxes(_unpacked(archive, annotations, path), f"{path}: {annotations}")
    identifier(image, "image", place)
    try:
        text = _unpacked(archive, name, path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{place} is not UTF-8 text; {REMEDY}") from None
    for line in text.split("\n"):
        for entity, kinds, phrase in MARKED.findall(line):
            if own := boxes.get(entity):
                check_inside(own, size, f"entity {entity}", f"{path}: {annotations}")
                said = words(phrase, f"a phrase of entity {entity}", place)
                yield Phrase(
                    first, (image,), said, tuple(own), size, kinds=tuple(kinds.split("/")), file_names=(f"{image}.jpg",)
                )
                first += 1


def _unpacked(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    opened: IO[bytes]
    with archive.open(name) as opened:
        data = opened.read(LARGEST + 1)  # the size that an archive announces may be wrong
    if len(data) > LARGEST:
        raise UserError(f"{path}: {name} has more than {LARGEST:,} bytes; {REMEDY}")
    return data


def _boxes(data: bytes, place: str) -> tuple[Size, dict[str, list[Box]]]:
    """Return the image's size, and the boxes of each entity."""
    reader = _Annotation()
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler = reader.text.append
    parser.StartDoctypeDeclHandler = reader.refuse  # entities that grow, and files that a file names, need one
    try:
        parser.Parse(data, True)
        size = int(reader.values["size/width"][0]), int(reader.values["size/height"][0])
        boxes: dict[str, list[Box]] = {}
        for names, box in reader.objects:
            for name in names:
                boxes.setdefault(name, []).append(corners([float(value) for value in box], f"entity {name}", place))
    except (expat.ExpatError, KeyError, ValueError) as error:
        raise UserError(f"{place} is not an annotation of this data set ({error}); {REMEDY}") from None
    return size, boxes


class _Annotation:
    """Collects the values of an annotation while it is parsed.

    Attributes:
        values: path below the root -> texts, outside of objects.
        objects: the entities of each box, and its four sides.

    """

    def __init__(self) -> None:
        self.values: dict[str, list[str]] = {}
        self.objects: list[tuple[list[str], list[str]]] = []
        self.text: list[str] = []
        self._own: dict[str, list[str]] = {}
        self._open: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._open.append(name)
        self.text.clear()
        if self._open[1:] == ["object"]:
            self._own = {}

    def end(self, name: str) -> None:
        place, values = self._open[1:], self.values
        if place[:1] == ["object"]:
            place, values = place[1:], self._own
        values.setdefault("/".join(place), []).append("".join(self.text).strip())
        self.text.clear()
        if self._open[1:] == ["object"] and "bndbox" in self._own:
            sides = [self._own[f"bndbox/{side}"][0] for side in ("xmin", "ymin", "xmax", "ymax")]
            self.objects.append((self._own["name"], sides))
        self._open.pop()

    def refuse(self, *declared: object) -> None:
        raise ValueError("it declares a document type")
