"""Train grounding on the phrases of Flickr8k, with and without pretraining, and score it, once for each seed.

python -m tools.run_ground DATA runs/flickr8k runs/ground --seeds 0 1 2 --threads 2

DATA is a folder with `dataset_flickr8k.json` (Karpathy's splits) and `phrases.jsonl` (docs/annotations.md). The second
folder is one that `tools/run_flickr8k.py` wrote: its region store, text encoder and pretrained runs of these seeds are
used. Each command of `stages` runs in its own process in OUT. One that has ended is skipped when this tool runs again,
and one that was interrupted goes on. Writes OUT/ground.json, or another file by --results.

Settings are chosen with --development, which needs a folder of `tools/run_flickr8k.py --development`: the 500 training
images that it holds out take the place of the official `val`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.errors import UserError
from dimvl.fields import lines
from dimvl.files import read_json
from dimvl.metrics.intervals import mean, percentiles, resampled, unit_sums
from tools.run_flickr8k import ALONE, ANNOTATIONS, split
from tools.stages import (
    ROOT,
    Stage,
    argument_parser,
    dimvl,
    link,
    read_items,
    rounded,
    run_all,
    save_results,
    t_interval,
    told_by,
    typed,
    write_lines,
)

PHRASES = "phrases.jsonl"
RUNS = {
    "ground": [],
    "no_pretraining": [*ALONE, "training.steps=800"],  # as many as pretraining and fine-tuning together
    "together": ["shared_prefix=false"],  # the regions see the phrase
}
"""Overrides of each run."""
SHARED = ("stores", "encoder")
SCORES = ("accuracy", "upper_bound", "of_upper_bound", "baseline")


def main() -> None:
    trained = "folder that tools/run_flickr8k.py wrote"
    parser = argument_parser(__doc__, "ground.json", data="folder with Flickr8k", trained=trained)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=["ground", "no_pretraining"])
    parser.add_argument("--development", action="store_true", help="hold out a part of the training images, not val")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of configs/flickr8k/ground"
    )
    arguments = parser.parse_args()
    with told_by(parser):
        lay_out(arguments.data, arguments.trained, arguments.out, arguments.seeds, arguments.development)
    planned = [
        stage
        for name in arguments.runs
        for seed in arguments.seeds
        for stage in stages(name, seed, arguments.threads, arguments.set)
    ]
    run_all(planned, arguments.out)
    part = "development" if arguments.development else "val"
    found = {"split": part, **results(arguments.out, arguments.runs, arguments.seeds)}
    save_results(arguments, typed(arguments, "-m", "tools.run_ground"), planned, found)


def lay_out(data: Path, trained: Path, out: Path, seeds: Sequence[int], development: bool = False) -> None:
    """Link what is used into OUT, where commands run; write the phrases to train on and those to score."""
    train, held_out = split(read_json(data / ANNOTATIONS)["images"], development)
    parts = {"train": {image["cocoid"] for image in train}, "held_out": {image["cocoid"] for image in held_out}}
    links = {"configs": ROOT / "configs"} | {name: trained / name for name in SHARED}
    links |= {f"seed-{seed}/pretrain": trained / f"seed-{seed}" / "pretrain" for seed in seeds}
    for name, target in links.items():
        if not target.exists():
            raise UserError(f"{target} does not exist; run tools/run_flickr8k.py with these seeds first")
        link(out / name, target)
    (out / "annotations").mkdir(exist_ok=True)
    phrases = [line for _, line in lines(data / PHRASES)]
    for name, images in parts.items():
        own = (line for line in phrases if json.loads(line)["image"] in images)
        write_lines(out / "annotations" / f"{name}.jsonl", own)


def stages(name: str, seed: int, threads: int, values: Sequence[str] = ()) -> list[Stage]:
    """Return what trains and scores one of `RUNS`."""
    folder, threaded = f"seed-{seed}", f"training.threads={threads}"
    given = [f"seed={seed}", threaded, f"output={folder}/{name}", f"initial={folder}/pretrain", *RUNS[name], *values]
    score = ["--regions", "stores/regions", "phrases=annotations/held_out.jsonl", "--threads", str(threads)]
    return [
        Stage(f"{folder}/{name}", dimvl("finetune", "configs/flickr8k/ground.yaml", *given)),
        Stage(f"{folder}/{name}-scores", dimvl("evaluate", f"{folder}/{name}", *score)),
    ]


def results(out: Path, runs: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Scores of runs as fractions, means over seeds: those of `ground`, and of the others under their names."""
    found: dict[str, dict[str, Any]] = {}
    hits: dict[str, np.ndarray] = {}
    for name in runs:
        places = [out / f"seed-{seed}" / name / "evaluation" for seed in seeds]
        scores = [read_json(place / "scores.json") for place in places]
        one_box = summary([each["one_box"] for each in scores])
        found[name] = {"seeds": list(seeds), "phrases": scores[0]["count"], **summary(scores), "one_box": one_box}
        every = [read_items(place, "id") for place in places]
        hits[name] = np.mean([[item["means"]["accuracy"] for item in items] for items in every], axis=0)
        if name != runs[0]:
            images = [item["image_id"] for item in every[0]]
            found[name][f"{runs[0]}_minus_this"] = difference(hits[runs[0]] - hits[name], images)
    legend = "interval: 95%, t over seeds; _minus_this: accuracy, 95% bootstrap over images, means of seeds"
    return {"intervals": legend, **found.pop(runs[0]), **found}


def summary(every: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds; values by seed and intervals of those that seeds change."""
    values = {name: [scores[name] for scores in every] for name in SCORES}
    means = {name: round(float(np.mean(own)), 4) for name, own in values.items()}
    changed = ("accuracy", "of_upper_bound")
    by_seed = {name: rounded(values[name]) for name in changed}
    return {**means, "by_seed": by_seed, "interval": {name: t_interval(values[name]) for name in changed}}


def difference(values: np.ndarray, images: Sequence[Any]) -> list[float]:
    """Mean of values and its 95% interval, by a bootstrap over images."""
    interval = percentiles(mean(resampled(unit_sums(np.stack([values, np.ones(len(values))], axis=1), images))))
    assert interval is not None
    return [round(float(value), 4) for value in (values.mean(), *interval)]


if __name__ == "__main__":
    main()
