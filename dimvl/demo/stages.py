"""The stages of the demo: what each one does, and which stages must finish before it starts."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.callbacks import Progress
from dimvl.data.annotations import Question, read_captions, read_questions
from dimvl.data.scenes import COLOURS, SIZES, TEXTURES, write_scenes
from dimvl.data.tokenizer import Tokenizer
from dimvl.demo import scoring
from dimvl.demo.config import DemoConfig, DemoPaths, Further
from dimvl.demo.further import FURTHER, score_further
from dimvl.demo.runs import run_config
from dimvl.export import export
from dimvl.files import read_json, write_json
from dimvl.predictor import Predictor
from dimvl.regions.detectors.scenes import load_scene_detector
from dimvl.regions.extract import extract
from dimvl.regions.geometry import xywh_to_corners
from dimvl.regions.listing import images_of_coco
from dimvl.regions.parts import folder_of_part, parts_of
from dimvl.regions.sources.base import Part
from dimvl.regions.store.join import join_stores
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.training.run import run_training

SHARES = [(f"extract-train-{number}", Part(number, 2)) for number in (1, 2)]
"""The training scenes are shared between two stages, as `dimvl extract` shares images between processes."""
SHARD_BYTES = 4 * 2**20  # small shards, so that an interrupted extraction loses little
EXAMPLES = 3


@dataclass(frozen=True)
class Stage:
    """A part of the demo that runs in its own process.

    Attributes:
        name: name of the stage, unique in a demo.
        work: does it; when called again after an interruption, resumes.
        after: names of the stages that must finish first.
        about: a few words for the table of stages.
        images: number of images it processes.
        examples: number of captions, questions or training examples, where that is known before.
        steps: optimiser steps.

    """

    name: str
    work: Callable[[DemoConfig, DemoPaths, Progress], None]
    after: tuple[str, ...]
    about: str
    images: int = 0
    examples: int = 0
    steps: int = 0


def all_stages(config: DemoConfig) -> list[Stage]:
    """Make the stages; of those that may start, the first one listed starts first."""
    scenes = config.scenes
    tests = scenes.heldout + scenes.compositional
    questions = scenes.train * scenes.questions_per_image

    def train(name: str, after: str, about: str, examples: int = 0) -> Stage:
        steps = run_config(config, DemoPaths(Path()), name).training.steps
        return Stage(name, partial(_train, name), (after,), about, scenes.train, examples, steps)

    stages = [
        Stage("scenes", _write_scenes, (), "render images, write annotations", scenes.train + tests, questions),
        *(
            Stage(name, partial(_extract, "train", share=share), ("scenes",), "detect regions", scenes.train // 2)
            for name, share in SHARES
        ),
        Stage("extract-train", _join_train, tuple(name for name, _ in SHARES), "join their stores"),
        Stage("extract-test", _extract_tests, ("scenes",), "detect regions of both test splits", tests),
        train("question_only", "extract-train", "baseline without images"),
    ]
    for number in range(1, len(config.pretraining) + 1):
        before = "extract-train" if number == 1 else f"pretraining-{number - 1}"
        stages.append(train(f"pretraining-{number}", before, "pretrain from captions"))
    final = config.last_pretraining
    answerers, scratch = [], []
    for point in reversed(config.labels):  # the longest first
        answerers.append(f"vqa-{point.questions}")
        stages.append(train(answerers[-1], final, "fine-tune for questions", point.questions))
        scratch.append(f"no_pretraining-{point.questions}")
        stages.append(train(scratch[-1], "extract-train", "baseline for questions", point.questions))
    stages.append(train("caption", final, "fine-tune for captions"))
    if config.self_critical is not None:
        stages.append(train("self_critical", "caption", "reward captions by CIDEr-D"))
    further = {task: FURTHER[task] for task in config.further}
    for task, own in further.items():
        after = [own.start(config)]
        if own.images:
            after.append(f"extract-{own.images}")
            stages.append(Stage(after[-1], partial(_extract_own, task), ("scenes",), f"detect regions of {own.images}"))
        stages.append(replace(train(task, after[0], own.about), after=tuple(after)))
    baselines = (*scratch, "question_only", "extract-test")
    captioning = (config.captioner, "extract-test")
    asked = tests * scenes.questions_per_image
    return [
        *stages,
        Stage("score-baselines", scoring.score_baselines, baselines, "answers of baselines", scenes.heldout),
        Stage("score-vqa", scoring.score_vqa, (final, *answerers, "score-baselines"), "answers, gains", tests, asked),
        Stage("score-detector", scoring.score_detector, ("extract-test",), "AP50, attributes", tests),
        Stage("score-matching", scoring.score_matching, (final, "extract-test"), "true or false"),
        *(
            [Stage("score-search", scoring.score_search, (final, "extract-test"), "find images", tests)]
            if config.searches
            else []
        ),
        Stage("score-captions", scoring.score_caption_facts, captioning, "facts in captions", tests),
        *(
            Stage(f"score-{task}", partial(score_further, task), (task, "extract-test"), "on held-out scenes", tests)
            for task in further
        ),
        Stage("export", _export, (config.answerer, config.captioner), "write the exports"),
        Stage("predict", _predict, ("export",), "answer and caption from image files", EXAMPLES),
    ]


def _write_scenes(config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    write_scenes(paths.scenes, config.options, progress=progress, workers=config.lanes)
    captions = [caption.text for caption in read_captions(paths.scenes / "train" / "captions.json")]
    questions = [question.text for question in read_questions(paths.scenes / "train" / "questions.json", None)]
    further = [text for task in config.further for text in FURTHER[task].texts(paths.scenes / "train")]
    texts = [*captions, *questions, *further, *SIZES, *COLOURS, *TEXTURES]
    tokenizer = Tokenizer.train(texts, config.inputs.vocabulary)
    tokenizer.save(paths.tokenizer)


def _extract(
    part: str,
    config: DemoConfig,
    paths: DemoPaths,
    progress: Progress,
    *,
    share: Part | None = None,
    ground_truth: bool = False,
) -> None:
    """Detect the regions of a part of the scenes or of a share of it, or describe its ground-truth boxes."""
    detector = load_scene_detector()
    folder = paths.scenes / part
    images = images_of_coco(folder / "instances.json", folder / "images")
    boxes = _ground_truth_boxes(read_json(folder / "instances.json")) if ground_truth else None
    store = paths.regions(scoring.GROUND_TRUTH if ground_truth else part)
    if share is not None:
        images, store = images[share.slice], folder_of_part(store, share)
    with RegionStoreWriter(store, detector.extractor, shard_bytes=SHARD_BYTES) as writer:
        extract(images, detector, writer, progress=progress, boxes=boxes)


def _join_train(config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    store = paths.regions("train")
    if not store.exists():
        shares = parts_of(store)
        join_stores(store, shares, progress)
        for share in shares:
            shutil.rmtree(share)


def _extract_tests(config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    for split in scoring.SPLITS:
        _extract(split, config, paths, progress)
    _extract("heldout", config, paths, progress, ground_truth=True)


def _extract_own(task: Further, config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    """Detect the regions of a further task's own images."""
    for split in ("train", "heldout"):
        _extract(FURTHER[task].part(split), config, paths, progress)


