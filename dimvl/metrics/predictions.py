"""Read prediction files in the official submission formats.

VQA: `[{"question_id": 1, "answer": "red"}, ...]`. Captions: `[{"image_id": 1, "caption": "a red star"}, ...]`, or with
`images` (a list) instead of `image_id` and optional `times`, as dimvl writes captions of several images. Every question
or image has exactly one record; further fields are ignored.
"""

import reprlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dimvl.data.annotations.records import ImageKey
from dimvl.errors import UserError
from dimvl.files import read_json

_SHOWN = 5  # ids named in a message


def read_answers(path: Path, question_ids: Collection[int]) -> dict[int, str]:
    """Read exactly one answer per question, by question id, in the order of `question_ids`.

    Raises:
        UserError: not a VQA v2 submission, or questions are missing, repeated or unknown.

    """
    answers = [(record["question_id"], record["answer"]) for record in _read(path, "question_id", "answer")]
    if wrong := [question_id for question_id, _ in answers if not isinstance(question_id, int)]:
        raise UserError(f"{path}: question_id {wrong[0]!r} is not a whole number; give the question's own")
    return _one_each(path, answers, question_ids, "question")


def official_images(images: ImageKey) -> dict[str, Any]:
    """Return images as a prediction names them: `image_id`, or `images` for several, and their `times` if any.

    Whole numbers are written as such.
    """
    ids = [int(name) if name.isdecimal() and name == str(int(name)) else name for name in images[0]]
    times = [int(time) if time.is_integer() else time for time in images[1]]
    return ({"image_id": ids[0]} if len(ids) == 1 else {"images": ids}) | ({"times": times} if times else {})


def images_of(prediction: Mapping[str, Any]) -> str:
    """Return one text for the image or images that `official_images` names; for one without times it is its id."""
    name = str(prediction["image_id"] if "image_id" in prediction else list(map(str, prediction["images"])))
    return f"{name} at {prediction['times']}" if prediction.get("times") else name


def read_predicted_captions(path: Path, images: Collection[str]) -> dict[str, str]:
    """Read exactly one caption per image, by the text of `images_of`, in the order of `images`.

    Raises:
        UserError: not a COCO caption submission, or images are missing, repeated or unknown.

    """
    captions = [(images_of(record), record["caption"]) for record in _read(path, "image_id", "caption")]
    return _one_each(path, captions, images, "image")


def _read(path: Path, key: str, text: str) -> list[dict[str, Any]]:
    """Return records with an id (int or str) or, for images, a list of ids, and with a text."""
    form = f'[{{"{key}": ..., "{text}": "..."}}, ...]'
    content = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path} does not contain a JSON list; write it as {form}")
    if not content:
        raise UserError(f"{path} is an empty list; write it as {form}")
    for place, record in enumerate(content):
        if not isinstance(record, dict):
            raise UserError(f"{path}: item {place} is not a JSON object; write the file as {form}")
        several = key == "image_id" and key not in record and isinstance(record.get("images"), list)
        name = "images" if several else key
        for field in (name, text):
            if field not in record:
                raise UserError(f"{path}: item {place} has no field {field!r}; write the file as {form}")
        for one in record[name] if several else [record[name]]:
            if isinstance(one, bool) or not isinstance(one, int | str):
                value = reprlib.repr(one)
                raise UserError(f"{path}: item {place} has {name} {value}, which is not an id; give the official one")
        if not isinstance(record[text], str):
            value = reprlib.repr(record[text])
            raise UserError(f"{path}: the {text} of {name} {record[name]} is {value}, not a text; put it in quotes")
    return content


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
