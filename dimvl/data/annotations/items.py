"""Items to classify: dimvl's own JSON lines, and the files of NLVR2, NLVR, SNLI-VE and GQA, told apart by their fields.

Own lines are `{"image": id or file name, "text": statement, "label": label}`, with `labels` (a list) in place of
`label` where any number of labels fit, and without either where labels are not published. `text` may be left out, for
images alone. `images`, `times` and `id` are as in `jsonl.py`.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from dimvl.data.annotations.gqa import gqa_items
from dimvl.data.annotations.jsonl import TEXTS, first_object, jsonl_ids, jsonl_records, refuse_other_name
from dimvl.data.annotations.nlvr import nlvr_items
from dimvl.data.annotations.records import LabelledItem
from dimvl.data.annotations.snli_ve import snli_ve_items
from dimvl.errors import UserError
from dimvl.fields import FORMATS, is_blank, items, label, words
from dimvl.files import read_json
from dimvl.showing import short

logger = logging.getLogger(__name__)
NLVR, NLVR2, SNLI_VE, GQA, OWN = "NLVR", "NLVR2", "SNLI-VE", "GQA", "JSON lines"


class ItemFile(NamedTuple):
    """Items in the order of a file, and the name of its format."""

    format: str
    items: list[LabelledItem]


def read_items(path: Path, choices: Path | None = None) -> ItemFile:
    """Read items of any known format.

    Args:
        path: the file.
        choices: the file of choices of GQA, for further scores.

    Raises:
        UserError: a missing file, an unknown format, choices of another format, or a mistake in a file.

    """
    first = first_object(path)
    if "identifier" in first:
        found = ItemFile(NLVR if "structured_rep" in first else NLVR2, nlvr_items(path))
    elif "Flickr30K_ID" in first:
        found = ItemFile(SNLI_VE, snli_ve_items(path))
    elif path.suffix.lower() == ".jsonl":
        found = ItemFile(OWN, jsonl_items(path))
    elif path.suffix.lower() == ".json" and isinstance(content := read_json(path), dict):
        found = ItemFile(GQA, gqa_items(path, content, choices))
    else:
        raise UserError(f"{path} is not in a format of items to classify that dimvl knows; {FORMATS}")
    if choices is not None and found.format != GQA:
        raise UserError(f"{path} is {found.format}, and the choices {choices} belong to GQA; omit choices")
    logger.info("%s: %s, %d items", path, found.format, len(found.items))
    return found


def jsonl_items(path: Path) -> list[LabelledItem]:
    """Read dimvl's own JSON lines, in the order of the file.

    Raises:
        UserError: a line that is not JSON, a missing or wrong field, a label that is empty or there twice, or a
            duplicate id.

    """
    found = list(jsonl_records(path, ()))
    result = []
    for number, (place, record, written, (images, times)) in zip(jsonl_ids(found, "id"), found, strict=True):
        refuse_other_name(record, "text", TEXTS, place)
        text = label(record.get("text", ""), "text", place)
        if text and is_blank(text):
            raise UserError(f"{place}: text is empty ({short(text)}); give words, or omit it to classify by the image")
        labels, numbered = _labels(record, place), "id" not in record
        result.append(
            LabelledItem(
                *(number, images, text.strip(), labels),
                file_names=images,
                times=times,
                written_ids=written,
                numbered=numbered,
            )
        )
    return result


def _labels(record: dict[str, Any], place: str) -> tuple[str, ...] | None:
    if "label" in record and "labels" in record:
        raise UserError(f"{place} has both label and labels; keep one of them")
    if "label" not in record and "labels" not in record:
        return None
    given = [record["label"]] if "label" in record else items(record["labels"], "labels", place)
    named = tuple(words(str(one) if type(one) is int else one, "a label", place) for one in given)
    if twice := [one for number, one in enumerate(named) if one in named[:number]]:
        raise UserError(f"{place}: label {short(twice[0])} appears twice; remove one")
    return named
