"""Measure where learned concepts point, against people's boxes for phrases (Flickr30k Entities, Plummer et al. 2015).

python tools/measure_concepts.py concepts/flickr8k stores/flickr8k phrases.jsonl captions.json --captions-split train \
    --split val --out pointing.json

The rule: the lemma of the last noun of each phrase with a box is its head; if that is a learned word, the region
with the highest score for this word, the whole image excluded, points at its own centre; that is right if the centre is
inside one of people's boxes for the phrase. `iou` is the share whose region overlaps one of these boxes by an
intersection over union of .5. Beside it, of the same phrases: a random region, the centre of the image, and whether any
region would be right. Phrases without such a head are counted and left out.

phrases.jsonl has one JSON object a line: `file_name` and perhaps `image`, the id, `split`, `phrase`, its `sentence`,
and `boxes` in pixels of the image. CAPTIONS
is the caption file that the concepts were trained on, for the lemmas of its words.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dimvl.concepts.measure import best_iou, is_inside
from dimvl.concepts.words import Lexicon
from dimvl.data.annotations import read_captions
from dimvl.errors import UserError
from dimvl.files import read_json, read_text, write_json
from dimvl.metrics.intervals import mean_interval
from dimvl.regions.naming.concepts import ConceptNamer
from dimvl.regions.store import RegionStore
from dimvl.tasks.retrieval.prediction import word_similarities
from dimvl.trained_model import TrainedModel, load_model

REPLICATES = 1000


def main() -> None:
    """Measure and print, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("concepts", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("phrases", type=Path)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--captions-split", nargs="*", default=[], help="splits of a file in Karpathy's format")
    parser.add_argument("--split", default="val", help="split of the phrases")
    parser.add_argument("--images", type=Path, help="JSON list of file names: only these")
    parser.add_argument("--model", type=Path, help="also point by the alignment of this model")
    parser.add_argument(
        "--grounded", type=Path, help="evaluation of `ground` on these phrases: also point by its boxes"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    namer, store = ConceptNamer.load(arguments.concepts), RegionStore(arguments.store)
    namer.check_features(store.extractor)
    lexicon = Lexicon(caption.text for caption in read_captions(arguments.captions, arguments.captions_split))
    phrases = read_phrases(arguments.phrases, arguments.split)
    if arguments.images is not None:
        wanted = set(json.loads(arguments.images.read_text()))
        phrases = {image: own for image, own in phrases.items() if image in wanted}
    trained = None if arguments.model is None else load_model(arguments.model).for_prediction()
    grounded = None if arguments.grounded is None else read_grounded(arguments.grounded, phrases)
    found = pointing(namer, store, phrases, lexicon, trained, grounded)
    print(json.dumps(found, indent=2))
    if arguments.out is not None:
        write_json(arguments.out, found)


def read_phrases(path: Path, split: str) -> dict[str, list[dict[str, Any]]]:
    """Return the phrases of a split that have boxes, by the file name of their image."""
    phrases = defaultdict(list)
    for line in read_text(path).splitlines():
        if line.strip() and (phrase := json.loads(line))["split"] == split and phrase["boxes"]:
            phrases[phrase["file_name"]].append(phrase)
    if not phrases:
        raise UserError(f"{path} has no phrase with a box in split {split!r}; give another --split")
    return phrases


def read_grounded(
    evaluation: Path, phrases: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[int | str, tuple[float, ...]]:
    """Return the box that an evaluation of `ground` has found for each phrase, in pixels, by the phrase's id."""
    path = evaluation / "predictions.json"
    found = {item["id"]: tuple(item["box"]) for item in read_json(path)}
    missing = [phrase["id"] for own in phrases.values() for phrase in own if phrase["id"] not in found]
    if missing:
        raise UserError(f"{path} lacks phrase {missing[0]}; evaluate the model on the phrases that are measured")
    return found


def pointing(
    namer: ConceptNamer,
    store: RegionStore,
    phrases: Mapping[str, Sequence[Mapping[str, Any]]],
    lexicon: Lexicon,
    trained: TrainedModel | None = None,
    grounded: Mapping[int | str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Point at each phrase and average, with 95% intervals by the bootstrap over images.

    With a model that aligns, it points at the same phrases; those whose head it does not find count as wrong. With
    boxes (x1, y1, x2, y2) in pixels that a model of `ground` found, by phrase, their centres point too.
    """
    ids = {word: number for number, word in enumerate(namer.names)}
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    left_out = 0
    for image, own in sorted(phrases.items()):
        names = (image, Path(image).stem, str(own[0].get("image", "")))
        image_id = next((name for name in names if name in store), image)
        regions = store.read(store.position(image_id))
        kept = np.flatnonzero((regions.boxes[:, 2:] - regions.boxes[:, :2]).prod(1) < 0.999)  # not the whole image
        boxes = regions.boxes[kept]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        scores = namer.network(torch.from_numpy(regions.features[kept].astype(np.float32))).numpy()
        size = np.array([regions.width, regions.height] * 2)
        similar = {} if trained is None else similarities(trained, store, image_id, [one["sentence"] for one in own])
        hits = defaultdict(list)
        for phrase in own:
            head = ids.get((nouns(phrase["phrase"], lexicon) or [""])[-1])
            if head is None:
                left_out += 1
                continue
            targets = np.array(phrase["boxes"]) / size
            best, inside = int(scores[:, head].argmax()), is_inside(centres, targets)
            hits["pointing"].append(inside[best])
            if trained is not None:
                words, cosines = similar[phrase["sentence"]]
                row = row_of_head(words, phrase["phrase"], nouns(phrase["phrase"], lexicon)[-1], lexicon)
                right = row is not None and bool(inside[int(cosines[row, kept].argmax())])
                hits["aligned"].append(right)
                hits["aligned_minus_concepts"].append(float(right) - float(inside[best]))
            overlaps = best_iou(boxes[[best]], targets)[0] >= 0.5
            hits["iou"].append(overlaps)
            if grounded is not None:
                box = np.array([grounded[phrase["id"]]]) / size
                right, fits = is_inside((box[:, :2] + box[:, 2:]) / 2, targets)[0], best_iou(box, targets)[0] >= 0.5
                for name, own_hit, other in (("grounded", right, inside[best]), ("grounded_iou", fits, overlaps)):
                    hits[name].append(own_hit)
                    hits[f"{name}_minus_concepts"].append(float(own_hit) - float(other))
            hits["random_region"].append(inside.mean())
            hits["image_centre"].append(is_inside(np.full((1, 2), 0.5), targets)[0])
            hits["any_region"].append(inside.any())
        for name, values in hits.items():
            rows[name].append(np.array(values, np.float64))
    result: dict[str, Any] = {
        "phrases": int(sum(map(len, rows["pointing"]))),
        "phrases_without_word": left_out,
        "images": len(rows["pointing"]),
    }
    for name, values in rows.items():
        every, images = np.concatenate(values), np.repeat(np.arange(len(values)), list(map(len, values)))
        low, high = mean_interval(every, images.tolist(), REPLICATES)
        result[name] = {"mean": float(every.mean()), "low": low, "high": high}
    return result


def similarities(
    trained: TrainedModel, store: RegionStore, image_id: str, sentences: Sequence[str]
) -> dict[str, tuple[list[str], np.ndarray]]:
    """Return the words (L,) of each sentence and their cosines with all regions of the image (L, R)."""
    distinct = list(dict.fromkeys(sentences))
    prefix = trained.processor.reader(store).prefix(store.read(store.position(image_id)))
    found = word_similarities(trained, [prefix] * len(distinct), trained.tokenise(distinct))
    return dict(zip(distinct, found, strict=True))


def row_of_head(words: Sequence[str], phrase: str, head: str, lexicon: Lexicon) -> int | None:
    """Return the place of a phrase's head among the words of its sentence; None if it is not there."""
    known = set(phrase.lower().split())
    places = [
        place
        for place, word in enumerate(words)
        if word.lower() in known and (nouns(word, lexicon) or [""])[-1] == head
    ]
    return places[-1] if places else None


def nouns(text: str, lexicon: Lexicon) -> list[str]:
    """Return the lemmas of the nouns of a text, in order."""
    return [word.lemma for word in lexicon.content(text) if word.part == "noun"]


if __name__ == "__main__":
    main()
