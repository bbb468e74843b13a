"""Questions with candidates: dimvl's own JSON lines, A-OKVQA and VCR; a file is recognised by its first item.

- dimvl's own JSON lines of `image` or `images`, `candidates` and, optionally, `text`, `answer` (the place of the right
  candidate, from 0), `times` and `id`. Without `text`, the candidates alone are compared.
- A-OKVQA (Schwenk et al., ECCV 2022): `[{"image_id", "question_id", "question", "choices", "correct_choice_idx"}, ...]`
  with COCO's images of 2017.
- VCR: see `vcr.py`.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dimvl.data.annotations.jsonl import TEXTS, jsonl_ids, jsonl_records, refuse_other_name
from dimvl.data.annotations.records import Choice
from dimvl.data.annotations.vcr import is_vcr, vcr_choices
from dimvl.errors import UserError
from dimvl.fields import FORMATS, Once, check_candidates, identifier, items, label, mapping, place_of_answer, words
from dimvl.files import read_json

logger = logging.getLogger(__name__)
Format = Literal["JSON lines", "A-OKVQA", "VCR"]


class Choices(NamedTuple):
    """The questions of a file, in its order, and its format, which says how predictions are submitted."""

    items: list[Choice]
    format: Format


def read_choices(path: Path, every_answer: bool = False) -> Choices:
    """Read questions with candidates in any known format.

    Args:
        path: the file.
        every_answer: of VCR, read the rationales once for each answer, as its submissions want, not only for the right
            one.

    Raises:
        UserError: a missing file, an unknown format, or a mistake in the file.

    """
    if path.suffix.lower() == ".json":
        found = Choices(list(_aokvqa(path, read_json(path))), "A-OKVQA")
    elif path.suffix.lower() != ".jsonl":
        raise UserError(f"{path} is not in a format of questions with candidates that dimvl knows; {FORMATS}")
    elif is_vcr(path):
        found = Choices(list(vcr_choices(path, every_answer)), "VCR")
    else:
        found = Choices(list(_own(path)), "JSON lines")
    logger.info("%s: %s, %d questions with candidates", path, found.format, len(found.items))
    return found


def _own(path: Path) -> Iterator[Choice]:
    found = list(jsonl_records(path, ("candidates",)))
    for number, (place, record, written, (images, times)) in zip(jsonl_ids(found, "id"), found, strict=True):
        candidates = tuple(
            words(text, f"candidate {at} of question {number}", place)
            for at, text in enumerate(items(record["candidates"], "candidates", place))
        )
        check_candidates(candidates, place)
        given = record.get("answer")
        answer = None if given is None else place_of_answer(given, len(candidates), "answer", place)
        refuse_other_name(record, "text", TEXTS, place)
        text = label(record.get("text", ""), f"text of question {number}", place).strip()
        yield Choice(number, images, text, candidates, answer, "", images, times, written)


def _aokvqa(path: Path, content: Any) -> Iterator[Choice]:
    if not isinstance(content, list):
        raise UserError(f"{path} is not a list of questions with choices, as in A-OKVQA; {FORMATS}")
    once = Once("question_id")
    for number, value in enumerate(content):
        place = f"{path}: item {number}"
        record = mapping(value, ("image_id", "question_id", "question", "choices"), place)
        once.check(choice_id := identifier(record["question_id"], "question_id", place), place)
        written = identifier(record["image_id"], "image_id", place)
        text = words(record["question"], f"question {choice_id}", place)
        candidates = tuple(
            words(one, f"a choice of question {choice_id}", place) for one in items(record["choices"], "choices", place)
        )
        given, name = record.get("correct_choice_idx"), "correct_choice_idx"
        answer = None if given is None else place_of_answer(given, len(candidates), name, place)
        check_candidates(candidates, place, twins=True, answer=answer)
        file = (f"{written:012}.jpg",) if isinstance(written, int) else ()
        yield Choice(choice_id, (str(written),), text, candidates, answer, file_names=file, written_ids=(written,))
