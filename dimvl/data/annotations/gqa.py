"""GQA (Hudson and Manning, CVPR 2019): questions with one answer each, from a fixed list.

`{"02930152": {"imageId": "2354786", "question": ..., "answer": "yes", "isBalanced": true, "types": {"structural":
"verify"}, "entailed": [...]}, ...}`; `answer` is absent where it is not published. `*_choices.json` has the answers
that make sense for a question at all (`valid`) and those that are likely in its image set (`plausible`).
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from dimvl.data.annotations.records import LabelledItem
from dimvl.fields import identifier, items, mapping, words
from dimvl.files import read_json

FILE, CHOICES_FILE = "give a question file of GQA", "give the file of choices of the same questions"


CHOICES = {"validity": "valid", "plausibility": "plausible"}
"""Scores, and the field of a file of choices with the answers that are right for each."""
COMMON = ("color", "material", "shape")
"""Valid and plausible answers to questions about what things have in common; the official program knows these."""


def gqa_items(path: Path, content: dict[str, Any], choices: Path | None = None) -> list[LabelledItem]:
    """Read questions in the order of the file; `kind` is `open` or `binary`, as in the official scores.

    Args:
        path: the file, for messages.
        content: its JSON value.
        choices: the file of choices of these questions.

    Raises:
        UserError: a missing or wrong field, an empty question, or a question without choices.

    """
    result, accepted = [], {} if choices is None else mapping(read_json(choices), (), str(choices), CHOICES_FILE)
    for name, record in content.items():
        place = f"{path}: question {name}"
        record = mapping(record, ("imageId", "question"), place)
        image = identifier(record["imageId"], "imageId", place)
        text = words(record["question"], "question", place)
        labels = (words(record["answer"], "answer", place),) if "answer" in record else None
        kinds = mapping(record.get("types") or {}, (), f"{place}: types", FILE)
        entailed = items(record.get("entailed") or [], "entailed", place)
        result.append(
            LabelledItem(
                *(name, (str(image),), text, labels),
                kind="" if "structural" not in kinds else "open" if kinds["structural"] == "query" else "binary",
                accepted=() if choices is None else _accepted(accepted, name, kinds, choices),
                entailed=tuple(str(one) for one in entailed if str(one) != name),
                scored=record.get("isBalanced") is not False,
                file_names=(f"{image}.jpg",),
                written_ids=(image,),
            )
        )
    return result


def _accepted(
    choices: dict[str, Any], name: str, kinds: dict[str, Any], path: Path
) -> tuple[tuple[str, Collection[str]], ...]:
    """Return the answers to a question that are right for each score of `CHOICES`."""
    if "Common" in str(kinds.get("detailed", "")):
        return tuple((score, COMMON) for score in CHOICES)
    own = mapping(choices, (name,), str(path), CHOICES_FILE)[name]
    place = f"{path}: question {name}"
    own = mapping(own, tuple(CHOICES.values()), place, CHOICES_FILE)
    return tuple((score, frozenset(map(str, items(own[key], key, place)))) for score, key in CHOICES.items())
