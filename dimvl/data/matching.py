"""Which image of the region store each annotation means, settled and told before anything is trained or evaluated.

Annotation files name pictures by number, by file name or by address; a store by what it was extracted or imported with.
One rule of `RULES` is used for a whole file: the one that finds the most images, the first of them where several do. A
rule that would give two images of the file the same regions is never used.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dimvl.config import Missing
from dimvl.data.annotations import Caption, Question
from dimvl.errors import UserError
from dimvl.files import write_json
from dimvl.regions.store import RegionStore

logger = logging.getLogger(__name__)
Record = TypeVar("Record", Caption, Question)
SAMPLE = 1000
"""Images of a file on which the rules are tried; only where they find none of these, all are."""
EXAMPLES = 3

_ENDING = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|gif)$", re.IGNORECASE)
_COCO = re.compile(r"(?:COCO_(?:train|val|test)[0-9]{4}_)?([0-9]{12})", re.IGNORECASE)


def without_ending(file: str) -> str:
    """Return a file name without the ending of pictures; other dots are left."""
    return _ENDING.sub("", file)


def coco_number(file: str) -> str:
    """Return the image id in a file name of COCO (`COCO_val2014_000000391895.jpg`, `000000391895.jpg`), or nothing."""
    found = _COCO.fullmatch(without_ending(_name(file)))
    return str(int(found[1])) if found else ""


def _name(file: str) -> str:
    if "://" in file:
        file = re.split("[?#]", file)[0]
    return file.rpartition("/")[2]


def _twelve_digits(image_id: str) -> str:
    return f"{image_id:0>12}" if image_id.isascii() and image_id.isdecimal() else ""


RULES: Mapping[str, Callable[[str, str], str]] = {
    "its id": lambda image_id, file: image_id,
    "its file name": lambda image_id, file: _name(file),
    "its file name without the ending": lambda image_id, file: without_ending(_name(file)),
    "its path without the ending": lambda image_id, file: without_ending(file),
    "the number in its COCO file name": lambda image_id, file: coco_number(file or image_id),
    "its number in twelve digits": lambda image_id, file: _twelve_digits(image_id),
}
"""Rules in the order of preference: (image id, file name) of a record -> id in the store, empty where it has none."""


@dataclass(frozen=True, kw_only=True)
class FileMatch:
    """What of an annotation file the store has.

    Attributes:
        path: of the file.
        rule: how its images were found, a name of `RULES`.
        store_ids: image id of the file -> id in the store, of the images found.
        missing: image ids of the file that the store lacks.
        texts: captions or questions of the file.
        texts_missing: those on missing images.

    """

    path: Path
    rule: str
    store_ids: Mapping[str, str]
    missing: Sequence[str]
    texts: int
    texts_missing: int

    def check(self, store: RegionStore, missing: Missing, remedy: str) -> None:
        """Tell how the file matches.

        Args:
            store: that it was matched with.
            missing: `error`: it must match wholly; `skip`: missing images are left out with a warning.
            remedy: what leaves them out.

        Raises:
            UserError: the store lacks an image, and that is an error.

        """
        images = len(self.store_ids) + len(self.missing)
        logger.info(
            "%s: %d texts on %d images; %d of these are in the store by %s, %d are not",
            *(self.path, self.texts, images, len(self.store_ids), self.rule, len(self.missing)),
        )
        if not self.missing:
            return
        others = f" and {len(self.missing) - 1:,} others" if len(self.missing) > 1 else ""
        lacks = f"region store {store.path} lacks image {self.missing[0]!r}{others} of the {images:,} of {self.path}"
        if missing == "error":
            raise UserError(f"{lacks}; extract the regions of these images, or leave their texts out with {remedy}")
        logger.warning("%s; %d of %d texts are left out", lacks, self.texts_missing, self.texts)


def match_file(path: Path, records: Sequence[Record], store: RegionStore) -> FileMatch:
    """Find the images of an annotation file in the store.

    Args:
        path: of the file, for messages.
        records: what it holds.
        store: the regions.

    Raises:
        UserError: it holds nothing, none of its images is in the store, or two of its images would be one.

    """
    if not records:
        raise UserError(f"{path} has no text for any image of the store; check that it is the right file")
    files = {record.image_id: record.file_name for record in records}
    rule, store_ids = _find(path, files, store)
    return FileMatch(
        path=path,
        rule=rule,
        store_ids=store_ids,
        missing=[image for image in files if image not in store_ids],
        texts=len(records),
        texts_missing=sum(record.image_id not in store_ids for record in records),
    )


def match_files(
    files: Sequence[tuple[Path, Sequence[Record]]],
    store: RegionStore,
    missing: Missing,
    report: Path,
    dropped: Mapping[str, int] | None = None,
) -> list[Record]:
    """Match the annotation files of a run with its store, and tell it: in the log and in a JSON file.

    Args:
        files: path and records of each.
        store: the regions.
        missing: what happens where the store lacks an image: `error`, or `skip` its texts.
        report: the JSON file to write, before anything is refused for missing images.
        dropped: reason -> number of texts that were left out before.

    Returns:
        The records on images of the store, `image_id` as the store has it.

    Raises:
        UserError: as `match_file`, or the store lacks an image and `missing` is `error`.

    """
    matches = [match_file(path, records, store) for path, records in files]
    used = np.zeros(len(store), dtype=bool)
    for match in matches:
        used[store.positions(match.store_ids.values())] = True
    unused = np.flatnonzero(~used)
    dropped = {**(dropped or {}), "image not in the store": sum(match.texts_missing for match in matches)}
    write_json(
        report,
        {
            "files": [_as_json(match) for match in matches],
            "store": {
                "images": len(store),
                "without_text": len(unused),
                "without_text_examples": [store.image_id(int(place)) for place in unused[:EXAMPLES]],
            },
            "texts_used": sum(match.texts - match.texts_missing for match in matches),
            "texts_dropped": dropped,
        },
    )
    for match in matches:
        match.check(store, missing, "missing=skip")
    logger.info("region store %s: %d images, %d of them without a text", store.path, len(store), len(unused))
    for reason, count in dropped.items():
        if count:
            logger.warning("%d texts are left out: %s", count, reason)
    return [record for match, (_, records) in zip(matches, files, strict=True) for record in in_store(records, match)]


def in_store(records: Sequence[Record], match: FileMatch) -> Iterator[Record]:
    """Give the records on images that were found, `image_id` as the store has it."""
    for record in records:
        image = match.store_ids.get(record.image_id)
        if image is not None:
            yield record if image == record.image_id else replace(record, image_id=image)


def _as_json(match: FileMatch) -> dict[str, Any]:
    return {
        "file": match.path.name,
        "texts": match.texts,
        "images_found": len(match.store_ids),
        "found_by": match.rule,
        "images_missing": len(match.missing),
        "missing_examples": list(match.missing[:EXAMPLES]),
    }


def _find(path: Path, files: Mapping[str, str], store: RegionStore) -> tuple[str, dict[str, str]]:
    """Choose the rule; return its name and the store's id of each image that it finds."""
    sample = dict(islice(files.items(), 0, None, max(1, len(files) // SAMPLE)))
    counts = {name: len(_apply(name, sample, store)) for name in RULES}
    if len(sample) < len(files) and not any(counts.values()):
        counts = {name: len(_apply(name, files, store)) for name in RULES}
    collision = ""
    for name in sorted(RULES, key=lambda name: -counts[name]):  # stable: earlier rules first among equals
        found = _apply(name, files, store) if counts[name] else {}
        if found and len(set(found.values())) == len(found):
            return name, found
        collision = collision or _collision(name, found)
    if collision:
        raise UserError(f"{path}: {collision}; name the pictures as the store does, see docs/annotations.md")
    theirs = ", ".join(repr(name or image) for image, name in islice(files.items(), EXAMPLES))
    ours = ", ".join(repr(store.image_id(place)) for place in range(min(EXAMPLES, len(store)))) or "nothing"
    raise UserError(
        f"none of the {len(files):,} images of {path} is in the region store {store.path}: the file has {theirs}, "
        f"the store {ours}; give files that belong together, docs/annotations.md tells how images are found"
    )


def _apply(name: str, files: Mapping[str, str], store: RegionStore) -> dict[str, str]:
    keys = ((image, RULES[name](image, file)) for image, file in files.items())
    return {image: key for image, key in keys if key and key in store}


def _collision(name: str, found: Mapping[str, str]) -> str:
    """Name two images of the file that a rule takes for the same image of the store; nothing where there are none."""
    first: dict[str, str] = {}
    for image, key in found.items():
        if key in first:
            return f"by {name}, images {first[key]!r} and {image!r} would both be image {key!r} of the store"
        first[key] = image
    return ""
