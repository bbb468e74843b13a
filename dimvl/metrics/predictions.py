"""Read prediction files in the official submission formats.

VQA: `[{"question_id": 1, "answer": "red"}, ...]`. Captions: `[{"image_id": 1, "caption": "a red star"}, ...]`. Every
question or image has exactly one record; further fields are ignored.
"""

import reprlib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.files import read_json

_SHOWN = 5  # ids named in a message


def read_answers(path: Path, question_ids: Collection[int]) -> dict[int, str]:
    """Read exactly one answer per question, by question id, in the order of `question_ids`.

    Raises:
        UserError: not a VQA v2 submission, or questions are missing, repeated or unknown.

    """
    answers = _read(path, "question_id", "answer")
    if wrong := [question_id for question_id, _ in answers if not isinstance(question_id, int)]:
        raise UserError(f"{path}: question_id {wrong[0]!r} is not a whole number; give the question's own")
    return _one_each(path, answers, question_ids, "question")


def read_predicted_captions(path: Path, image_ids: Collection[str]) -> dict[str, str]:
    """Read exactly one caption per image, by image id as text, in the order of `image_ids`.

    Raises:
        UserError: not a COCO caption submission, or images are missing, repeated or unknown.

    """
    captions = [(str(image_id), text) for image_id, text in _read(path, "image_id", "caption")]
    return _one_each(path, captions, image_ids, "image")


def _read(path: Path, key: str, text: str) -> list[tuple[Any, str]]:
    """Return the two fields of each record, an id (int or str) and a text."""
    form = f'[{{"{key}": ..., "{text}": "..."}}, ...]'
    content = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path} does not contain a JSON list; write it as {form}")
    if not content:
        raise UserError(f"{path} is an empty list; write it as {form}")
    for place, record in enumerate(content):
        if not isinstance(record, dict):
            raise UserError(f"{path}: item {place} is not a JSON object; write the file as {form}")
        for field in (key, text):
            if field not in record:
                raise UserError(f"{path}: item {place} has no field {field!r}; write the file as {form}")
        if isinstance(record[key], bool) or not isinstance(record[key], int | str):
            value = reprlib.repr(record[key])
            raise UserError(f"{path}: item {place} has {key} {value}, which is not an id; give the official one")
        if not isinstance(record[text], str):
            value = reprlib.repr(record[text])
            raise UserError(f"{path}: the {text} of {key} {record[key]} is {value}, not a text; put it in quotes")
    return [(record[key], record[text]) for record in content]


def _one_each(path: Path, found: Sequence[tuple[Any, str]], wanted: Collection[Any], noun: str) -> dict[Any, str]:
    """Return the texts of the wanted ids; refuse repeated, unknown and missing ids."""
    texts, expected = dict(found), set(wanted)
    if repeated := [one for one, count in Counter(key for key, _ in found).items() if count > 1]:
        raise UserError(f"{path} has {_some(repeated, noun)} more than once; keep one record of each")
    if unknown := [one for one in texts if one not in expected]:
        raise UserError(f"{path} has {_some(unknown, noun)} that the annotations lack; give the file of the same split")
    if missing := [one for one in wanted if one not in texts]:
        raise UserError(
            f"{path} lacks {_some(missing, noun)} of {len(expected)}; predict every one, since scores of a part "
            "cannot be compared"
        )
    return {one: texts[one] for one in wanted}


def _some(ids: Sequence[Any], noun: str) -> str:
    """Say how many ids there are and name the first."""
    shown = ", ".join(map(str, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")
    return f"{len(ids)} {noun}{'s' if len(ids) > 1 else ''} ({shown})"
