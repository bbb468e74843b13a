"""Recognises the format of an annotation file and hands it to its reader.

The ending tells JSON (`.json`) and lines of JSON (`.jsonl`); of other files the first line tells, whatever they are
called. Official files work as they are; docs/annotations.md shows every format.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from dimvl.data.annotations.coco import coco_captions
from dimvl.data.annotations.conceptual import conceptual_captions
from dimvl.data.annotations.fields import FORMATS, lines
from dimvl.data.annotations.flickr import COMMAS, PIPES, TOKEN, bar_captions, comma_captions, token_captions
from dimvl.data.annotations.jsonl import jsonl_captions, jsonl_questions
from dimvl.data.annotations.karpathy import is_karpathy, karpathy_captions
from dimvl.data.annotations.records import Caption, Question
from dimvl.data.annotations.vqa import vqa_questions
from dimvl.errors import UserError
from dimvl.files import read_json, sha256

logger = logging.getLogger(__name__)
Record = TypeVar("Record", Caption, Question)


def read_captions(path: Path, split: Sequence[str] = ()) -> list[Caption]:
    """Read a caption file of any known format, in the order of the file.

    Args:
        path: COCO captions, a file of Karpathy's splits, Flickr30k's token or CSV file, lines of caption and picture as
            in Conceptual Captions, or dimvl's own lines of JSON.
        split: splits to read of a file of Karpathy's splits; other files have none.

    Raises:
        UserError: missing, of no known format, with a mistake in it, or splits named for a file that has none.

    """
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if is_karpathy(content):
            return _told(path, "Karpathy's splits", karpathy_captions(path, content, split))
    if split:
        raise UserError(f"{path} has no splits, but split is {', '.join(split)}; leave it out")
    if path.suffix.lower() == ".json":
        return _told(path, "COCO captions", coco_captions(path, content))
    if path.suffix.lower() == ".jsonl":
        return _told(path, "lines of JSON", jsonl_captions(path))
    first = next(lines(path), (0, ""))[1]
    if TOKEN.match(first):
        return _told(path, "Flickr token file", token_captions(path))
    if PIPES.match(first):
        return _told(path, "Flickr CSV with bars", bar_captions(path))
    if COMMAS.fullmatch(first):
        return _told(path, "Flickr CSV with commas", comma_captions(path))
    if "\t" in first:
        return _told(path, "lines of caption and picture", conceptual_captions(path))
    raise UserError(f"{path} is of no format for captions that dimvl knows; {FORMATS}")


def read_questions(path: Path, annotations: Path | None = None) -> list[Question]:
    """Read a question file of any known format, in the order of the file.

    Args:
        path: VQA v2 questions, or dimvl's own lines of JSON.
        annotations: VQA v2 annotations that belong to them; None where answers are not published, and for lines of
            JSON, which have their own.

    Raises:
        UserError: missing, of no known format, or with a mistake in it.

    """
    if path.suffix.lower() == ".jsonl":
        if annotations is not None:
            raise UserError(f"{path} has its own answers; leave the annotations {annotations} out")
        return _told(path, "lines of JSON", jsonl_questions(path))
    return _told(path, "VQA v2 questions", vqa_questions(path, read_json(path), annotations))


def _told(path: Path, kind: str, found: list[Record]) -> list[Record]:
    logger.info("%s: %s, %d texts", path, kind, len(found))
    return found


def describe_file(path: Path) -> dict[str, Any]:
    """Tell what an annotation file is, for run records and model cards: its name, checksum and own description.

    Scenes written by dimvl say in their description that they are synthetic; that is told apart.

    Raises:
        UserError: it is missing, or called JSON and none.

    """
    if not path.is_file():
        raise UserError(f"{path} does not exist or is no file; check the path")
    content = read_json(path) if path.suffix.lower() == ".json" else None
    info = content.get("info") if isinstance(content, dict) else None
    description = str(info.get("description", "")) if isinstance(info, dict) else ""
    synthetic = "synthetic" in description.lower()
    return {"file": path.name, "sha256": sha256(path), "description": description, "synthetic": synthetic}
