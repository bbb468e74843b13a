"""VCR (Zellers et al., CVPR 2019): questions with four answers, and four rationales of an answer, as JSON lines.

A line has `objects`, `img_fn`, `annot_id`, `question`, `answer_choices`, `rationale_choices` and, if published,
`answer_label` and `rationale_label`. Texts are lists of words, in which a list such as [0, 2] refers to objects. A line
gives two questions: which answer (Q->A), and, with the right answer appended, which rationale (QA->R).

A reference becomes the name of its region: a person's is a neutral one of a list, as in the authors' code (rowanz/r2c),
another object's its class. Different on purpose: names depend on the image alone, so one image serves all its
questions; the second chair is `chair 2`, so no two regions share a name; and the list has Peyton once. `vcr_boxes`
writes boxes with these names for `dimvl extract --boxes`; with `inputs.concepts: region`, a word of the text then finds
the region with the same word.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dimvl.data.annotations.records import Choice
from dimvl.errors import UserError
from dimvl.fields import Once, check_candidates, identifier, items, label, lines, mapping, pixels, place_of_answer
from dimvl.files import inside, parse_json, read_json
from dimvl.showing import short

PEOPLE = (
    *("casey", "riley", "jessie", "jackie", "avery", "jaime", "peyton"),
    *("kerry", "jody", "kendall", "skyler", "frankie", "pat", "quinn"),
)
"""Names that do not tell a gender, for the people of an image in order."""
_FIELDS = ("objects", "img_fn", "annot_id", "question", "answer_choices", "rationale_choices")


def is_vcr(path: Path) -> bool:
    """Return whether the first line of a file is one of VCR's."""
    number, line = next(lines(path), (0, "{}"))
    first = parse_json(line, f"{path}, line {number}", "write one object per line")
    return isinstance(first, dict) and "answer_choices" in first


def vcr_choices(path: Path, every_answer: bool) -> Iterator[Choice]:
    """Yield the questions of each line: which answer, and which rationale of an answer.

    Args:
        path: the file.
        every_answer: ask for the rationale of each answer, not only of the right one; only that of the right one then
            has an answer.

    Raises:
        UserError: a missing or wrong field, a duplicate id, a reference to an object that is not there, or a right
            candidate that is there twice.

    """
    once = Once("annot_id")
    for place, record, names in _records(path, _FIELDS):
        once.check(choice_id := identifier(record["annot_id"], "annot_id", place), place)
        image = str(identifier(record["img_fn"], "img_fn", place))
        question = _text(record["question"], names, "question", place)
        candidates, labels = {}, dict[str, int | None]()
        for kind in ("answer", "rationale"):
            name = f"{kind}_choices"
            given = items(record[name], name, place)
            candidates[kind] = tuple(_text(one, names, name, place) for one in given)
            own = record.get(f"{kind}_label")
            labels[kind] = None if own is None else place_of_answer(own, len(given), f"{kind}_label", place)
            check_candidates(candidates[kind], f"{place}: {name}", twins=True, answer=labels[kind])
        yield Choice(choice_id, (image,), question, candidates["answer"], labels["answer"], "answer", (image,))
        for number, answer in enumerate(candidates["answer"]):
            right = number == labels["answer"]
            if right or every_answer:
                text, part = f"{question} {answer}", f"rationale-{number}"
                wanted = labels["rationale"] if right else None
                yield Choice(choice_id, (image,), text, candidates["rationale"], wanted, part, (image,))


def region_names(objects: Sequence[str]) -> list[str]:
    """Return the name of each object of an image; no two are equal."""
    seen, names = Counter[str](), list[str]()
    for kind in objects:
        name, number = kind, seen[kind]
        if kind == "person":
            name, number = PEOPLE[seen[kind] % len(PEOPLE)], seen[kind] // len(PEOPLE)
        seen[kind] += 1
        names.append(f"{name} {number + 1}" if number else name)
    return names


def vcr_boxes(paths: Sequence[Path], images: Path) -> dict[str, Any]:
    """Return the boxes of the images of files as a COCO annotation file, named as the questions name them.

    Args:
        paths: the files.
        images: folder of the images, `vcr1images`, where `metadata_fn` names a file of `boxes`, `width` and `height`.

    Raises:
        UserError: a file is missing or has another form, or has not one box for each object.

    """
    categories, files = dict[str, int](), dict[str, dict[str, Any]]()
    annotations: list[dict[str, Any]] = []
    fields = ("objects", "img_fn", "metadata_fn")
    for place, record, names in (line for path in paths for line in _records(path, fields)):
        image = str(identifier(record["img_fn"], "img_fn", place))
        if image in files:
            continue
        file = inside(images, str(identifier(record["metadata_fn"], "metadata_fn", place)))
        content = mapping(read_json(file), ("boxes", "width", "height"), str(file))
        boxes = items(content["boxes"], "boxes", str(file))
        if len(boxes) != len(names):
            raise UserError(
                f"{file} has {len(boxes)} boxes but {place} has {len(names)} objects; give the files that belong "
                "together"
            )
        size = {name: pixels(content, name, str(file)) for name in ("width", "height")}
        files[image] = {"id": image, "file_name": image, **size}
        for number, (name, box) in enumerate(zip(names, boxes, strict=True)):
            annotations.append(
                {
                    "image_id": files[image]["id"],
                    "category_id": categories.setdefault(name, len(categories)),
                    "bbox": _xywh(box, size, f"{file}: box {number}"),
                }
            )
    return {
        "images": list(files.values()),
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }


def _xywh(box: Any, size: dict[str, int], place: str) -> list[float]:
    """Turn x1, y1, x2, y2, score in pixels into x, y, width, height."""
    wrong = UserError(f"{place} is {short(box)}, not x1, y1, x2, y2 and a score within the image; correct it")
    if not isinstance(box, list) or len(box) < 4 or any(type(side) not in (int, float) for side in box):
        raise wrong
    x1, y1, x2, y2 = box[:4]
    if not (-1 <= x1 < x2 <= size["width"] + 1 and -1 <= y1 < y2 <= size["height"] + 1):  # a pixel of rounding
        raise wrong
    return [x1, y1, x2 - x1, y2 - y1]


def _records(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Yield place, line, and the names of its objects."""
    for number, line in lines(path):
        place = f"{path}, line {number}"
        record = mapping(parse_json(line, place, "write one object per line"), fields, place)
        objects = [label(kind, "an object", place) for kind in items(record["objects"], "objects", place)]
        yield place, record, region_names(objects)


def _text(tokens: Any, names: Sequence[str], name: str, place: str) -> str:
    """Return the words of a text, with the names of the objects that it refers to."""
    found = list[str]()
    for token in items(tokens, f"a text of {name}", place):
        if not isinstance(token, list):
            found.append(label(token, f"a word of {name}", place))
            continue
        for reference in token:
            if type(reference) is not int or not 0 <= reference < len(names):
                raise UserError(
                    f"{place}: {name} refers to object {short(reference)} of {len(names)}; give numbers from 0 of "
                    "objects"
                )
        found.append(" and ".join(names[reference] for reference in token))
    text = " ".join(found).strip()
    if not text:
        raise UserError(f"{place}: a text of {name} is empty; fix or remove it")
    return text