def _ground_truth_boxes(instances: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Corners (R, 4) as fractions of the image, by image id."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in instances["images"]}
    boxes: dict[str, list[np.ndarray]] = {str(image): [] for image in sizes}
    for annotation in instances["annotations"]:
        width, height = sizes[annotation["image_id"]]
        corners = xywh_to_corners(np.array([annotation["bbox"]], dtype=np.float64))[0]
        boxes[str(annotation["image_id"])].append(corners / (width, height, width, height))
    return {image: np.clip(np.array(found).reshape(-1, 4), 0, 1).astype(np.float32) for image, found in boxes.items()}


def _train(name: str, config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    run_training(run_config(config, paths, name), lambda report: progress(report.step, report.steps))


def _export(config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    for ability, run in {"vqa": config.answerer, "caption": config.captioner, "match": config.last_pretraining}.items():
        export(paths.run(run), paths.exports / ability)


def _predict(config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    """Answer, explain and caption from three image files, with nothing but the exports."""
    files = sorted((paths.scenes / "heldout" / "images").iterdir())[:EXAMPLES]
    answering = Predictor.from_pretrained(paths.exports / "vqa")
    captioning = Predictor.from_pretrained(paths.exports / "caption")
    questions: dict[str, list[Question]] = {}
    for question in scoring.read_split_questions(paths, "heldout"):
        questions.setdefault(question.image_id, []).append(question)
    examples = []
    for done, file in enumerate(files, start=1):
        image = str(int(file.stem))
        explained = [_explain(answering, file, question) for question in _one_of_each_kind(questions[image])]
        caption = captioning.caption(str(file), **config.decoding.model_dump(exclude_unset=True))
        examples.append({"picture": file.name, "image_id": image, "caption": caption, "questions": explained})
        progress(done, len(files))
    write_json(paths.scores / "examples.json", examples)


def _one_of_each_kind(questions: Sequence[Question]) -> list[Question]:
    return list({question.kind: question for question in reversed(questions)}.values())[::-1]


def _explain(predictor: Predictor, file: Path, question: Question) -> dict[str, Any]:
    explanation = predictor.explain(str(file), question.text)
    return {
        "question": question.text,
        "expected": question.answers[0],
        "answers": explanation.result.top,
        "regions": [region.record() for region in explanation.regions],
    }
