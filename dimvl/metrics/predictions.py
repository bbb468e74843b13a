"""Prediction files in the official submission formats, read with nothing of them guessed.

VQA: `[{"question_id": 1, "answer": "red"}, ...]`. Captions: `[{"image_id": 1, "caption": "a red star"}, ...]`. Every
question or image has exactly one record; further fields are left alone.
"""

import reprlib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.files import read_json

SHOWN = 5  # ids named in a message


def read_answers(path: Path, question_ids: Collection[int]) -> dict[int, str]:
    """Read the answers to some questions, by question id, in the order of the questions.

    Args:
        path: in the format of VQA v2 submissions.
        question_ids: exactly these must be answered.

    Raises:
        UserError: not in the format, or questions without an answer, with several or unknown ones.

    """
    found = _read(path, "question_id", "answer")
    if wrong := next((record for record in found if not isinstance(record["question_id"], int)), None):
        raise UserError(f"{path}: question_id {wrong['question_id']!r} is not a whole number; give the question's own")
    _check_once(path, [record["question_id"] for record in found], question_ids, "question")
    answers = {record["question_id"]: record["answer"] for record in found}
    return {question_id: answers[question_id] for question_id in question_ids}


def read_predicted_captions(path: Path, image_ids: Collection[str]) -> dict[str, str]:
    """Read the captions of some images, by image id as text, in the order of the images.

    Args:
        path: in the format of COCO caption submissions.
        image_ids: exactly these must have a caption.

    Raises:
        UserError: not in the format, or images without a caption, with several or unknown ones.

    """
    found = _read(path, "image_id", "caption")
    captions = {str(record["image_id"]): record["caption"] for record in found}
    _check_once(path, [str(record["image_id"]) for record in found], image_ids, "image")
    return {image_id: captions[image_id] for image_id in image_ids}


def _read(path: Path, key: str, text: str) -> list[dict[str, Any]]:
    """Return the records, each checked for its two fields."""
    form = f'[{{"{key}": ..., "{text}": "..."}}, ...]'
    content = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path} holds a {type(content).__name__} and no list; write it as {form}")
    if not content:
        raise UserError(f"{path} is an empty list; write it as {form}")
    for place, record in enumerate(content):
        if not isinstance(record, dict):
            raise UserError(f"{path}: item {place} is a {type(record).__name__} and no mapping; write it as {form}")
        for field in (key, text):
            if field not in record:
                raise UserError(f"{path}: item {place} has no field {field!r}; write the file as {form}")
        if isinstance(record[key], bool) or not isinstance(record[key], int | str):
            raise UserError(
                f"{path}: item {place} has {key} {reprlib.repr(record[key])}, which is no id; give the official one"
            )
        if not isinstance(record[text], str):
            value = reprlib.repr(record[text])
            raise UserError(f"{path}: the {text} of {key} {record[key]} is {value} and no text; put it in quotes")
    return content


def _check_once(path: Path, found: Sequence[Any], wanted: Collection[Any], noun: str) -> None:
    """Refuse records that come twice, belong to nothing, or are missing."""
    expected = set(wanted)
    if doubled := [one for one, count in Counter(found).items() if count > 1]:
        raise UserError(f"{path} has {_some(doubled, noun)} more than once; keep one record of each")
    if unknown := [one for one in found if one not in expected]:
        raise UserError(f"{path} has {_some(unknown, noun)} that the annotations lack; give the file of the same split")
    present = set(found)
    if missing := [one for one in wanted if one not in present]:
        raise UserError(
            f"{path} lacks {_some(missing, noun)} of {len(expected)}; predict every one, since scores of a part "
            "cannot be compared"
        )


def _some(ids: Sequence[Any], noun: str) -> str:
    """Name how many there are and which come first."""
    shown = ", ".join(map(str, ids[:SHOWN])) + (", ..." if len(ids) > SHOWN else "")
    return f"{len(ids)} {noun}{'s' if len(ids) > 1 else ''} ({shown})"
