"""dimvl's own lines of JSON, one object each, for people who write their annotations themselves.

`{"image": id or file name, "caption": text}` with `id` if wanted, and `{"image": ..., "question": text}` with `answers`
(what several people said) or `answer` (one, as GQA has it) and, if wanted, `question_id`, `question_type` and
`answer_type`. Other fields are not looked at. Without ids lines are numbered from 0; blank lines do not count.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dimvl.data.annotations.fields import FORMATS, Once, image_name, label, lines, mapping, whole_number, words
from dimvl.data.annotations.records import Caption, Question
from dimvl.errors import UserError


def jsonl_captions(path: Path) -> list[Caption]:
    """Read captions, in the order of the file.

    Raises:
        UserError: a line that is no JSON or lacks a field, an empty caption, or an id that is there twice.

    """
    once = Once("id")
    result: list[Caption] = []
    for place, record in _objects(path, ("image", "caption")):
        image = image_name(record["image"], place, "image")
        number = whole_number(record.get("id", len(result)), "id", place)
        once.check(number, place)
        result.append(Caption(number, image, words(record["caption"], f"caption of image {image}", place), image))
    return result


def jsonl_questions(path: Path) -> list[Question]:
    """Read questions, in the order of the file.

    Raises:
        UserError: a line that is no JSON or lacks a field, an empty question, answers that are no texts, or a question
            id that is there twice.

    """
    once = Once("question_id")
    result: list[Question] = []
    for place, record in _objects(path, ("image", "question")):
        image = image_name(record["image"], place, "image")
        number = whole_number(record.get("question_id", len(result)), "question_id", place)
        once.check(number, place)
        kind, answer_type = (label(record.get(name, ""), name, place) for name in ("question_type", "answer_type"))
        text = words(record["question"], f"question {number} of image {image}", place)
        result.append(Question(number, image, text, _answers(record, number, place), kind, answer_type, image))
    return result


def _objects(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines(path):
        place = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not valid JSON ({error}); give one object a line") from None
        yield place, mapping(value, fields, place)


def _answers(record: dict[str, Any], number: int, place: str) -> tuple[str, ...]:
    if "answer" in record and "answers" in record:
        raise UserError(f"{place}: question {number} has both answer and answers; give one of them")
    given = [record["answer"]] if "answer" in record else record.get("answers", [])
    if not isinstance(given, list):
        raise UserError(f"{place}: the answers of question {number} are no list; {FORMATS}")
    return tuple(label(answer, f"an answer of question {number}", place) for answer in given)
