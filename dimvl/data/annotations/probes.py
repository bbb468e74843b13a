"""Pairwise probes: an image with a true caption and a false one (a foil), or two images with a caption each.

- VALSE (Parcalabescu et al., ACL 2022): `{id: {"image_file", "caption", "foil", "mturk": {"caption": votes}}}`, a file
  for each instrument. Only items whose caption at least two of three people chose count, as its authors ask.
- SugarCrepe (Hsieh et al., NeurIPS 2023): `{id: {"filename", "caption", "negative_caption"}}`.
- FOIL (Shekhar et al., ACL 2017): COCO captions with `foil`, where a foil has the `id` of its original.
- Winoground (Thrush et al., CVPR 2022): JSON lines of `image_0`, `image_1`, `caption_0`, `caption_1` and `id`.
- dimvl's own JSON lines of `image`, `caption`, `foil` and, optionally, `id`.

All are read from the user's own copies.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from dimvl.data.annotations.jsonl import jsonl_ids, jsonl_records
from dimvl.data.annotations.records import Caption
from dimvl.errors import UserError
from dimvl.fields import FORMATS, Id, Once, identifier, lines, mapping, records, words
from dimvl.files import parse_json, read_json
from dimvl.showing import short

VOTES = 2
"""Of three people who must have chosen the caption, and not the foil, of an item of VALSE."""
INVALID = "item whose caption fewer than two people chose"
ALONE = "caption without a foil"


@dataclass(frozen=True, slots=True)
class Probe:
    """An item of a probe.

    Attributes:
        probe_id: its id in the file, or its number, from 0.
        texts: the caption and its foil; of two images, the caption of each.
        images: the image, or two, as the file names them.
        file_names: the file of each image; empty if the file has none.

    """

    probe_id: Id
    texts: tuple[str, str]
    images: tuple[Id, ...]
    file_names: tuple[str, ...] = ()

    @property
    def records(self) -> list[Caption]:
        """A record for each image, by which it is found in a store."""
        names = self.file_names or ("",) * len(self.images)
        return [
            Caption(self.probe_id, (str(image),), self.texts[place], (name,) if name else (), written_ids=(image,))
            for place, (image, name) in enumerate(zip(self.images, names, strict=True))
        ]


class Probes(NamedTuple):
    """The items of a file.

    Attributes:
        items: those that count, in the order of the file.
        left_out: reason -> number of the others.

    """

    items: list[Probe]
    left_out: dict[str, int]


def read_probes(path: Path) -> Probes:
    """Read a file of probes in any known format; it is recognised by its fields.

    Raises:
        UserError: a missing file, an unknown format, a mistake in the file, a foil that equals its caption, or no item
            that counts.

    """
    left_out: dict[str, int] = {}
    if path.suffix.lower() == ".jsonl":
        found = _winoground(path) if _is_winoground(path) else _own(path)
    else:
        content = read_json(path)
        first = next(iter(content.values()), None) if isinstance(content, dict) else None
        fields = first if isinstance(first, dict) else {}
        if isinstance(content, dict) and "annotations" in content:
            found = _foil(path, content, left_out)
        elif "negative_caption" in fields:
            found = _sugar_crepe(path, content)
        elif "foil" in fields:
            found = _valse(path, content, left_out)
        else:
            raise UserError(f"{path} is not in a format of probes that dimvl knows; {FORMATS}")
    items = list(found)
    if not items:
        raise UserError(f"{path} has no usable item; check that it is the right file")
    return Probes(items, {reason: count for reason, count in left_out.items() if count})


def _pair(caption: Any, foil: Any, probe_id: Id, place: str) -> tuple[str, str]:
    """Return a caption and its foil; raises `UserError` if one is empty or both are equal."""
    texts = words(caption, f"caption of item {probe_id}", place), words(foil, f"foil of item {probe_id}", place)
    if texts[0] == texts[1]:
        raise UserError(f"{place}: caption and foil of item {probe_id} are both {short(texts[0])}; fix or remove it")
    return texts


def _valse(path: Path, content: dict[str, Any], left_out: dict[str, int]) -> Iterator[Probe]:
    left_out[INVALID] = 0
    for key, value in content.items():
        place = f"{path}: item {short(key)}"
        record = mapping(value, ("image_file", "caption", "foil", "mturk"), place)
        probe_id = identifier(key, "id", place)
        votes = mapping(record["mturk"], ("caption",), f"{place}: mturk")["caption"]
        if type(votes) is not int or votes < 0:
            raise UserError(f"{place}: caption of mturk is {short(votes)}; give the number of people who chose it")
        image = identifier(record["image_file"], "image_file", place)
        if votes < VOTES:  # in the published files, some of these have a foil that equals its caption
            left_out[INVALID] += 1
        else:
            yield Probe(probe_id, _pair(record["caption"], record["foil"], probe_id, place), (image,), (str(image),))


def _sugar_crepe(path: Path, content: dict[str, Any]) -> Iterator[Probe]:
    for key, value in content.items():
        place = f"{path}: item {short(key)}"
        record = mapping(value, ("filename", "caption", "negative_caption"), place)
        probe_id, image = identifier(key, "id", place), identifier(record["filename"], "filename", place)
        texts = _pair(record["caption"], record["negative_caption"], probe_id, place)
        yield Probe(probe_id, texts, (image,), (str(image),))


def _foil(path: Path, content: dict[str, Any], left_out: dict[str, int]) -> Iterator[Probe]:
    files: dict[str, str] = {}
    for place, record in records(path, content, "images", ("id", "file_name")) if "images" in content else ():
        files[str(identifier(record["id"], "id", place))] = str(identifier(record["file_name"], "file_name", place))
    originals: dict[str, tuple[Id, str]] = {}
    foils: list[tuple[str, Id, Id, str]] = []
    for place, record in records(path, content, "annotations", ("id", "image_id", "caption", "foil")):
        number, image = identifier(record["id"], "id", place), identifier(record["image_id"], "image_id", place)
        text, is_foil = words(record["caption"], f"caption {number}", place), record["foil"]
        if not isinstance(is_foil, bool):
            raise UserError(f"{place}: foil is {short(is_foil)}; give true or false")
        if is_foil:
            foils.append((place, number, image, text))
        elif originals.setdefault(str(number), (image, text)) != (image, text):
            raise UserError(f"{place}: id {number!r} has two captions that are not foils; give each its own id")
    for count, (place, number, image, text) in enumerate(foils):
        original = originals.get(str(number))
        if original is None or str(original[0]) != str(image):
            raise UserError(f"{place}: foil {number!r} has no caption of its image with that id; add it, or remove it")
        name = files.get(str(image), "")
        yield Probe(count, _pair(original[1], text, count, place), (image,), (name,) if name else ())
    left_out[ALONE] = len(originals.keys() - {str(number) for _, number, _, _ in foils})


def _is_winoground(path: Path) -> bool:
    number, line = next(lines(path), (0, "{}"))
    first = parse_json(line, f"{path}, line {number}", "write one object per line")
    return isinstance(first, dict) and "caption_0" in first


def _winoground(path: Path) -> Iterator[Probe]:
    once = Once("id")
    for number, line in lines(path):
        place = f"{path}, line {number}"
        record = parse_json(line, place, "write one object per line")
        record = mapping(record, ("id", "image_0", "image_1", "caption_0", "caption_1"), place)
        probe_id = identifier(record["id"], "id", place)
        once.check(probe_id, place)
        images = tuple(identifier(record[name], name, place) for name in ("image_0", "image_1"))
        if str(images[0]) == str(images[1]):
            raise UserError(f"{place}: both images of item {probe_id} are {images[0]!r}; give two")
        yield Probe(probe_id, _pair(record["caption_0"], record["caption_1"], probe_id, place), images)


def _own(path: Path) -> Iterator[Probe]:
    found = list(jsonl_records(path, ("caption", "foil")))
    for number, (place, record, written, _) in zip(jsonl_ids(found, "id"), found, strict=True):
        if len(written) > 1:
            raise UserError(f"{place} has {len(written)} images, and a probe is about one; give image in their place")
        yield Probe(number, _pair(record["caption"], record["foil"], number, place), written)


def image_records(items: Iterable[Probe]) -> list[Caption]:
    """Return the records of all items, by which their images are found in a store."""
    return list(chain.from_iterable(probe.records for probe in items))
