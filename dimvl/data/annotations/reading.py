"""Recognises the format of an annotation file and calls its reader.

JSON (`.json`) and JSON lines (`.jsonl`) are recognised by their extension, other files by their first line. Official
files work without conversion; docs/annotations.md shows every format.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from dimvl.data.annotations.coco import coco_captions, result_captions
from dimvl.data.annotations.conceptual import conceptual_captions
from dimvl.data.annotations.flickr import COMMAS, PIPES, TOKEN, bar_captions, comma_captions, token_captions
from dimvl.data.annotations.flickr_entities import entity_phrases
from dimvl.data.annotations.jsonl import first_object, jsonl_captions, jsonl_phrases, jsonl_questions
from dimvl.data.annotations.karpathy import is_karpathy, karpathy_captions
from dimvl.data.annotations.phrases import Phrase
from dimvl.data.annotations.records import Caption, Question
from dimvl.data.annotations.refcoco import captioned_phrases, referring_phrases
from dimvl.data.annotations.videos import (
    activitynet_captions,
    is_activitynet,
    is_msrvtt,
    msrvtt_captions,
    one_k_captions,
)
from dimvl.data.annotations.vist import is_vist, vist_stories
from dimvl.data.annotations.vqa import vqa_questions
from dimvl.errors import UserError
from dimvl.fields import FORMATS, lines
from dimvl.files import read_json, sha256
from dimvl.showing import short, some

logger = logging.getLogger(__name__)
Record = TypeVar("Record", Caption, Question, Phrase)


def read_captions(path: Path, split: Sequence[str] = (), bare: bool = False) -> list[Caption]:
    """Read a caption file of any known format, in the order of the file.

    Args:
        path: COCO captions or results, a file of Karpathy's splits, a token or CSV file of Flickr30k, lines of
            caption and image as in Conceptual Captions, stories of VIST, captions of videos of MSR-VTT or ActivityNet,
            or dimvl's own JSON lines.
        split: splits to read from a file of Karpathy's splits or of MSR-VTT; other files have none.
        bare: if a JSON file lists images without any caption, return each with an empty text; JSON lines may lack
            their captions. For predictions of images whose captions are not published.

    Raises:
        UserError: a missing file, an unknown format, a mistake in the file, or splits of a file that has none.

    """
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if is_karpathy(content):
            return _logged(path, "Karpathy's splits", karpathy_captions(path, content, split, bare))
        if is_msrvtt(content):
            return _logged(path, "MSR-VTT", msrvtt_captions(path, content, split))
    if split:
        raise UserError(f"{path} has no splits, but split is {', '.join(split)}; remove it")
    if path.suffix.lower() == ".json":
        if is_vist(content):
            return _logged(path, "stories of VIST", vist_stories(path, content))
        if is_activitynet(content):
            return _logged(path, "ActivityNet Captions", activitynet_captions(path, content))
        if content and isinstance(content, list):
            return _logged(path, "COCO results", result_captions(path, content))
        return _logged(path, "COCO captions", coco_captions(path, content, bare))
    if path.suffix.lower() == ".jsonl":
        return _logged(path, "JSON lines", jsonl_captions(path, bare))
    first = next(lines(path), (0, ""))[1]
    if TOKEN.match(first):
        return _logged(path, "Flickr token file", token_captions(path))
    if PIPES.match(first):
        return _logged(path, "Flickr CSV with bars", bar_captions(path))
    if COMMAS.fullmatch(first):
        return _logged(path, "Flickr CSV with commas", comma_captions(path))
    if {"key", "video_id", "sentence"} <= set(first.lower().split(",")):
        return _logged(path, "MSR-VTT 1k-A", one_k_captions(path))
    if "\t" in first:
        return _logged(path, "lines of caption and image", conceptual_captions(path))
    raise UserError(f"{path} is not in a caption format that dimvl knows; {FORMATS}")


def read_questions(path: Path, annotations: Path | None = None) -> list[Question]:
    """Read a question file of any known format, in the order of the file.

    Args:
        path: VQA v2, OK-VQA or A-OKVQA questions, or dimvl's own JSON lines.
        annotations: the VQA v2 annotations of these questions; None if answers are not published, and for A-OKVQA and
            JSON lines, which contain their answers.

    Raises:
        UserError: a missing file, an unknown format, or a mistake in a file.

    """
    if path.suffix.lower() == ".jsonl":
        if annotations is not None:
            raise UserError(f"{path} contains its own answers; remove the annotations {annotations}")
        return _logged(path, "JSON lines", jsonl_questions(path))
    return _logged(path, "VQA v2 questions", vqa_questions(path, read_json(path), annotations))


def read_phrases(path: Path, images: Path | None = None, split: Sequence[str] = ()) -> list[Phrase]:
    """Read a file of phrases of any known format, in the order of the file.

    Args:
        path: JSON lines; RefCOCO as a pickle (`refs(unc).p`), its list in JSON, or COCO's layout with a caption for
            each image; Flickr30k Entities as its `annotations.zip`.
        images: for RefCOCO's pickle or list, COCO's `instances.json`; for Flickr30k Entities, a list of the images to
            read, one per line, or None for all.
        split: splits to read; by default all. Flickr30k Entities has none: its lists of images are the splits.

    Raises:
        UserError: a missing file, an unknown format, a mistake in a file, or a split that the file does not have.

    """
    ending = path.suffix.lower()
    if images is not None and ending == ".jsonl":
        raise UserError(f"{path} contains its own boxes; remove the file {images}")
    if ending == ".zip":
        kind, found = "Flickr30k Entities", entity_phrases(path, images)
    elif ending == ".jsonl":
        kind, found = "JSON lines", jsonl_phrases(path)
    elif images is not None:
        kind, found = "referring expressions", referring_phrases(path, images)
    else:
        kind, found = "COCO's layout", captioned_phrases(path)
    every = Counter(phrase.split for phrase in found)
    if unknown := [name for name in split if name not in every or not name]:
        have = f"has the splits {some(sorted(every), 9)}" if any(every) else "has no splits"
        raise UserError(f"{path} {have}, and split is {short(unknown[0])}; name one that it has, or remove split")
    found = [phrase for phrase in found if not split or phrase.split in split]
    return _logged(path, kind, found)


def _logged(path: Path, kind: str, found: list[Record]) -> list[Record]:
    logger.info("%s: %s, %d texts", path, kind, len(found))
    return found


def describe_file(path: Path) -> dict[str, Any]:
    """Describe an annotation file for run records and model cards: its name, checksum and own description.

    `synthetic` is true for scenes written by dimvl, whose description says so.

    Raises:
        UserError: as `open_regular`, or the file is named .json and is not valid JSON.

    """
    is_json = path.suffix.lower() == ".json" and "identifier" not in first_object(path)  # NLVR's have JSON lines
    content = read_json(path) if is_json else None
    info = content.get("info") if isinstance(content, dict) else None
    description = str(info.get("description", "")) if isinstance(info, dict) else ""
    synthetic = "synthetic" in description.lower()
    return {"file": path.name, "sha256": sha256(path), "description": description, "synthetic": synthetic}
