"""Predictions: questions that share a picture, folders against single pictures, and starting from nothing.

Questions: on the regions of one picture, all at once against one by one, with a model whose prefix does not see the
question (`shared_prefix`) and with one whose prefix does. Folders: scenes through the shipped detector and a model as
small as the demo's. Cold start: fresh processes; wall time and processor time of the process, by turns.

Weights are random; what is asked at once is first checked to be answered as one by one.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model

from benchmarks.harness import interleaved, ratio
from benchmarks.sizes import ModelSize
from dimvl.checkpoints import MODEL, OPTIMISER, RUN, STATE, WEIGHTS
from dimvl.data.processor import Processor
from dimvl.data.scenes import SceneOptions, write_scenes
from dimvl.data.tokenizer import Tokenizer
from dimvl.data.trained_on import NOTHING, copy_trained_on
from dimvl.export import export
from dimvl.files import sha256, write_json
from dimvl.model.model import DimvlModel
from dimvl.predictor import Predictor
from dimvl.regions.detectors import SCENES, load_detector
from dimvl.regions.extract import pictures_of_folder
from dimvl.regions.records import Extractor, Regions
from dimvl.trained_model import TrainedModel

WORDS = ("is the small red circle left of a large blue square ?", "how many striped stars are there ?")
NO_DETECTOR = Path("no detector is needed")


@dataclass(frozen=True, kw_only=True)
class Sizes(ModelSize):
    """What is measured: the model behind the questions, numbers of questions and pictures, answers."""

    questions: tuple[int, ...] = (1, 8, 64)
    pictures: int = 64
    answers: int = 3129


SMALL = Sizes(
    layers=2, width=32, heads=4, inner_width=64, regions=8, feature_width=16, questions=(1, 3), pictures=3, answers=5
)  # fmt: skip
TINY = Sizes(layers=3, width=192, heads=6, inner_width=768, feature_width=128, answers=30)
"""The model of the demo's questions, as folders and cold starts take it."""


def make_trained(
    sizes: Sizes, extractor: Extractor, device: str, *, shared_prefix: bool, captions: bool
) -> TrainedModel:
    """Draw a model that answers, or one that captions."""
    processor = Processor(
        tokenizer=Tokenizer.train(WORDS, 200),
        extractor=extractor,
        max_regions=sizes.regions,
        tag_tokens=20,
        tag_score=0.3,
        text_tokens=20,
        answers=() if captions else tuple(f"answer {number}" for number in range(sizes.answers)),
        shared_prefix=shared_prefix,
        captions=captions,
    )
    torch.manual_seed(0)
    model = DimvlModel(**model_arguments(sizes, processor)).to(device).eval()
    return TrainedModel(model, processor, Path("drawn"))


def model_arguments(sizes: Sizes, processor: Processor) -> dict[str, Any]:
    """Tell the arguments of a model, as an export has them."""
    return {
        **sizes.arguments,
        "vocabulary": len(processor.tokenizer),
        "max_positions": processor.max_positions,
        "answers": len(processor.answers),
        "word_head": processor.captions,
    }


def make_regions(sizes: Sizes) -> Regions:
    """Draw the regions of one picture."""
    generator = np.random.default_rng(0)
    corners = generator.random((sizes.regions, 2, 2), dtype=np.float32)
    return Regions(
        image_id="drawn",
        width=640,
        height=480,
        boxes=np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1),
        features=generator.normal(size=(sizes.regions, sizes.feature_width)).astype(np.float16),
        class_ids=generator.integers(0, 3, (sizes.regions, 1)).astype(np.int16),
        class_scores=np.full((sizes.regions, 1), 0.9, np.float16),
        attribute_ids=np.zeros((sizes.regions, 0), np.int16),
        attribute_scores=np.zeros((sizes.regions, 0), np.float16),
    )


