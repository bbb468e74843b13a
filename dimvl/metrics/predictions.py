"""Read prediction files in the official submission formats.

VQA: `[{"question_id": 1, "answer": "red"}, ...]`. Captions: `[{"image_id": 1, "caption": "a red star"}, ...]`, or with
`images` (a list) instead of `image_id` and optional `times`, as dimvl writes captions of several images. Stories of
VIST: `[{"album_id": 1, "photo_sequence": [...], "story_text_normalized": "..."}, ...]`, the list `output_stories` of
its challenge. Every question, image or album has exactly one record; further fields are ignored. `dimvl/fields.py` says
which ids are the same.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dimvl.data.annotations.records import ImageKey
from dimvl.errors import UserError
from dimvl.fields import Id, identifier, items, mapping
from dimvl.files import read_json
from dimvl.showing import short

_SHOWN = 5  # ids named in a message


def read_answers(path: Path, question_ids: Collection[Id]) -> dict[Id, str]:
    """Read exactly one answer per question, by question id, in the order of `question_ids`.

    Raises:
        UserError: not a VQA v2 submission, or questions are missing, repeated or unknown.

    """
    answers = [
        (str(identifier(record["question_id"], "question_id", place)), text)
        for place, record, text in _read(path, ("question_id",), "answer")
    ]
    written = {str(question_id): question_id for question_id in question_ids}
    found = _one_each(path, answers, written, "question", _shown_id)
    return {written[name]: text for name, text in found.items()}


def official_images(images: tuple[Sequence[Id], Sequence[float]]) -> dict[str, Any]:
    """Return ids and times of images as a prediction names them: `image_id`, or `images` for several, and `times`."""
    ids, times = list(images[0]), [int(time) if time.is_integer() else time for time in images[1]]
    return ({"image_id": ids[0]} if len(ids) == 1 else {"images": ids}) | ({"times": times} if times else {})


def official_caption(images: tuple[Sequence[Id], Sequence[float]], text: str, album: Id | None) -> dict[str, Any]:
    """Return a predicted caption, or the story of an album, as its evaluation reads it."""
    if album is None:
        return {**official_images(images), "caption": text}
    return {"album_id": album, "photo_sequence": list(images[0]), "story_text_normalized": text}


def images_of(prediction: Mapping[str, Any], place: str = "the prediction") -> ImageKey:
    """Return what predictions about the same images have in common; undoes `official_images`.

    Raises:
        UserError: it has no ids of images, or times that are not numbers.

    """
    several = "image_id" not in prediction
    given = prediction["images"] if several else [prediction["image_id"]]
    times = prediction.get("times") or []
    if not isinstance(times, list) or not all(type(time) in (int, float) for time in times):
        raise UserError(f"{place} has times {short(times)}; give a list of numbers")
    ids = tuple(
        str(identifier(one, "images" if several else "image_id", place)) for one in items(given, "images", place)
    )
    return ids, tuple(map(float, times))


def read_predicted_captions(path: Path, images: Collection[ImageKey]) -> dict[ImageKey, str]:
    """Read exactly one caption per image, by the result of `images_of`, in the order of `images`.

    Raises:
        UserError: not a COCO caption submission, or images are missing, repeated or unknown.

    """
    captions = [(images_of(record, place), text) for place, record, text in _read(path, _IMAGES, "caption")]
    return _one_each(path, captions, images, "image", _shown_images)


def read_stories(path: Path, albums: Collection[str]) -> dict[str, str]:
    """Read exactly one story per album, by album id as text, in the order of `albums`.

    Raises:
        UserError: not stories of VIST, or albums are missing, repeated or unknown.

    """
    stories = [
        (str(identifier(record["album_id"], "album_id", place)), text)
        for place, record, text in _read(path, ("album_id",), "story_text_normalized")
    ]
    return _one_each(path, stories, albums, "album", _shown_id)


_IMAGES = ("image_id", "images")


def _shown_images(images: ImageKey) -> str:
    ids, times = images
    name = _shown_id(ids[0]) if len(ids) == 1 else short(list(ids))
    return f"{name} at {short(list(times))} s" if times else name


def _shown_id(name: str) -> str:
    return name if name.isalnum() else short(name)


def _read(path: Path, keys: Sequence[str], text: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield place, record and text of each prediction, which has one of `keys`."""
    form = f'[{{"{keys[0]}": ..., "{text}": "..."}}, ...]'
    content = read_json(path)
    if isinstance(content, dict) and "output_stories" in content:
        content = content["output_stories"]
    if not isinstance(content, list):
        raise UserError(f"{path} does not contain a JSON list; write it as {form}")
    if not content:
        raise UserError(f"{path} is an empty list; write it as {form}")
    for number, record in enumerate(content):
        place = f"{path}: item {number}"
        remedy = f"write the file as {form}"
        name = next((key for key in keys if key in mapping(record, (), place, remedy)), keys[0])
        mapping(record, (name, text), place, remedy)
        if not isinstance(record[text], str):
            value, own = short(record[text]), short(record[name])
            raise UserError(f"{path}: the {text} of {name} {own} is {value}, not a text; put it in quotes")
        yield place, record, record[text]


def _one_each(
    path: Path, found: Sequence[tuple[Any, str]], wanted: Collection[Any], noun: str, shown: Callable[[Any], str]
) -> dict[Any, str]:
    """Return the texts of the wanted ids; refuse repeated, unknown and missing ids, which `shown` makes readable."""
    texts, expected = dict(found), set(wanted)
    if repeated := [one for one, count in Counter(key for key, _ in found).items() if count > 1]:
        raise UserError(f"{path} has {_some(repeated, noun, shown)} more than once; keep one record of each")
    if unknown := [one for one in texts if one not in expected]:
        raise UserError(
            f"{path} has {_some(unknown, noun, shown)} that the annotations lack; give the file of the same split"
        )
    if missing := [one for one in wanted if one not in texts]:
        raise UserError(
            f"{path} lacks {_some(missing, noun, shown)} of {len(expected)}; predict every one, since scores of a part "
            "cannot be compared"
        )
    return {one: texts[one] for one in wanted}


def _some(ids: Sequence[Any], noun: str, shown: Callable[[Any], str]) -> str:
    """Say how many ids there are and name the first."""
    named = ", ".join(map(shown, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")
    return f"{len(ids)} {noun}{'s' if len(ids) > 1 else ''} ({named})"
