"""Measure what bootstrapped captions are worth: noisy captions filtered, and replaced by synthetic ones.

python -m tools.measure_bootstrap scenes runs/bootstrap --jobs 2
python -m tools.measure_bootstrap flickr8k runs/flickr8k --data DATA --jobs 2

Captions of most training images are made noisy (`dimvl/data/noise.py`), those of some stay clean. From a model that was
pretrained on both, a captioner and a filter are fine-tuned on the clean ones, separately, and on scenes also one model
as both (shared). `dimvl bootstrap` writes and filters captions with each. Then `dimvl study` pretrains new models at
equal steps on the noisy captions, the filtered ones, filtered and synthetic ones (of both kinds of models), and the
captions before they were made noisy, always beside the clean ones, and compares them
(configs/studies/*-bootstrap.yaml).

On scenes the filter judges by matching, as BLIP's. So few photographs do not teach matching, but alignment, so there it
judges by that; some noisy captions, labelled by their noise, choose the threshold.

DATA is the folder of tools/run_flickr8k.py, and OUT may be one in which that tool has run: its regions are used again.
Each command runs in its own process in OUT. One that has ended is skipped when this tool runs again, and one that was
interrupted resumes. Writes OUT/bootstrap.json, or another file by --results: precision and recall of the filters by
kind of noise, the scores of the study, and the share of the gap to clean captions that each setting closes. --quick
takes a few small steps, to see that everything runs.
"""

import argparse
import datetime
import json
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dimvl.data.annotations import Caption, read_captions
from dimvl.data.noise import CLEAN
from dimvl.errors import UserError
from dimvl.files import read_json, write_json
from tools import run_flickr8k
from tools.corrupt_captions import noisy_lines, write_lines
from tools.stages import ROOT, Stage, dimvl, minutes, run

SHARE = 0.6
"""Of the captions that are made noisy."""
KINDS = {"scenes": ("separate", "shared"), "flickr8k": ("separate",)}
SEED = 17
SCORES = ("overall", "fact_precision", "fact_recall", "official / CIDEr")
"""Scores of the study that are kept."""
Line = dict[str, Any]


class Sizes(NamedTuple):
    """Training images of scenes, images with clean captions, and steps: of the base, the captioner and the filter.

    `judged` noisy captions, with labels, choose the threshold; `study` has overrides of the study's values.
    """

    images: int
    clean: int
    judged: int
    base: int
    captioner: int
    filter: int
    study: Sequence[str] = ()


SCENES = Sizes(3000, 500, 0, 500, 300, 500)
SCENES_QUICK = Sizes(60, 20, 0, 2, 2, 2, ("values.pretraining=2", "values.answering=2", "values.captioning=2"))
FLICKR8K = Sizes(0, 1000, 1000, 300, 300, 200)
FLICKR8K_QUICK = Sizes(0, 1000, 1000, 2, 2, 2, ("values.pretraining=2", "values.captioning=2"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("scenes", "flickr8k"), help="what the images are")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--data", type=Path, help="folder with Flickr8k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the study")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--jobs", type=int, default=1, help="stages of the study at a time")
    parser.add_argument("--quick", action="store_true", help="a few small steps, to see that everything runs")
    parser.add_argument("--results", type=Path, help="file to write; default OUT/bootstrap.json")
    parser.add_argument("--hardware", default=platform.processor() or platform.machine(), help="for the results")
    arguments = parser.parse_args()
    scenes, quick, out = arguments.name == "scenes", arguments.quick, arguments.out
    sizes = (SCENES_QUICK if quick else SCENES) if scenes else (FLICKR8K_QUICK if quick else FLICKR8K)
    link_configs(out)
    try:
        if scenes:
            planned = scene_stages(sizes)
        elif arguments.data is None:
            parser.error("--data names the folder with Flickr8k; give it")
        else:
            run_flickr8k.lay_out(arguments.data, out)
            planned = run_flickr8k.shared_stages()[:2]  # its concepts were learned from clean captions
        run_all(planned, out)
        lay_out(out, scene_captions(out) if scenes else flickr8k_captions(arguments.data), sizes)
        train = (train_on_scenes if scenes else train_on_flickr8k)(sizes, arguments.threads)
        config = f"configs/bootstrap/{arguments.name}.yaml"
        train += [bootstrap(config, name, arguments.threads) for name in KINDS[arguments.name]]
        run_all(train, out)
        lay_out_results(out, KINDS[arguments.name])
    except UserError as error:
        parser.error(str(error))
    seeds = f"seeds=[{','.join(map(str, arguments.seeds))}]"
    words = ["study", f"configs/studies/{arguments.name}-bootstrap.yaml", seeds, *sizes.study]
    study = Stage("study", dimvl(*words, f"threads={arguments.threads}", "--jobs", str(arguments.jobs)))
    run(study, out)
    write_json(
        arguments.results or out / "bootstrap.json",
        {
            "command": shlex.join(["python", "-m", "tools.measure_bootstrap", *sys.argv[1:]]),
            "hardware": arguments.hardware,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "versions": {name: version(name) for name in ("dimvl", "torch")},
            "share_of_noisy_captions": SHARE,
            "bootstrap": {name: read_json(out / "bootstrap" / name / "report.json") for name in KINDS[arguments.name]},
            **study_results(read_json(out / "study" / "results.json")),
            "minutes": minutes(out, [*planned, *train, study]),
        },
    )


