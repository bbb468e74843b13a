"""Annotation files to plain records: COCO captions and VQA v2 questions with answers.

Image ids become text here: the region store knows images by the text of their id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.files import read_json, sha256


@dataclass(frozen=True)
class Caption:
    """One caption of an image."""

    caption_id: int
    image_id: str
    text: str


@dataclass(frozen=True)
class Question:
    """One question on an image; `answers` are those of the annotators, empty where they are not published."""

    question_id: int
    image_id: str
    text: str
    answers: tuple[str, ...]
    kind: str = ""
    answer_type: str = ""


def _records(path: Path, content: Any, key: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Return the list under `key`, each item checked for its fields."""
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise UserError(f"{path} has no list {key!r}; give a file in the official format")
    for place, record in enumerate(content[key]):
        if not isinstance(record, dict):
            raise UserError(f"{path}: item {place} of {key!r} is no mapping; give a file in the official format")
        if missing := [field for field in fields if field not in record]:
            raise UserError(
                f"{path}: item {place} of {key!r} has no field {missing[0]!r}; give a file in the official format"
            )
    return content[key]


def _whole_number(path: Path, record: dict[str, Any], field: str) -> int:
    try:
        return int(record[field])
    except (TypeError, ValueError):
        raise UserError(f"{path}: {field} {record[field]!r} is not a whole number; number the items") from None


def _text(path: Path, record: dict[str, Any], field: str, name: str) -> str:
    """Return a text that has words, without outer blanks."""
    value = record[field]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}: the {name} of image {record['image_id']} is empty; remove it")
    return value.strip()


def _answers(path: Path, record: dict[str, Any]) -> tuple[str, ...]:
    """Return the annotators' answers to one question."""
    try:
        return tuple(str(answer["answer"]) for answer in record["answers"])
    except (TypeError, KeyError):
        raise UserError(
            f"{path}: the answers of question {record['question_id']} are not a list of "
            "{'answer': ...}; give a file in the official format"
        ) from None


def read_captions(path: Path) -> list[Caption]:
    """Read a COCO caption file, in the order of the file.

    Raises:
        UserError: missing, not in the format, or with an empty caption.

    """
    captions = []
    for record in _records(path, read_json(path), "annotations", ("id", "image_id", "caption")):
        text = _text(path, record, "caption", f"caption {record['id']}")
        captions.append(Caption(_whole_number(path, record, "id"), str(record["image_id"]), text))
    return captions


def read_questions(questions: Path, annotations: Path | None) -> list[Question]:
    """Read VQA v2 questions and, where given, their answers, in the order of the question file.

    Raises:
        UserError: missing, not in the format, an empty question, or a question without its annotation.

    """
    answers: dict[int, dict[str, Any]] = {}
    if annotations is not None:
        fields = ("question_id", "answers")
        answers = {
            _whole_number(annotations, record, "question_id"): record
            for record in _records(annotations, read_json(annotations), "annotations", fields)
        }
    result = []
    for record in _records(questions, read_json(questions), "questions", ("question_id", "image_id", "question")):
        identity = _whole_number(questions, record, "question_id")
        text = _text(questions, record, "question", f"question {identity}")
        if annotations is not None and identity not in answers:
            raise UserError(
                f"{annotations} has no annotation for question {identity}; give the file that belongs to {questions}"
            )
        annotation = answers.get(identity, {})
        result.append(
            Question(
                identity,
                str(record["image_id"]),
                text,
                _answers(annotations, annotation) if annotations is not None else (),
                str(annotation.get("question_type", "")),
                str(annotation.get("answer_type", "")),
            )
        )
    return result


def describe_file(path: Path) -> dict[str, Any]:
    """Tell what an annotation file is, for run records and model cards: its name, checksum and own description.

    Scenes written by dimvl say in their description that they are synthetic; that is told apart.

    Raises:
        UserError: it is missing or no JSON.

    """
    content = read_json(path)
    info = content.get("info") if isinstance(content, dict) else None
    description = str(info.get("description", "")) if isinstance(info, dict) else ""
    synthetic = "synthetic" in description.lower()
    return {"file": path.name, "sha256": sha256(path), "description": description, "synthetic": synthetic}
