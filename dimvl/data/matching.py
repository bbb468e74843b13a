"""Finds the images of annotation files in the region store, and reports the result before training or evaluation.

Annotation files name images by number, file name or URL; a store uses the ids that it was extracted or imported with.
One rule of `RULES` serves a whole file: the one that finds the most images, or the first of these. A rule that would
map two images of the file to one of the store is never used. Where another rule finds at least half as many images but
others, or two files mean different images by one id, the user must choose the rule.
"""

import logging
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from dimvl.config import InputsConfig, Match, Missing
from dimvl.data.annotations import Caption, Choice, LabelledItem, Phrase, Question
from dimvl.data.examples import keyed_generator
from dimvl.errors import UserError
from dimvl.files import write_json
from dimvl.regions.frames import Frames, videos_of
from dimvl.regions.matching import choose_rule
from dimvl.regions.store import RegionStore
from dimvl.showing import counted, with_others

if TYPE_CHECKING:
    from dimvl.data.processor import Processor

logger = logging.getLogger(__name__)
Record = TypeVar("Record", Caption, Question, Choice, LabelledItem, Phrase)
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
    "id": lambda image_id, file: image_id,
    "file_name": lambda image_id, file: _name(file),
    "stem": lambda image_id, file: without_ending(_name(file)),
    "path_stem": lambda image_id, file: without_ending(file),
    "coco_number": lambda image_id, file: coco_number(file or image_id),
    "twelve_digits": lambda image_id, file: _twelve_digits(image_id),
}
"""Rules in order of preference: (image id, file name) -> id in the store, or empty if the rule does not apply."""


class Subset(NamedTuple):
    """A part of the texts to train on.

    Attributes:
        number: how many to draw; None takes all.
        seed: of the draw; the same seed puts smaller subsets inside larger ones.
        noun: what is counted, such as `question`.
        key: record -> what it belongs to; records with the same one are drawn together.

    """

    number: int | None
    seed: int
    noun: str
    key: Callable[[Any], Hashable]

    def of(self, records: Sequence[Record], files: str) -> list[Record]:
        """Draw, in the order of the records.

        Raises:
            UserError: there are fewer.

        """
        if self.number is None:
            return list(records)
        keys = list(dict.fromkeys(map(self.key, records)))
        if self.number > len(keys):
            raise UserError(f"subset is {self.number:,} but {files} has {counted(len(keys), self.noun)}; lower subset")
        order = keyed_generator(self.seed, "subset").permutation(len(keys))
        chosen = {keys[place] for place in order[: self.number]}
        return [record for record in records if self.key(record) in chosen]


@dataclass(frozen=True, kw_only=True)
class FileMatch:
    """Which images of an annotation file are in the store.

    Attributes:
        path: the annotation file.
        rule: how its images were found, a key of `RULES`.
        store_ids: image id in the file -> id in the store, for the images found.
        file_names: image id in the file -> its file name, path or URL; empty if the file has none.
        missing: image ids in the file that are not in the store.
        texts: number of captions or questions in the file.
        texts_missing: number of those with a missing image.
        times_ignored: number of those with times that the model does not use.
        untagged: number of those about more images than the budget of tags has word pieces for.
        videos: video in the file -> its frames in the store and their times, for the videos found.

    """

    path: Path
    rule: str
    store_ids: Mapping[str, str]
    file_names: Mapping[str, str]
    missing: Sequence[str]
    texts: int
    texts_missing: int
    times_ignored: int
    untagged: int = 0
    videos: Mapping[str, Frames] = field(default_factory=dict)

    def check(self, store: RegionStore, missing: Missing, remedy: str) -> None:
        """Log how the file matches.

        Args:
            store: the regions.
            missing: `error`: every image must be in the store; `skip`: texts with missing images are dropped.
            remedy: the option that drops them.

        Raises:
            UserError: an image is missing, and `missing` is `error`.

        """
        found = len(self.store_ids) + len(self.videos)
        images = found + len(self.missing)
        logger.info(
            "%s: %d texts on %d images; %d of these are in the store (found by %s), %d are not",
            *(self.path, self.texts, images, found, self.rule, len(self.missing)),
        )
        if self.times_ignored:
            logger.warning(
                "%s: the times of %d texts are ignored; train with inputs.times=true to use them",
                *(self.path, self.times_ignored),
            )
        if self.untagged:
            logger.warning(
                "%s: %d texts are about too many images for tags; raise inputs.concept_tokens, from pretraining on",
                *(self.path, self.untagged),
            )
        if not self.missing:
            return
        what, way = "image", "extract the regions of these images"
        if self.missing[0] not in self.file_names:
            what, way = "the frames of video", "cut these videos with `dimvl frames` and extract their regions"
        absent = with_others(self.missing[0], len(self.missing))
        lacks = f"region store {store.path} lacks {what} {absent} of the {images:,} of {self.path}"
        if missing == "error":
            raise UserError(f"{lacks}; {way}, or drop their texts with {remedy}")
        logger.warning("%s; %d of %d texts are dropped", lacks, self.texts_missing, self.texts)