def questions(sizes: Sizes, device: str, rounds: int) -> dict[str, Any]:
    """Measure questions on one picture, all at once against one by one."""
    extractor = Extractor(
        name="drawn",
        fingerprint="0" * 64,
        parameters={},
        feature_width=sizes.feature_width,
        classes=("circle", "square", "star"),
        attributes=(),
    )
    regions, found = make_regions(sizes), {}
    for name, shared in (("prefix shared", True), ("prefix sees the question", False)):
        trained = make_trained(sizes, extractor, device, shared_prefix=shared, captions=False)
        predictor = Predictor(trained.for_prediction(), NO_DETECTOR)
        for count in sizes.questions:
            asked = [WORDS[number % 2] for number in range(count)]
            ways: dict[str, Callable[[], object]] = {
                "at once": lambda asked=asked, ask=predictor.answer: ask(regions, asked),
                "one by one": lambda asked=asked, ask=predictor.answer: [ask(regions, text) for text in asked],
            }
            together, alone = (way() for way in ways.values())
            differences = [abs(a.probability - b.probability) for a, b in zip(together, alone, strict=True)]
            if [a.text for a in together] != [b.text for b in alone] or max(differences) > 1e-4:
                raise SystemExit(f"{name}: {count} questions at once are answered otherwise than one by one")
            seconds = interleaved(ways, rounds, device)
            found.setdefault(name, {})[str(count)] = {
                "questions_per_second": round(count / float(np.median(seconds["at once"])), 2),
                "one_by_one_times_slower": ratio(seconds["one by one"], seconds["at once"]),
            }
    return found


def folders(sizes: Sizes, scenes: Path, device: str, rounds: int) -> dict[str, Any]:
    """Measure captions and answers of a folder, as the command line gives them, against picture by picture."""
    detector, files = load_detector(SCENES), pictures_of_folder(scenes)
    detector.save(scenes.parent / "detector")
    found = {}
    for name in ("captions", "answers"):
        trained = make_trained(TINY, detector.extractor, device, shared_prefix=True, captions=name == "captions")
        predictor = Predictor(trained.for_prediction(), scenes.parent / "detector")

        def predict(given: Any, name: str = name, predictor: Predictor = predictor) -> list[str]:
            if name == "captions":
                return predictor.caption(given)
            return [answer.text for answer in predictor.answer(given, WORDS[0])]

        def folder(predict: Callable[..., list[str]] = predict, predictor: Predictor = predictor) -> list[str]:
            return [text for regions in predictor.regions_of_files(files, []) for text in predict(regions)]

        def single(predict: Callable[..., list[str]] = predict) -> list[str]:
            return [text for file in files for text in predict([file])]

        if folder() != single():
            raise SystemExit(f"{name} of a folder differ from those of its pictures one by one")
        seconds = interleaved({"folder": folder, "single": single}, rounds, device)
        found[name] = {
            "pictures_per_second": round(len(files) / float(np.median(seconds["folder"])), 2),
            "single_times_slower": ratio(seconds["single"], seconds["folder"]),
        }
    return {"pictures": len(files), **found}


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
    checksums = {WEIGHTS: sha256(checkpoint / WEIGHTS), OPTIMISER: "0" * 64}  # which no prediction reads
    write_json(checkpoint / STATE, {"step": 1, "checksums": checksums})
    return export(run, folder / "export")


def cold_start(place: Path, picture: Path, rounds: int) -> dict[str, Any]:
    """Measure fresh processes, by turns."""
    model = make_export(place)
    commands = {
        "python -c 'import torch'": ["-c", "import torch"],
        "dimvl --help": ["-m", "dimvl", "--help"],
        "dimvl answer": ["-m", "dimvl", "answer", str(picture), WORDS[0], "--model", str(model), "--device", "cpu"],
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    generator = random.Random(0)
    for turn in range(-1, rounds):
        for name in generator.sample(list(commands), len(commands)):
            figures = _process_seconds(commands[name])
            if turn >= 0:
                spent[name].append(figures)
    median = {name: np.median(figures, axis=0).round(3).tolist() for name, figures in spent.items()}
    over = np.array(spent["dimvl answer"]) - np.array(spent["python -c 'import torch'"])
    return {
        "seconds": {name: dict(zip(("wall", "processor"), figures, strict=True)) for name, figures in median.items()},
        "answer_over_import_torch": dict(zip(("wall", "processor"), np.median(over, axis=0).round(3), strict=True)),
    }


def _process_seconds(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall and processor seconds (user and system) of a fresh Python."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return wall, used.ru_utime + used.ru_stime


def run(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Measure all three."""
    sizes = SMALL if small else Sizes()
    with TemporaryDirectory() as name:
        place = Path(name)
        write_scenes(place / "scenes", SceneOptions(train=2, heldout=sizes.pictures, compositional=2))
        scenes = place / "scenes" / "heldout" / "images"
        return {
            "questions": questions(sizes, device, rounds),
            "folders": folders(sizes, scenes, device, rounds),
            "cold_start": cold_start(place, pictures_of_folder(scenes)[0], rounds),
        }
