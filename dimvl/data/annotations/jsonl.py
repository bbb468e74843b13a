"""dimvl's own JSON lines, one object for each text, for annotations that users write themselves.

Captions are `{"image": id or file name, "caption": text}` with an optional `id`. Questions are `{"image": ...,
"question": text}` with `answers` (of several people) or `answer` (a single one, as in GQA) and optional `question_id`,
`question_type` and `answer_type`. A text about several images has a list `images` instead of `image`; optional `times`
are seconds, one for each image. Other fields are ignored. Lines without an id are numbered from 0; blank lines do not
count.
"""

import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.data.annotations.fields import FORMATS, Once, image_name, label, lines, mapping, whole_number, words
from dimvl.data.annotations.records import Caption, ImageKey, Question, name_images
from dimvl.errors import UserError

LATEST = float(np.finfo(np.float32).max)
"""Times reach the model as float32."""


def jsonl_captions(path: Path) -> list[Caption]:
    """Read captions, in the order of the file.

    Raises:
        UserError: a line that is not JSON, a missing or wrong field, an empty caption, or a duplicate id.

    """
    once = Once("id")
    result: list[Caption] = []
    for place, record, (images, times) in _records(path, "caption"):
        number = whole_number(record.get("id", len(result)), "id", place)
        once.check(number, place)
        text = words(record["caption"], f"caption of {name_images(images)}", place)
        result.append(Caption(number, images, text, images, times))
    return result


def jsonl_questions(path: Path) -> list[Question]:
    """Read questions, in the order of the file.

    Raises:
        UserError: a line that is not JSON, a missing or wrong field, an empty question, or a duplicate question id.

    """
    once = Once("question_id")
    result: list[Question] = []
    for place, record, (images, times) in _records(path, "question"):
        number = whole_number(record.get("question_id", len(result)), "question_id", place)
        once.check(number, place)
        kind, answer_type = (label(record.get(name, ""), name, place) for name in ("question_type", "answer_type"))
        text = words(record["question"], f"question {number} of {name_images(images)}", place)
        answers = _answers(record, number, place)
        result.append(Question(number, images, text, answers, kind, answer_type, images, times))
    return result


def _records(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any], ImageKey]]:
    """Yield place, object and images of each line; `text` is the field with the text."""
    for number, line in lines(path):
        place = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not valid JSON ({error}); write one object per line") from None
        several = isinstance(value, dict) and "images" in value
        record = mapping(value, ("images" if several else "image", text), place)
        images = _images(record, place) if several else (image_name(record["image"], place, "image"),)
        yield place, record, (images, _times(record["times"], len(images), place) if "times" in record else ())


def _images(record: dict[str, Any], place: str) -> tuple[str, ...]:
    """Return the ids or file names in the list `images`.

    Raises:
        UserError: `image` is given too, or `images` is not a list of different images.

    """
    if "image" in record:
        raise UserError(f"{place} has both image and images; keep one of them")
    given = record["images"]
    if not isinstance(given, list):
        raise UserError(f"{place}: images is {reprlib.repr(given)}, not a list; write it in brackets, or as image")
    if not given:
        raise UserError(f"{place}: images is empty; name at least one image")
    images = tuple(image_name(image, place, "image") for image in given)
    if twice := [image for number, image in enumerate(images) if image in images[:number]]:
        raise UserError(f"{place}: images names {twice[0]!r} twice; name each image once")
    return images


def _times(given: Any, count: int, place: str) -> tuple[float, ...]:
    """Return the seconds of `count` images.

    Raises:
        UserError: not one for each, or not a number of seconds from 0.

    """
    if not isinstance(given, list) or len(given) != count:
        raise UserError(f"{place}: times is {reprlib.repr(given)}; give a list of seconds, one per image ({count})")
    for time in given:
        if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time <= LATEST:
            raise UserError(f"{place}: {reprlib.repr(time)} in times is not a number of seconds; give 0 or more")
    return tuple(map(float, given))


def _answers(record: dict[str, Any], number: int, place: str) -> tuple[str, ...]:
    if "answer" in record and "answers" in record:
        raise UserError(f"{place}: question {number} has both answer and answers; keep one of them")
    given = [record["answer"]] if "answer" in record else record.get("answers", [])
    if not isinstance(given, list):
        raise UserError(f"{place}: the answers of question {number} are not a list; {FORMATS}")
    return tuple(label(answer, f"an answer of question {number}", place) for answer in given)
