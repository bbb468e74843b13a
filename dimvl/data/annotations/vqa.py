"""Questions and answers of VQA v2 Open-Ended and OK-VQA: a file of questions and, if published, one of annotations.

`{"questions": [{"question_id", "image_id", "question"}, ...]}` and `{"annotations": [{"question_id", "answers":
[{"answer"}, ...], "question_type", "answer_type"}, ...]}`. COCO's file names follow from `data_subtype`.

A-OKVQA (Schwenk et al., ECCV 2022) is one file, a list of `{"question_id", "image_id", "question", "direct_answers"}`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dimvl.data.annotations.records import Question
from dimvl.errors import UserError
from dimvl.fields import Id, Once, identifier, items, label, mapping, records, words
from dimvl.files import read_json

_SUBTYPE = re.compile(r"(train|val|test)(?:-dev)?([0-9]{4})")


def vqa_questions(path: Path, content: Any, annotations: Path | None) -> list[Question]:
    """Read questions and their answers, in the order of the question file.

    Args:
        path: the question file, for messages.
        content: its JSON value.
        annotations: the annotation file; None if answers are not published.

    Raises:
        UserError: another format, an empty question, a duplicate question id, a question without annotation, or an
            annotation that names another image; or annotations of a file that has its own answers.

    """
    if isinstance(content, list):
        if annotations is not None:
            raise UserError(f"{path} contains its own answers; remove the annotations {annotations}")
        return _a_okvqa(path, content)
    answers = {} if annotations is None else _annotations(annotations)
    once, ids = Once("question_id"), dict[str, tuple[tuple[str], tuple[Id]]]()
    result = []
    for place, record in records(path, content, "questions", ("question_id", "image_id", "question")):
        number = identifier(record["question_id"], "question_id", place)
        written = identifier(record["image_id"], "image_id", place)
        image = str(written)
        once.check(number, place)
        text = words(record["question"], f"question {number} of image {image}", place)
        if annotations is not None and str(number) not in answers:
            raise UserError(
                f"{annotations} has no annotation for question {number}; give the annotation file of {path}"
            )
        own_image, given, kind, answer_type = answers.get(str(number), (image, (), "", ""))
        if own_image not in (image, ""):
            raise UserError(
                f"question {number} is about image {own_image} in {annotations} but about image {image} in {path}; "
                "give files that belong together"
            )
        images, named = ids.setdefault(image, ((image,), (written,)))
        files = _file_names(content, image)
        result.append(Question(number, images, text, given, kind, answer_type, files, written_ids=named))
    return result


def _a_okvqa(path: Path, content: list[Any]) -> list[Question]:
    once, result = Once("question_id"), []
    for place, record in records(path, {"file": content}, "file", ("question_id", "image_id", "question")):
        number, image = (identifier(record[name], name, place) for name in ("question_id", "image_id"))
        once.check(number, place)
        text, what = words(record["question"], f"question {number}", place), f"direct_answers of question {number}"
        answers = tuple(label(answer, what, place) for answer in items(record.get("direct_answers", []), what, place))
        result.append(Question(number, (str(image),), text, answers, written_ids=(image,)))
    return result


def _annotations(path: Path) -> dict[str, tuple[str, tuple[str, ...], str, str]]:
    """Image, answers, question type and answer type by question id as text; the image is empty if not given."""
    once = Once("question_id")
    result = {}
    for place, record in records(path, read_json(path), "annotations", ("question_id", "answers")):
        number = identifier(record["question_id"], "question_id", place)
        once.check(number, place)
        what = f"an answer of question {number}"
        where, answers = f"{place}: {what}", items(record["answers"], f"answers of question {number}", place)
        given = _labels([mapping(one, ("answer",), where)["answer"] for one in answers], what, place)
        kind, answer_type = (label(record.get(name, ""), name, place) for name in ("question_type", "answer_type"))
        image = str(identifier(record["image_id"], "image_id", place)) if "image_id" in record else ""
        result[str(number)] = (image, given, kind, answer_type)
    return result


def _labels(texts: Sequence[Any], what: str, place: str) -> tuple[str, ...]:
    """Check answers to a question; where all people agree, one for all."""
    if texts and isinstance(texts[0], str) and texts.count(texts[0]) == len(texts):
        return (label(texts[0], what, place),) * len(texts)
    return tuple(label(text, what, place) for text in texts)


def _file_names(content: dict[str, Any], image_id: str) -> tuple[str, ...]:
    """File name of an image of COCO 2014 or 2015; empty for other images."""
    subtype = content.get("data_subtype")
    parts = _SUBTYPE.fullmatch(subtype) if isinstance(subtype, str) else None
    if content.get("data_type") != "mscoco" or parts is None or not image_id.isdecimal():
        return ()
    return (f"COCO_{parts[1]}{parts[2]}_{image_id:0>12}.jpg",)
