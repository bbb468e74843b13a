"""Finds the images of annotation files in the region store, and reports the result before training or evaluation.

Annotation files name images by number, file name or URL; a store uses the ids that it was extracted or imported with.
One rule of `RULES` serves a whole file: the one that finds the most images, or the first of these. A rule that would
map two images of the file to one of the store is never used.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dimvl.config import InputsConfig, Missing
from dimvl.data.annotations import Caption, Question
from dimvl.errors import UserError
from dimvl.files import write_json
from dimvl.regions.store import RegionStore

if TYPE_CHECKING:
    from dimvl.data.processor import Processor

logger = logging.getLogger(__name__)
Record = TypeVar("Record", Caption, Question)
SAMPLE = 1000
"""Images of a file on which the rules are tried; all are tried only if none of these is found."""
EXAMPLES = 3

_ENDING = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|gif)$", re.IGNORECASE)
_COCO = re.compile(r"(?:COCO_(?:train|val|test)[0-9]{4}_)?([0-9]{12})", re.IGNORECASE)


def without_ending(file: str) -> str:
    """Return a file name without the extension of an image; other dots stay."""
    return _ENDING.sub("", file)


def coco_number(file: str) -> str:
    """Image id in a COCO file name (`COCO_val2014_000000391895.jpg`, `000000391895.jpg`); empty for other names."""
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
"""Rules in order of preference: (image id, file name) -> id in the store, or empty if the rule does not apply."""


@dataclass(frozen=True, kw_only=True)
class FileMatch:
    """Which images of an annotation file are in the store.

    Attributes:
        path: the annotation file.
        rule: how its images were found, a key of `RULES`.
        store_ids: image id in the file -> id in the store, for the images found.
        missing: image ids in the file that are not in the store.
        texts: number of captions or questions in the file.
        texts_missing: number of those with a missing image.
        times_ignored: number of those with times that the model does not use.

    """

    path: Path
    rule: str
    store_ids: Mapping[str, str]
    missing: Sequence[str]
    texts: int
    texts_missing: int
    times_ignored: int

    def check(self, store: RegionStore, missing: Missing, remedy: str) -> None:
        """Log how the file matches.

        Args:
            store: the regions.
            missing: `error`: every image must be in the store; `skip`: texts with missing images are dropped.
            remedy: the option that drops them.

        Raises:
            UserError: an image is missing, and `missing` is `error`.

        """
        images = len(self.store_ids) + len(self.missing)
        logger.info(
            "%s: %d texts on %d images; %d of these are in the store (each found by %s), %d are not",
            *(self.path, self.texts, images, len(self.store_ids), self.rule, len(self.missing)),
        )
        if self.times_ignored:
            logger.warning(
                "%s: the times of %d texts are ignored; train with inputs.times=true to use them",
                *(self.path, self.times_ignored),
            )
        if not self.missing:
            return
        others = f" and {len(self.missing) - 1:,} others" if len(self.missing) > 1 else ""
        lacks = f"region store {store.path} lacks image {self.missing[0]!r}{others} of the {images:,} of {self.path}"
        if missing == "error":
            raise UserError(f"{lacks}; extract the regions of these images, or drop their texts with {remedy}")
        logger.warning("%s; %d of %d texts are dropped", lacks, self.texts_missing, self.texts)


def match_file(
    path: Path, records: Sequence[Record], store: RegionStore, limits: "InputsConfig | Processor"
) -> FileMatch:
    """Find the images of an annotation file in the store.

    Args:
        path: the file, for messages.
        records: its captions or questions.
        store: the regions.
        limits: what the model accepts.

    Raises:
        UserError: no records, a record with too many images, no image in the store, or two images that would be one.

    """
    if not records:
        raise UserError(f"{path} has no text for any image of the store; check that it is the right file")
    if large := next((record for record in records if len(record.image_ids) > limits.max_images), None):
        raise UserError(
            f"{path}: {large.name} has {len(large.image_ids)} images, more than inputs.max_images {limits.max_images}; "
            "train with a larger inputs.max_images, or remove images"
        )
    files: dict[str, str] = {}
    for record in records:
        files.update(zip(record.image_ids, record.file_names or ("",) * len(record.image_ids), strict=True))
    rule, store_ids = _find(path, files, store)
    missing = [image for image in files if image not in store_ids]
    absent = set(missing)
    return FileMatch(
        path=path,
        rule=rule,
        store_ids=store_ids,
        missing=missing,
        texts=len(records),
        texts_missing=sum(not absent.isdisjoint(record.image_ids) for record in records),
        times_ignored=0 if limits.times else sum(bool(record.times) for record in records),
    )


def match_files(
    files: Sequence[tuple[Path, Sequence[Record]]],
    store: RegionStore,
    limits: "InputsConfig | Processor",
    missing: Missing,
    report: Path,
    dropped: Mapping[str, int] | None = None,
) -> list[Record]:
    """Match the annotation files of a run with its store, and report the result in the log and in a JSON file.

    Args:
        files: path and records of each.
        store: the regions.
        limits: what the model accepts.
        missing: if an image is not in the store: `error`, or `skip` its texts.
        report: the JSON file, written before missing images are refused.
        dropped: reason -> number of texts dropped earlier.

    Returns:
        The records whose images are all in the store, with the store's image ids.

    Raises:
        UserError: as `match_file`, or an image is missing and `missing` is `error`.

    """
    matches = [match_file(path, records, store, limits) for path, records in files]
    found = [record for match, (_, records) in zip(matches, files, strict=True) for record in in_store(records, match)]
    used = np.zeros(len(store), dtype=bool)
    used[store.positions({image for record in found for image in record.image_ids})] = True
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
            logger.warning("%d texts are dropped: %s", count, reason)
    return found


def in_store(records: Sequence[Record], match: FileMatch) -> Iterator[Record]:
    """Yield the records whose images are all in the store, with the store's image ids."""
    for record in records:
        ids = tuple(match.store_ids[image] for image in record.image_ids if image in match.store_ids)
        if len(ids) == len(record.image_ids):
            yield record if ids == record.image_ids else replace(record, image_ids=ids)


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
    """Choose a rule; return its name and the store's id of each image that it finds."""
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
        raise UserError(f"{path}: {collision}; name the images as the store does, see docs/annotations.md")
    theirs = ", ".join(repr(name or image) for image, name in islice(files.items(), EXAMPLES))
    ours = ", ".join(repr(store.image_id(place)) for place in range(min(EXAMPLES, len(store)))) or "nothing"
    raise UserError(
        f"none of the {len(files):,} images of {path} is in the region store {store.path}: the file has {theirs}, "
        f"the store {ours}; give files that belong together (docs/annotations.md says how images are matched)"
    )


def _apply(name: str, files: Mapping[str, str], store: RegionStore) -> dict[str, str]:
    keys = ((image, RULES[name](image, file)) for image, file in files.items())
    return {image: key for image, key in keys if key and key in store}


def _collision(name: str, found: Mapping[str, str]) -> str:
    """Name two images of the file that a rule maps to one image of the store; empty if there are none."""
    first: dict[str, str] = {}
    for image, key in found.items():
        if key in first:
            return f"by {name}, images {first[key]!r} and {image!r} would both be image {key!r} of the store"
        first[key] = image
    return ""
