"""NLVR2 (Suhr et al., ACL 2019) and NLVR (Suhr et al., ACL 2017): statements about images, true or false.

One JSON object per line, also in files named `.json`. NLVR2: `{"identifier": "dev-850-0-1", "sentence": ..., "label":
"True"}`; the identifier is split, image set, pair and sentence, and the two images are `dev-850-0-img0.png` and
`dev-850-0-img1.png`. NLVR: `{"identifier": "1572-0", "sentence": ..., "label": "true", "structured_rep": [three lists
of objects]}`; the three boxes of its drawing are three images, `1572-0-box0` to `1572-0-box2`. Labels are read without
regard to case, as the official programs do.
"""

from pathlib import Path

from dimvl.data.annotations.records import LabelledItem
from dimvl.errors import UserError
from dimvl.fields import Once, items, lines, mapping, words
from dimvl.files import parse_json
from dimvl.showing import short

LABELS = ("false", "true")


def nlvr_items(path: Path) -> list[LabelledItem]:
    """Read statements in the order of the file; those with one `group` are one sentence, as in the official scores.

    Raises:
        UserError: a line that is not JSON, a missing or wrong field, or a duplicate identifier.

    """
    once, result = Once("identifier"), []
    for number, line in lines(path):
        place = f"{path}, line {number}"
        record = mapping(parse_json(line, place, "write one object per line"), ("identifier", "sentence"), place)
        name = words(record["identifier"], "identifier", place)
        once.check(name, place)
        text = words(record["sentence"], f"sentence {name}", place)
        parts, boxes = name.split("-"), record.get("structured_rep")
        form = "split-set-pair-sentence, such as dev-850-0-1" if boxes is None else "two numbers, such as 1572-0"
        if len(parts) != (4 if boxes is None else 2) or not all(parts):
            raise UserError(f"{place}: identifier {short(name)} is not {form}; correct it")
        if boxes is None:
            split, image_set, pair, sentence = parts
            images = tuple(f"{split}-{image_set}-{pair}-img{side}" for side in range(2))
            group = f"{split}-{image_set}-{sentence}"
        else:
            if len(items(boxes, "structured_rep", place)) != 3:
                raise UserError(f"{place}: structured_rep has {len(boxes)} boxes; give the objects of all three")
            images, group = tuple(f"{name}-box{box}" for box in range(3)), parts[0]
        label = str(record.get("label", "")).lower()
        if "label" in record and label not in LABELS:
            raise UserError(f"{place}: label {short(record['label'])} is neither true nor false; correct it")
        files = tuple(f"{image}.png" for image in images)
        result.append(LabelledItem(name, images, text, (label,) if label else None, group, file_names=files))
    return result
