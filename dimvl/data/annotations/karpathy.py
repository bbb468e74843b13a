"""The files of Karpathy and Fei-Fei's splits: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json.

`{"images": [{"filename", "split", "sentences": [{"raw", "sentid"}, ...], "cocoid", "filepath"}, ...]}`; `cocoid` and
`filepath` are in the COCO file only. Splits are train, val, test and, for COCO, restval: images of COCO's own
validation set that are in neither val nor test and are usually added to the training data.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dimvl.data.annotations.records import Caption
from dimvl.errors import UserError
from dimvl.fields import Once, identifier, items, mapping, records, words


def is_karpathy(content: Any) -> bool:
    """Whether a file has captions inside its list `images`; COCO's files have such a list too, without captions."""
    if not isinstance(content, dict) or "annotations" in content or not isinstance(content.get("images"), list):
        return False
    images = content["images"]
    return not images or (isinstance(images[0], dict) and "sentences" in images[0])


def karpathy_captions(path: Path, content: Any, split: Sequence[str], bare: bool = False) -> list[Caption]:
    """Read the captions of the named splits; an image's id is its `cocoid` or, without one, its file name.

    Args:
        path: for messages.
        content: the file's JSON value.
        split: names of splits, such as train and restval.
        bare: if the splits have no caption at all, return each of their images with an empty text.

    Raises:
        UserError: another format, no split or an unknown one, an empty caption, or a duplicate caption id, image or
            file, also in other splits.

    """
    images = list(records(path, content, "images", ("filename", "split", "sentences")))
    counts = Counter(str(record["split"]) for _, record in images)
    known = ", ".join(f"{name} ({count:,} images)" for name, count in sorted(counts.items())) or "none"
    if not split:
        raise UserError(f"{path} has the splits {known}; choose with `split`")
    if unknown := [name for name in split if name not in counts]:
        raise UserError(f"{path} has no split {unknown[0]!r}, only {known}; name one of these")
    captions, seen, files = Once("sentid"), Once("image"), Once("file")
    result, without = list[Caption](), list[Caption]()
    for place, record in images:
        file = identifier(record["filename"], "filename", place)
        written = identifier(record["cocoid"], "cocoid", place) if "cocoid" in record else file
        folder = record.get("filepath", "")
        name = f"{identifier(folder, 'filepath', place)}/{file}" if folder else str(file)
        seen.check(written, place)
        files.check(name, place)
        if record["split"] not in split:
            continue
        image, names, named = (str(written),), (name,), (written,)
        sentences = items(record["sentences"], f"sentences of image {written}", place)
        if not sentences:
            without.append(Caption(len(without), image, "", names, written_ids=named))
        for sentence in sentences:
            sentence = mapping(sentence, ("raw", "sentid"), f"{place}: a sentence of image {written}")
            number = identifier(sentence["sentid"], "sentid", place)
            captions.check(number, place)
            text = words(sentence["raw"], f"caption {number} of image {written}", place)
            result.append(Caption(number, image, text, names, written_ids=named))
    return without if bare and not result else result
