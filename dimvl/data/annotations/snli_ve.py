"""SNLI-VE (Xie et al., 2019): whether an image of Flickr30k entails a sentence, contradicts it, or neither.

One JSON object per line: `{"pairID": ..., "Flickr30K_ID": "4705552913", "sentence2": ..., "gold_label": "entailment"}`.
Where annotators did not agree, `gold_label` is `-`; such a pair has no label.
"""

from pathlib import Path

from dimvl.data.annotations.records import LabelledItem
from dimvl.errors import UserError
from dimvl.fields import Once, identifier, lines, mapping, words
from dimvl.files import parse_json
from dimvl.showing import short

LABELS = ("contradiction", "entailment", "neutral")


def snli_ve_items(path: Path) -> list[LabelledItem]:
    """Read pairs of image and sentence in the order of the file.

    Raises:
        UserError: a line that is not JSON, a missing or wrong field, an unknown label, or a duplicate pairID.

    """
    once, result = Once("pairID"), []
    for number, line in lines(path):
        place = f"{path}, line {number}"
        record = parse_json(line, place, "write one object per line")
        record = mapping(record, ("pairID", "Flickr30K_ID", "sentence2"), place)
        pair = identifier(record["pairID"], "pairID", place)
        once.check(pair, place)
        image = identifier(record["Flickr30K_ID"], "Flickr30K_ID", place)
        text = words(record["sentence2"], f"sentence2 of pair {pair}", place)
        given = record.get("gold_label", "-")
        if given != "-" and given not in LABELS:
            raise UserError(f"{place}: gold_label {short(given)} is not {', '.join(LABELS)} or '-'; correct it")
        labels = None if given == "-" else (str(given),)
        result.append(
            LabelledItem(pair, (str(image),), text, labels, file_names=(f"{image}.jpg",), written_ids=(image,))
        )
    return result
