"""Predictions: questions that share an image, folders against single images, and cold starts.

    python -m benchmarks inference

Questions: on the regions of one image, all at once against one by one, with a model whose prefix does not see the
question (`shared_prefix`) and with one whose prefix does. Folders: scenes through the shipped detector and a model of
the demo's size. Cold starts: fresh processes that take turns; wall time and CPU time of the process.

Weights are random. Answers to questions asked at once are first checked against those asked one by one.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model

from benchmarks.data import ModelSize, make_extractor, make_processor, random_regions
from benchmarks.harness import interleaved, ratio
from dimvl.checkpoints import MODEL, OPTIMISER, RUN, STATE, WEIGHTS
from dimvl.data.processor import Processor
from dimvl.data.scenes import SceneOptions, write_scenes
from dimvl.data.trained_on import NOTHING, copy_trained_on
from dimvl.export import export
from dimvl.files import sha256, write_json
from dimvl.model.model import DimvlModel
from dimvl.predictor import Predictor
from dimvl.regions.detectors.load import SCENES, load_detector
from dimvl.regions.listing import image_files_in
from dimvl.regions.records import Extractor, Regions
from dimvl.trained_model import TrainedModel

WORDS = ("is the small red circle left of a large blue square ?", "how many striped stars are there ?")
NO_DETECTOR = Path("no detector is needed")


@dataclass(frozen=True, kw_only=True)
class Sizes(ModelSize):
    """What is measured: the model that answers, numbers of questions and images, answers."""

    questions: tuple[int, ...] = (1, 8, 64)
    images: int = 64
    answers: int = 3129


SMALL = Sizes(
    layers=2, width=32, heads=4, regions=8, feature_width=16, questions=(1, 3), images=3, answers=5
)  # fmt: skip
TINY = Sizes(layers=3, width=192, heads=6, feature_width=128, answers=30)  # as in the demo; for folders and cold starts


def make_trained(
    sizes: Sizes, extractor: Extractor, device: str, *, shared_prefix: bool, captions: bool
) -> TrainedModel:
    """Make a random model that answers, or one that captions."""
    answers = () if captions else tuple(f"answer {number}" for number in range(sizes.answers))
    changes = {"text_tokens": 20, "answers": answers, "shared_prefix": shared_prefix, "captions": captions}
    processor = make_processor(extractor, max_regions=sizes.regions, **changes)
    torch.manual_seed(0)
    model = DimvlModel(**model_arguments(sizes, processor)).to(device).eval()
    return TrainedModel(model, processor, Path("random"))


def model_arguments(sizes: Sizes, processor: Processor) -> dict[str, Any]:
    """Return the arguments of a model, as an export stores them."""
    return {
        **sizes.arguments,
        "vocabulary": len(processor.tokenizer),
        "max_positions": processor.max_positions,
        "answers": len(processor.answers),
        "word_head": processor.captions,
    }


def questions(sizes: Sizes, device: str, rounds: int) -> dict[str, Any]:
    """Measure questions on one image, all at once against one by one."""
    extractor = make_extractor(sizes.feature_width)
    regions = Regions(image_id="random", width=640, height=480, **random_regions(0, sizes.regions, extractor))
    found: dict[str, dict[str, Any]] = {}
    for name, shared in (("prefix shared", True), ("prefix sees the question", False)):
        trained = make_trained(sizes, extractor, device, shared_prefix=shared, captions=False)
        predictor = Predictor(trained.for_prediction(), NO_DETECTOR)
        found[name] = {str(count): ask(predictor, regions, count, name, device, rounds) for count in sizes.questions}
    return found


def ask(predictor: Predictor, regions: Regions, count: int, name: str, device: str, rounds: int) -> dict[str, Any]:
    """Compare and time the answers to a number of questions."""
    texts = [WORDS[number % 2] for number in range(count)]
    ways: dict[str, Callable[[], Any]] = {
        "at once": lambda: predictor.answer(regions, texts),
        "one by one": lambda: [predictor.answer(regions, text) for text in texts],
    }
    batch, single = (way() for way in ways.values())
    differences = [abs(a.probability - b.probability) for a, b in zip(batch, single, strict=True)]
    if [a.text for a in batch] != [b.text for b in single] or max(differences) > 1e-4:
        raise SystemExit(f"{name}: {count} questions at once have other answers than one by one")
    seconds = interleaved(ways, rounds, device)
    return {
        "questions_per_second": round(count / float(np.median(seconds["at once"])), 2),
        "one_by_one_times_slower": ratio(seconds["one by one"], seconds["at once"]),
    }


def folders(folder: Path, images: Path, device: str, rounds: int) -> dict[str, Any]:
    """Measure captions and answers of a folder, as the command line writes them, against image by image."""
    detector, files = load_detector(SCENES), image_files_in(images)
    detector.save(folder / "detector")
    found: dict[str, Any] = {"images": len(files)}
    for name in ("captions", "answers"):
        trained = make_trained(TINY, detector.extractor, device, shared_prefix=True, captions=name == "captions")
        predictor = Predictor(trained.for_prediction(), folder / "detector")
        predict = predictor.caption if name == "captions" else partial(predictor.answer, questions=WORDS[0])
        ways = {
            "folder": lambda p=predictor, f=predict: [
                x for regions in p.regions_of_files(files, []) for x in f(regions)
            ],
            "single": lambda f=predict: [x for file in files for x in f([file])],
        }
        texts = [[getattr(answer, "text", answer) for answer in way()] for way in ways.values()]
        if texts[0] != texts[1]:
            raise SystemExit(f"{name} of a folder differ from those of its images one by one")
        seconds = interleaved(ways, rounds, device)
        found[name] = {
            "images_per_second": round(len(files) / float(np.median(seconds["folder"])), 2),
            "single_times_slower": ratio(seconds["single"], seconds["folder"]),
        }
    return found


def make_export(folder: Path) -> Path:
    """Write an export of a tiny model with the shipped detector."""
    detector, run = load_detector(SCENES), folder / "run"
    trained = make_trained(TINY, detector.extractor, "cpu", shared_prefix=True, captions=False)
    trained.processor.save(run)
    copy_trained_on(run, NOTHING)
    write_json(run / MODEL, model_arguments(TINY, trained.processor))
    config = {"task": "vqa", "regions": "none", "output": str(run), "initial": None}
    write_json(run / RUN, {"config": config, "data": {}, "versions": {}, "git_revision": None})
    checkpoint = run / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    save_model(trained.model, str(checkpoint / WEIGHTS))
    checksums = {WEIGHTS: sha256(checkpoint / WEIGHTS), OPTIMISER: "0" * 64}  # no prediction reads the latter
    write_json(checkpoint / STATE, {"step": 1, "checksums": checksums})
    return export(run, folder / "export")


def cold_start(folder: Path, image: Path, rounds: int) -> dict[str, Any]:
    """Measure fresh processes, by turns."""
    model, base = make_export(folder), "python -c 'import torch'"
    commands = {
        base: ["-c", "import torch"],
        "dimvl --help": ["-m", "dimvl", "--help"],
        "dimvl answer": ["-m", "dimvl", "answer", str(image), WORDS[0], "--model", str(model), "--device", "cpu"],
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    generator = random.Random(0)
    for turn in range(-1, rounds):
        for name in generator.sample(list(commands), len(commands)):
            figures = _process_seconds(commands[name])
            if turn >= 0:
                spent[name].append(figures)

    def median(figures: Any) -> dict[str, float]:
        return dict(zip(("wall", "cpu"), np.median(figures, axis=0).round(3).tolist(), strict=True))

    return {
        "seconds": {name: median(figures) for name, figures in spent.items()},
        "answer_over_import_torch": median(np.array(spent["dimvl answer"]) - np.array(spent[base])),
    }


def _process_seconds(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds (user and system) of a fresh Python."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {process.returncode}")
    return wall, used.ru_utime + used.ru_stime


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Measure all three."""
    sizes = SMALL if small else Sizes()
    write_scenes(folder / "scenes", SceneOptions(train=2, heldout=sizes.images, compositional=2))
    images = folder / "scenes" / "heldout" / "images"
    return {
        "questions": questions(sizes, device, rounds),
        "folders": folders(folder, images, device, rounds),
        "cold_start": cold_start(folder, image_files_in(images)[0], rounds),
    }