def match_file(
    path: Path,
    records: Sequence[Record],
    store: RegionStore,
    limits: "InputsConfig | Processor",
    rule: Match = "auto",
    option: str = "match=",
) -> FileMatch:
    """Find the images of an annotation file in the store, and the frames of its videos.

    Args:
        path: the file, for messages.
        records: its captions or questions.
        store: the regions.
        limits: what the model accepts.
        rule: how images are found: a key of `RULES`, or `auto` to choose one.
        option: how the user chooses a rule, for messages.

    Raises:
        UserError: no records, a record with too many images, no image in the store, two images that would be one, or
            two rules that find different images.

    """
    if not records:
        raise UserError(f"{path} has no text for any image of the store; check that it is the right file")
    named = list(dict.fromkeys(record.image_id for record in records if record.is_video))
    videos = _find_videos(path, named, store)
    untagged = 0
    for record in records:
        number = len(videos.get(record.image_id, [()])[0]) if record.is_video else len(record.image_ids)
        untagged += number > (limits.tag_tokens + 1) // 2 and limits.tag_tokens > 0  # see `TagWriter.room`
        if number > limits.max_images:
            raise UserError(
                f"{path}: {record.name} has {number} images, more than inputs.max_images {limits.max_images}; "
                "train with a larger inputs.max_images, or remove images"
            )
    files: dict[str, str] = {}
    for record in records:
        if not record.is_video:
            files.update(zip(record.image_ids, record.file_names or ("",) * len(record.image_ids), strict=True))
    found_by, store_ids = _find(path, files, store, rule, option) if files else ("the names of frames", {})
    missing = [image for image in files if image not in store_ids] + [name for name in named if name not in videos]
    absent = set(missing)
    return FileMatch(
        path=path,
        rule=found_by,
        store_ids=store_ids,
        file_names=files,
        missing=missing,
        texts=len(records),
        texts_missing=sum(not absent.isdisjoint(record.image_ids) for record in records),
        times_ignored=0 if limits.times else sum(bool(record.times) or record.is_video for record in records),
        untagged=untagged,
        videos=videos,
    )


