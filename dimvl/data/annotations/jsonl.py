"""dimvl's own JSON lines, one object for each text, for annotations that users write themselves.

Captions are `{"image": id or file name, "caption": text}` with an optional `id`. Questions are `{"image": ...,
"question": text}` with `answers` (of several people) or `answer` (a single one, as in GQA) and optional `question_id`,
`question_type` and `answer_type`. Phrases are `{"image": ..., "phrase": text, "boxes": [[x1, y1, x2, y2], ...]}` in
pixels, with optional `id`, `width` and `height` of the image, `file_name`, `split` and `types`. A text about several
images has a list `images` instead of `image`; optional `times` are seconds, one for each image, in order. A text about
a video has `video`, the name of its frames. Other fields are ignored. Blank lines do not count. A line without an id
gets its number, from 0, or the next number that no line has as its id.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.data.annotations.phrases import Phrase, boxes_of, check_inside, size_of
from dimvl.data.annotations.records import Caption, ImageKey, Question, name_images
from dimvl.errors import UserError
from dimvl.fields import Id, Once, identifier, items, label, lines, mapping, words
from dimvl.files import open_regular, parse_json, reading
from dimvl.regions.frames import video_name
from dimvl.showing import short

LATEST = float(np.finfo(np.float32).max)
"""Times reach the model as float32."""
_PEEK = 2**20  # bytes; a longer first line is not a record of any format
IDS = ("id", "question_id", "caption_id", "item_id")
"""Names of an id in formats alike; a reader reads one of them."""
TEXTS = ("text", "caption", "question", "sentence", "statement", "phrase")
"""Names of a text, likewise."""
Line = tuple[str, dict[str, Any], tuple[Id, ...], ImageKey]
"""Place, object, images as written, and images as text with their times."""


def jsonl_captions(path: Path, bare: bool = False) -> list[Caption]:
    """Read captions, in the order of the file.

    Args:
        path: the file.
        bare: a line may lack its caption; its text is then empty.

    Raises:
        UserError: a line that is not JSON, a missing or wrong field, an empty caption, or a duplicate id.

    """
    found = list(jsonl_records(path, () if bare else ("caption",), videos=True))
    result = []
    for number, (place, record, written, (images, times)) in zip(jsonl_ids(found, "id"), found, strict=True):
        is_bare = bare and "caption" not in record
        if is_bare:
            refuse_other_name(record, "caption", TEXTS, place)
        text = "" if is_bare else words(record["caption"], f"caption of {name_images(images)}", place)
        result.append(Caption(number, images, text, images, times, written, is_video="video" in record))
    return result


def jsonl_questions(path: Path) -> list[Question]:
    """Read questions, in the order of the file.

    Raises:
        UserError: a line that is not JSON, a missing or wrong field, an empty question, or a duplicate question id.

    """
    found = list(jsonl_records(path, ("question",), videos=True))
    result = []
    for number, (place, record, written, (images, times)) in zip(jsonl_ids(found, "question_id"), found, strict=True):
        kind, answer_type = (label(record.get(name, ""), name, place) for name in ("question_type", "answer_type"))
        text = words(record["question"], f"question {number} of {name_images(images)}", place)
        answers = _answers(record, number, place)
        numbered = "question_id" not in record
        is_video = "video" in record
        result.append(
            Question(number, images, text, answers, kind, answer_type, images, times, written, numbered, is_video)
        )
    return result


def jsonl_phrases(path: Path) -> list[Phrase]:
    """Read phrases, in the order of the file.

    Raises:
        UserError: a line that is not JSON, a missing or wrong field, an empty phrase, several images, a box of another
            form or outside its image, or a duplicate id.

    """
    found = list(jsonl_records(path, ("phrase", "boxes")))
    result = []
    for number, (place, record, written, (images, _)) in zip(jsonl_ids(found, "id"), found, strict=True):
        text = words(record["phrase"], f"phrase {number} of {name_images(images)}", place)
        if len(images) > 1:
            raise UserError(f"{place}: phrase {number} is about {len(images)} images; write a line for each image")
        boxes, size, split = (
            boxes_of(record, f"phrase {number}", place),
            size_of(record, place),
            record.get("split", ""),
        )
        if size is not None:
            check_inside(boxes, size, f"phrase {number}", place)
        kinds = tuple(label(kind, "a type", place) for kind in items(record.get("types", []), "types", place))
        file = str(identifier(record["file_name"], "file_name", place)) if "file_name" in record else images[0]
        split = label(record.get("split", ""), "split", place)
        result.append(Phrase(number, images, text, boxes, size, split, kinds, (file,), written_ids=written))
    return result


def jsonl_ids(found: Sequence[Line], field: str) -> list[Id]:
    """Return the id of each line, those of lines without one last."""
    once = Once(field)
    given: list[Id | None] = []
    for place, record, _, _ in found:
        refuse_other_name(record, field, IDS, place)
        given.append(identifier(record[field], field, place) if field in record else None)
        if given[-1] is not None:
            once.check(given[-1], place)
    free = (number for number in count(len(found)) if str(number) not in once.seen)
    return [
        own if own is not None else number if str(number) not in once.seen else next(free)
        for number, own in enumerate(given)
    ]


def refuse_other_name(record: Mapping[str, Any], field: str, names: Sequence[str], place: str) -> None:
    """Refuse a record that lacks an optional field but has it by the name that other formats give it.

    Raises:
        UserError: it does; what it says would be lost.

    """
    if field not in record and (other := next((name for name in names if name in record), None)):
        raise UserError(f"{place} has {other!r}, which is called {field!r} here; rename it")


def jsonl_records(path: Path, fields: Sequence[str], videos: bool = False) -> Iterator[Line]:
    """Yield each line; `fields` are required besides the images, or besides a video where `videos` may be named."""
    for number, line in lines(path):
        place = f"{path}, line {number}"
        record = mapping(parse_json(line, place, "write one object per line"), (), place)
        if videos and "video" in record:
            mapping(record, fields, place)
            yield place, record, (identifier(record["video"], "video", place),), ((_video(record, place),), ())
            continue
        several = "images" in record
        mapping(record, ("images" if several else "image", *fields), place)
        written = _images(record, place) if several else (identifier(record["image"], "image", place),)
        times = _times(record["times"], len(written), place) if "times" in record else ()
        yield place, record, written, (tuple(map(str, written)), times)


def _video(record: dict[str, Any], place: str) -> str:
    """Return the name of a video, without its ending.

    Raises:
        UserError: the record names images or times too.

    """
    for field in ("image", "images", "times"):
        if field in record:
            raise UserError(f"{place} has both video and {field}, but a video is its frames in the store; keep one")
    return video_name(str(record["video"]))


def first_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in the first line that is not blank; an empty one if there is none.

    Raises:
        UserError: as `open_regular`.

    """
    with open_regular(path) as file, reading(path):
        line = next((line for line in iter(lambda: file.readline(_PEEK), b"") if line.strip()), b"")
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _images(record: dict[str, Any], place: str) -> tuple[Id, ...]:
    """Return the ids or file names in the list `images`.

    Raises:
        UserError: `image` is given too, or `images` is not a list of different images.

    """
    if "image" in record:
        raise UserError(f"{place} has both image and images; keep one of them")
    images = tuple(identifier(image, "image", place) for image in items(record["images"], "images", place))
    if not images:
        raise UserError(f"{place}: images is empty; name at least one image")
    texts = list(map(str, images))
    if twice := [image for number, image in enumerate(texts) if image in texts[:number]]:
        raise UserError(f"{place}: images names {twice[0]!r} twice; name each image once")
    return images


def _times(given: Any, count: int, place: str) -> tuple[float, ...]:
    """Return the seconds of `count` images.

    Raises:
        UserError: not one for each, not a number of seconds from 0, or less than the one before.

    """
    if not isinstance(given, list) or len(given) != count:
        raise UserError(f"{place}: times is {short(given)}; give a list of seconds, one per image ({count})")
    for time in given:
        if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time <= LATEST:
            raise UserError(f"{place}: {short(time)} in times is not a number of seconds; give 0 or more")
    for before, time in pairwise(given):
        if time < before:
            raise UserError(
                f"{place}: times fall from {before:g} to {time:g}; give the images in the order of their times"
            )
    return tuple(map(float, given))


def _answers(record: dict[str, Any], number: Id, place: str) -> tuple[str, ...]:
    if "answer" in record and "answers" in record:
        raise UserError(f"{place}: question {number} has both answer and answers; keep one of them")
    given = [record["answer"]] if "answer" in record else record.get("answers", [])
    listed = items(given, f"answers of question {number}", place)
    return tuple(label(answer, f"an answer of question {number}", place) for answer in listed)