def link_configs(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "configs").is_symlink():
        (out / "configs").symlink_to(ROOT / "configs")


def run_all(planned: Sequence[Stage], out: Path) -> None:
    """Run stages one after the other, those that have ended excepted."""
    for number, stage in enumerate(planned, start=1):
        print(f"{number}/{len(planned)} {stage.name}", file=sys.stderr, flush=True)
        run(stage, out)


def scene_stages(sizes: Sizes) -> list[Stage]:
    """Write scenes with noisy captions, and extract their regions."""
    heldout = max(sizes.images // 10, 12)
    amounts = ["--train", str(sizes.images), "--heldout", str(heldout), "--compositional", "0", "--max-objects", "4"]
    planned = [Stage("scenes", dimvl("scenes", "scenes", *amounts, "--noisy-captions", str(SHARE)))]
    for split in ("train", "heldout"):
        folder = f"scenes/{split}"
        words = [f"{folder}/images", f"regions/{split}", "--coco", f"{folder}/instances.json", "--where", "scenes"]
        planned.append(Stage(f"extract-{split}", dimvl("extract", *words)))
    return planned


Both = tuple[list[Line], list[Line]]
"""Captions as they are, and the same ones of which some are noisy, in one order."""


def scene_captions(out: Path) -> Both:
    """Read the captions of the training scenes."""
    clean = read_captions(out / "scenes" / "train" / "captions.json")
    noisy = read_captions_with_noise(out / "scenes" / "train" / "noisy.jsonl")
    return [as_line(caption.image_id, caption) for caption in clean], noisy


def flickr8k_captions(data: Path) -> Both:
    """Read the captions of the training images of Flickr8k, and make some noisy; images have their ids in the store."""
    captions = read_captions(data / run_flickr8k.ANNOTATIONS, ["train"])
    noisy = noisy_lines(captions, SHARE, SEED)
    clean = [as_line(caption.image_id, caption) for caption in captions]
    return clean, [{**line, "image": own["image"]} for line, own in zip(noisy, clean, strict=True)]


def as_line(image: str, caption: Caption) -> Line:
    return {"image": image, "caption": caption.text, "noise": CLEAN}


def read_captions_with_noise(path: Path) -> list[Line]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def lay_out(out: Path, captions: Both, sizes: Sizes) -> None:
    """Draw the images with clean captions, and write these; of the others the noisy captions, and the true ones.

    Also draws the noisy captions that are judged, if any are wanted.
    """
    true, noisy = captions
    images = list(dict.fromkeys(str(line["image"]) for line in true))
    order = np.random.default_rng(SEED).permutation(len(images))
    chosen = {images[place] for place in order[: sizes.clean]}

    def of_clean(line: Line) -> bool:
        return str(line["image"]) in chosen

    write_captions(out, "clean", true, of_clean)
    write_captions(out, "truth", true, lambda line: not of_clean(line))
    write_captions(out, "noisy", noisy, lambda line: not of_clean(line))
    if not sizes.judged:
        return
    others = [line for line in noisy if not of_clean(line)]
    judged = np.random.default_rng(SEED).permutation(len(others))[: sizes.judged].tolist()
    labelled = [{**others[place], "label": others[place]["noise"] == CLEAN} for place in judged]
    write_captions(out, "judged", labelled, lambda line: True)


def write_captions(out: Path, name: str, lines: Sequence[Line], wanted: Callable[[Line], bool]) -> None:
    (out / "captions").mkdir(exist_ok=True)
    write_lines(out / "captions" / f"{name}.jsonl", [line for line in lines if wanted(line)])


def trainer(threads: int) -> Callable[..., Stage]:
    def train(name: str, command: str, config: str, *values: str) -> Stage:
        given = [f"training.threads={threads}", f"output=runs/{name}", *values]
        return Stage(name, dimvl(command, f"configs/{config}.yaml", *given))

    return train


CLEAN_ONLY = "captions=captions/clean.jsonl"
EVERYTHING = "captions=[captions/clean.jsonl,captions/noisy.jsonl]"


def train_on_scenes(sizes: Sizes, threads: int) -> list[Stage]:
    """Train the base in two phases, then captioner, filter, and one model as both."""
    train, steps = trainer(threads), "training.steps={}".format
    first = ["regions=regions/train", "inputs.tokenizer=null", "inputs.vocabulary=400"]
    later = ["regions=regions/train", "inputs.tokenizer=runs/base-1"]
    both = ["objectives.shares.seq2seq_lm=0.5", "objectives.shares.matching=0.5"]
    phase_1, phase_2 = "studies/scenes/pretrain-1", "studies/scenes/pretrain-2"
    return [
        train("base-1", "pretrain", phase_1, *first, EVERYTHING, steps(sizes.base)),
        train("base-2", "pretrain", phase_2, *later, "initial=runs/base-1", EVERYTHING, steps(sizes.base)),
        train("captioner", "finetune", "bootstrap/scenes/caption", steps(sizes.captioner)),
        train("filter", "finetune", "bootstrap/scenes/filter", steps(sizes.filter)),
        train("shared", "pretrain", phase_2, *later, *both, "initial=runs/base-2", CLEAN_ONLY, steps(sizes.filter)),
    ]


def train_on_flickr8k(sizes: Sizes, threads: int) -> list[Stage]:
    """Train the base, then captioner and filter."""
    train, steps = trainer(threads), "training.steps={}".format
    small = ["model.layers=3", "training.warmup_steps=30", "regions=stores/plain"]
    after = [*small, "initial=runs/base", CLEAN_ONLY]
    return [
        train("base", "pretrain", "flickr8k/pretrain", *small, EVERYTHING, steps(sizes.base)),
        train("captioner", "finetune", "flickr8k/caption", *after, steps(sizes.captioner)),
        train("filter", "finetune", "flickr8k/retrieve", *after, "model.bert=null", steps(sizes.filter)),
    ]


def bootstrap(config: str, name: str, threads: int) -> Stage:
    """Write and filter captions with separate models, or with one."""
    one = ["captioner=runs/shared", "filter=runs/shared"] if name == "shared" else []
    words = ["bootstrap", config, f"output=bootstrap/{name}", *one, "--threads", str(threads)]
    return Stage(f"bootstrap-{name}", dimvl(*words))


def lay_out_results(out: Path, kinds: Sequence[str]) -> None:
    """Write the captions of each setting of the study."""
    found = {name: read_captions_with_noise(out / "bootstrap" / name / "captions.jsonl") for name in kinds}
    write_captions(out, "filtered", found["separate"], lambda line: line["origin"] != "synthetic")
    for name, lines in found.items():
        write_captions(out, "bootstrapped" if name == "separate" else name, lines, lambda line: True)


def study_results(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of the study, and which share of the gap from noisy to true captions each setting closes."""
    means: dict[tuple[str, str], dict[str, float]] = {}
    scores = [record for record in found["scores"] if record["score"] in SCORES]
    for record in scores:
        means.setdefault((record["evaluation"], record["score"]), {})[record["setting"]] = record["mean"]
    closed: dict[str, dict[str, float]] = {}
    for (evaluation, score), own in means.items():
        gap = own.get("truth", 0.0) - own.get("noisy", 0.0)
        if gap > 0:
            shares = {name: round((mean - own["noisy"]) / gap, 3) for name, mean in own.items() if name != "noisy"}
            closed[f"{evaluation}: {score}"] = shares
    return {**{name: found[name] for name in ("seeds", "intervals")}, "scores": scores, "share_of_gap_closed": closed}


if __name__ == "__main__":
    main()