def match_files(
    files: Sequence[tuple[Path, Sequence[Record]]],
    store: RegionStore,
    limits: "InputsConfig | Processor",
    missing: Missing,
    report: Path,
    dropped: Mapping[str, int] | None = None,
    rule: Match = "auto",
    subset: Subset | None = None,
) -> list[Record]:
    """Match the annotation files of a run with its store, and report the result in the log and in a JSON file.

    Args:
        files: path and records of each.
        store: the regions.
        limits: what the model accepts.
        missing: if an image is not in the store: `error`, or `skip` its texts.
        report: the JSON file, written before missing images are refused.
        dropped: reason -> number of texts dropped earlier.
        rule: how images are found, as in `match_file`.
        subset: which of the records whose images are in the store to keep; by default all.

    Returns:
        The records whose images are all in the store, with the store's image ids.

    Raises:
        UserError: as `match_file`; an image is missing and `missing` is `error`; with the rule `auto`, two files
            give an image different file names; or there are fewer texts than the subset asks for.

    """
    matches = [match_file(path, records, store, limits, rule) for path, records in files]
    if rule == "auto":
        _check_file_names(matches)
    found = [record for match, (_, records) in zip(matches, files, strict=True) for record in in_store(records, match)]
    matched = len(found)
    if subset is not None:
        found = subset.of(found, ", ".join(str(path) for path, _ in files))
    used = np.zeros(len(store), dtype=bool)
    used[store.positions({image for record in found for image in record.image_ids})] = True
    unused = np.flatnonzero(~used)
    dropped = {**(dropped or {}), "image not in the store": sum(match.texts_missing for match in matches)}
    dropped |= {"not drawn for subset": matched - len(found)} if matched > len(found) else {}
    write_json(
        report,
        {
            "files": [_as_json(match) for match in matches],
            "store": {
                "images": len(store),
                "without_text": len(unused),
                "without_text_examples": [store.image_id(int(place)) for place in unused[:EXAMPLES]],
            },
            "texts_used": len(found),
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
        if record.is_video:
            if record.image_id in match.videos:
                frames, seconds = match.videos[record.image_id]
                yield replace(record, image_ids=frames, times=seconds, file_names=())
            continue
        ids = tuple(match.store_ids[image] for image in record.image_ids if image in match.store_ids)
        if len(ids) == len(record.image_ids):
            yield record if ids == record.image_ids else replace(record, image_ids=ids)


def _as_json(match: FileMatch) -> dict[str, Any]:
    return {
        "file": match.path.name,
        "texts": match.texts,
        "images_found": len(match.store_ids) + len(match.videos),
        "found_by": match.rule,
        "images_missing": len(match.missing),
        "missing_examples": list(match.missing[:EXAMPLES]),
    }


def _find_videos(path: Path, named: Sequence[str], store: RegionStore) -> dict[str, Frames]:
    """Return the frames of the videos that a file names; raises a `UserError` if there is none of any."""
    if not named:
        return {}
    known = videos_of(map(store.image_id, range(len(store))))
    found = {name: known[name] for name in named if name in known}
    if not found:
        theirs = f"such as {next(iter(known))!r}" if known else "of no video"
        raise UserError(
            f"region store {store.path} has frames {theirs}, but none of the {counted(len(named), 'video')} of {path}, "
            f"such as {named[0]!r}; cut the videos with `dimvl frames`, extract the regions of the frames, and give "
            "that store"
        )
    return found


def _find(
    path: Path, files: Mapping[str, str], store: RegionStore, rule: Match, option: str
) -> tuple[str, dict[str, str]]:
    """Choose a rule; return its name and the store's id of each image that it finds."""
    tried = list(RULES) if rule == "auto" else [rule]
    if rule == "auto":
        sample = dict(islice(files.items(), 0, None, max(1, len(files) // SAMPLE)))
        tried = list(_apply(tried, sample, store)) or tried
    found = _apply(tried, files, store)
    if usable := {name: ids for name, ids in found.items() if len(set(ids.values())) == len(ids)}:
        best = choose_rule(usable, str(path), lambda name: f"{option}{name}")
        return best, usable[best]
    for name, ids in found.items():
        collision = _collision(name, ids)
        raise UserError(f"{path}: {collision}; name the images as the store does, see docs/annotations.md")
    theirs = ", ".join(repr(name or image) for image, name in islice(files.items(), EXAMPLES))
    ours = ", ".join(repr(store.image_id(place)) for place in range(min(EXAMPLES, len(store)))) or "nothing"
    by = "" if rule == "auto" else f" by {rule}"
    raise UserError(
        f"none of the {len(files):,} images of {path} is in the region store {store.path}{by}: the file has {theirs}, "
        f"the store {ours}; give files that belong together (docs/annotations.md says how images are matched)"
    )


def _apply(rules: Sequence[str], files: Mapping[str, str], store: RegionStore) -> dict[str, dict[str, str]]:
    """Return what each rule finds, without rules that find nothing: rule -> image in the file -> id in the store."""
    keys = {name: {image: RULES[name](image, file) for image, file in files.items()} for name in rules}
    known = {key: key in store for each in keys.values() for key in each.values() if key}
    found = {name: {image: key for image, key in each.items() if known.get(key)} for name, each in keys.items()}
    return {name: ids for name, ids in found.items() if ids}


def _collision(name: str, found: Mapping[str, str]) -> str:
    """Name two images of the file that a rule maps to one image of the store."""
    first: dict[str, str] = {}
    twins = ((first.setdefault(key, image), image, key) for image, key in found.items())
    one, other, key = next(twin for twin in twins if twin[0] != twin[1])
    return f"by {name}, images {one!r} and {other!r} would both be image {key!r} of the store"


def _check_file_names(matches: Sequence[FileMatch]) -> None:
    """Check that no image of the store has different file names in different files."""
    known: dict[str, tuple[str, Path]] = {}
    for match in matches:
        for image, store_id in match.store_ids.items():
            file = match.file_names[image]
            if not file or (file == image and not _ENDING.search(file)):
                continue  # no file name, or an id of the user's own in its place
            other, path = known.setdefault(store_id, (file, match.path))
            if not _may_be_one(file, other):
                raise UserError(
                    f"image {store_id!r} of the store is {other} in {path} but {file} in {match.path}; give each image "
                    "its own id, or if they are the same, say how images are found with match="
                    f"{match.rule}"
                )


def _may_be_one(file: str, other: str) -> bool:
    """Whether two names may be of one file: the same COCO number, or the same path as far as both have folders."""
    if file == other or (coco_number(file) and coco_number(file) == coco_number(other)):
        return True
    parts, others = _parts(file), _parts(other)
    count = min(len(parts), len(others))
    return parts[-count:] == others[-count:]


def _parts(file: str) -> list[str]:
    return without_ending(_name(file) if "://" in file else file).split("/")
