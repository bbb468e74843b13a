"""The stages of the demo: what each one does, and what it must wait for."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.callbacks import Progress
from dimvl.config import TrainingConfig
from dimvl.data.annotations import Question, read_captions, read_questions
from dimvl.data.scenes import (
    SIZES,
    TEXTURES,
    World,
    changed_caption,
    is_true,
    read_worlds,
    score_captions,
    word_change_pairs,
    write_scenes,
)
from dimvl.data.scenes.world import COLOURS
from dimvl.data.tokenizer import Tokenizer
from dimvl.decoding import DecodingOptions
from dimvl.demo_config import DemoConfig, Places, changes_words, previous_phase, run_config
from dimvl.evaluation import answer_questions, caption_images, match_probabilities
from dimvl.export import export
from dimvl.files import read_json, write_json
from dimvl.metrics.vqa import question_accuracy
from dimvl.predictor import Predictor
from dimvl.pretrained import TrainedModel, load_model
from dimvl.regions.detectors.scenes import load_scene_detector
from dimvl.regions.detectors.scores import attribute_accuracy, average_precision_50
from dimvl.regions.extract import extract, images_of_coco
from dimvl.regions.geometry import xywh_to_corners
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.training.run import run_training

Work = Callable[[DemoConfig, Places, Progress], None]
SPLITS = ("heldout", "compositional")
GROUND_TRUTH = "heldout-ground-truth-boxes"
SHARD_BYTES = 4 * 2**20  # small shards: an interrupted extraction goes on near where it stopped
EXAMPLES = 3
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A piece of the demo.

    Attributes:
        name: of the stage.
        work: does it; called again after an interruption it goes on.
        after: stages that must be done before.
        about: what it is, for the budget table.
        pictures: how many it touches.
        examples: captions, questions or training examples, where that is known beforehand.

    """

    name: str
    work: Work
    after: tuple[str, ...]
    about: str
    pictures: int = 0
    examples: int = 0


def all_stages(config: DemoConfig) -> list[Stage]:
    """Stages in the order in which they are started as soon as they may."""
    scenes = config.scenes
    tests = scenes.heldout + scenes.compositional
    questions = scenes.train * scenes.questions_per_image
    stages = [
        Stage("scenes", _scenes, (), "render pictures, write annotations", scenes.train + tests, questions),
        Stage("extract-train", partial(_extract, "train"), ("scenes",), "detect regions", scenes.train),
        Stage("extract-test", _extract_tests, ("scenes",), "detect regions of both test splits", tests),
        Stage("question_only", partial(_train, "question_only"), ("extract-train",), "baseline without picture"),
    ]
    last = len(config.pretraining)
    for number in range(1, last + 1):
        for series in ("pretraining", "pretraining_without_word_change"):
            name = f"{series}-{number}"
            if series != "pretraining" and not changes_words(config, number):
                continue
            before = previous_phase(config, series, number) if number > 1 else "extract-train"
            stages.append(Stage(name, partial(_train, name), (before,), "pretrain from captions", scenes.train))
    final = f"pretraining-{last}"
    plain = f"pretraining_without_word_change-{last}" if changes_words(config, last) else final
    stages += [
        Stage("vqa", partial(_train, "vqa"), (final,), "fine-tune for questions", scenes.train, questions),
        Stage("no_pretraining", partial(_train, "no_pretraining"), ("extract-train",), "baseline from scratch"),
        Stage("caption", partial(_train, "caption"), (final,), "fine-tune for captions", scenes.train),
    ]
    if config.self_critical is not None:
        work = partial(_train, "self_critical")
        stages.append(Stage("self_critical", work, ("caption",), "reward captions by CIDEr-D", scenes.train))
    stages += [
        Stage("score-detector", _score_detector, ("extract-test",), "AP50, attributes", tests),
        Stage(
            "score-matching", partial(_score_matching, final, plain), (final, plain, "extract-test"), "true or false"
        ),
        Stage("score-captions", _score_captions, (config.captioner, "extract-test"), "facts of captions", tests),
        Stage(
            "score-vqa",
            _score_vqa,
            ("vqa", "no_pretraining", "question_only", "extract-test"),
            "answers beside the baselines",
            tests,
            tests * scenes.questions_per_image,
        ),
        Stage("export", _export, ("vqa", config.captioner), "write the exports"),
        Stage("predict", _predict, ("export",), "answer and caption from picture files", EXAMPLES),
    ]
    return stages


def _scenes(config: DemoConfig, places: Places, progress: Progress) -> None:
    write_scenes(places.scenes, config.options, progress=progress, workers=config.lanes)
    captions = [caption.text for caption in read_captions(places.scenes / "train" / "captions.json")]
    asked = [question.text for question in read_questions(places.scenes / "train" / "questions.json", None)]
    tokenizer = Tokenizer.train([*captions, *asked, *SIZES, *COLOURS, *TEXTURES], config.inputs.vocabulary)
    tokenizer.save(places.tokenizer)
    words = {word for caption in captions for word in caption.rstrip(".").split()}
    pairs = [pair for pair in sorted(word_change_pairs("train")) if words.issuperset(pair)]
    write_json(places.word_changes, pairs)


def _extract(split: str, config: DemoConfig, places: Places, progress: Progress) -> None:
    detector = load_scene_detector()
    folder = places.scenes / split
    images = images_of_coco(folder / "instances.json", folder / "images")
    with RegionStoreWriter(places.regions(split), detector.extractor, shard_bytes=SHARD_BYTES) as writer:
        extract(images, detector, writer, progress=progress)


def _extract_tests(config: DemoConfig, places: Places, progress: Progress) -> None:
    for split in SPLITS:
        _extract(split, config, places, progress)
    detector = load_scene_detector()
    folder = places.scenes / "heldout"
    images = images_of_coco(folder / "instances.json", folder / "images")
    boxes = _ground_truth_boxes(read_json(folder / "instances.json"))
    with RegionStoreWriter(places.regions(GROUND_TRUTH), detector.extractor, shard_bytes=SHARD_BYTES) as writer:
        extract(images, detector, writer, progress=progress, boxes=boxes)


def _ground_truth_boxes(instances: Mapping[str, Any]) -> dict[str, np.ndarray]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in instances["images"]}
    boxes: dict[str, list[np.ndarray]] = {str(image): [] for image in sizes}
    for annotation in instances["annotations"]:
        width, height = sizes[annotation["image_id"]]
        corners = xywh_to_corners(np.array([annotation["bbox"]], dtype=np.float64))[0]
        boxes[str(annotation["image_id"])].append(corners / (width, height, width, height))
    return {image: np.clip(np.array(found).reshape(-1, 4), 0, 1).astype(np.float32) for image, found in boxes.items()}


def _train(name: str, config: DemoConfig, places: Places, progress: Progress) -> None:
    run_training(run_config(config, places, name), lambda report: progress(report.step, report.steps))


def _questions(places: Places, split: str) -> list[Question]:
    folder = places.scenes / split
    return read_questions(folder / "questions.json", folder / "annotations.json")


def _answer(trained: TrainedModel, places: Places, store: str, split: str, progress: Progress) -> list[float]:
    """Official accuracy of each question of a split, regions from `store`."""
    questions = _questions(places, split)
    given = answer_questions(trained, RegionStore(places.regions(store)), questions, progress=progress)
    return [question_accuracy(given[question.question_id], question.answers) for question in questions]


def _score_vqa(config: DemoConfig, places: Places, progress: Progress) -> None:
    kinds = {split: [question.kind for question in _questions(places, split)] for split in SPLITS}
    main, scratch = load_model(places.run("vqa")), load_model(places.run("no_pretraining"))
    scores = {
        "heldout": _answer(main, places, "heldout", "heldout", progress),
        "compositional": _answer(main, places, "compositional", "compositional", progress),
        "ground_truth_boxes": _answer(main, places, GROUND_TRUTH, "heldout", progress),
        "no_pretraining": _answer(scratch, places, "heldout", "heldout", progress),
        "question_only": _answer(load_model(places.run("question_only")), places, "heldout", "heldout", progress),
        "majority": _majority(_questions(places, "train"), _questions(places, "heldout")),
    }
    by_kind = {
        name: _by_kind(values, kinds["compositional" if name == "compositional" else "heldout"])
        for name, values in scores.items()
    }
    gain = np.array(scores["heldout"]) - np.array(scores["no_pretraining"])
    result: dict[str, Any] = {name: float(np.mean(values)) for name, values in scores.items()}
    result["heldout_interval"] = interval(scores["heldout"])
    result["pretraining_gain"] = float(gain.mean())
    result["pretraining_gain_interval"] = interval(gain)
    result["questions"] = len(scores["heldout"])
    write_json(places.scores / "vqa.json", {**result, "by_kind": by_kind})


def interval(values: Sequence[float] | np.ndarray) -> float:
    """Half of the 95% interval of a mean over questions: 1.96 standard errors."""
    return float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values)))


def _by_kind(values: Sequence[float], kinds: Sequence[str]) -> dict[str, float]:
    return {
        kind: float(np.mean([value for value, own in zip(values, kinds, strict=True) if own == kind]))
        for kind in sorted(set(kinds))
    }


def _majority(train: Sequence[Question], test: Sequence[Question]) -> list[float]:
    """Always the most common training answer."""
    answers, counts = np.unique([question.answers[0] for question in train], return_counts=True)
    return [question_accuracy(str(answers[counts.argmax()]), question.answers) for question in test]


def _score_captions(config: DemoConfig, places: Places, progress: Progress) -> None:
    scores: dict[str, Any] = {}
    final = load_model(places.run(config.captioner))
    for split in SPLITS:
        scores[split], captions = _caption_scores(final, config, places, split, progress)
        write_json(places.scores / f"captions-{split}.json", {str(image): text for image, text in captions.items()})
    result = {**scores["heldout"], "compositional": scores["compositional"]}
    if config.self_critical is not None:
        before = load_model(places.run("caption"))
        result["before_self_critical"], _ = _caption_scores(before, config, places, "heldout", progress)
    write_json(places.scores / "caption.json", result)


def _caption_scores(
    trained: TrainedModel, config: DemoConfig, places: Places, split: str, progress: Progress
) -> tuple[dict[str, Any], dict[int, str]]:
    """Scores of the captions of a split, and the captions by image."""
    options = DecodingOptions(max_tokens=config.inputs.text_tokens + 1, **config.decoding.model_dump())
    folder = places.scenes / split
    references: dict[int, list[str]] = {}
    for caption in read_captions(folder / "captions.json"):
        references.setdefault(int(caption.image_id), []).append(caption.text)
    store = RegionStore(places.regions(split))
    given = caption_images(trained, store, list(map(str, references)), options, progress=progress)
    captions = {int(image): text for image, text in given.items()}
    return score_captions(captions, read_worlds(folder / "worlds.jsonl"), references).__dict__, captions


def _score_matching(final: str, plain: str, config: DemoConfig, places: Places, progress: Progress) -> None:
    random_pairs, word_pairs = matching_pairs(config, places)
    store = RegionStore(places.regions("heldout"))
    trained = load_model(places.run(final))
    without = trained if plain == final else load_model(places.run(plain))
    result = {
        "random": match_accuracy(trained, store, random_pairs),
        "one_word": match_accuracy(trained, store, word_pairs),
        "one_word_without_word_change": match_accuracy(without, store, word_pairs),
        "random_without_word_change": match_accuracy(without, store, random_pairs),
        "pairs": len(random_pairs) + len(word_pairs),
    }
    write_json(places.scores / "matching.json", result)


Pair = tuple[str, str, bool]


def matching_pairs(config: DemoConfig, places: Places) -> tuple[list[Pair], list[Pair]]:
    """Held-out pairs (image id, text, true?), as many true as false, each negative verified false against its scene.

    Random negatives are captions of other scenes; in the others one word is changed, with pairs of words that
    training never changes into each other.
    """
    folder = places.scenes / "heldout"
    worlds: dict[int, World] = read_worlds(folder / "worlds.jsonl")
    captions = read_captions(folder / "captions.json")
    generator = np.random.default_rng([config.seed, 17])
    pairs = word_change_pairs("test")
    random_pairs: list[Pair] = []
    word_pairs: list[Pair] = []
    for caption in captions:
        world = worlds[int(caption.image_id)]
        other = captions[int(generator.integers(len(captions)))].text
        if not is_true(other, world):
            random_pairs += [(caption.image_id, caption.text, True), (caption.image_id, other, False)]
        changed = changed_caption(caption.text, world, generator, pairs)
        if changed is not None:
            word_pairs += [(caption.image_id, caption.text, True), (caption.image_id, changed, False)]
    return random_pairs, word_pairs


def match_accuracy(trained: TrainedModel, store: RegionStore, pairs: Sequence[Pair]) -> float:
    """Share of pairs judged rightly at probability .5."""
    probabilities = match_probabilities(trained, store, [(image, text) for image, text, _ in pairs])
    return float(np.mean((probabilities > 0.5) == np.array([true for _, _, true in pairs])))


def _score_detector(config: DemoConfig, places: Places, progress: Progress) -> None:
    groups = {"size": list(SIZES), "colour": list(COLOURS), "texture": list(TEXTURES)}
    result = {}
    for split in SPLITS:
        store = RegionStore(places.regions(split))
        found = {int(store.image_id(place)): store.read(place) for place in range(len(store))}
        instances = read_json(places.scenes / split / "instances.json")
        classes = store.extractor.classes
        accuracy = attribute_accuracy(found, instances, classes, groups)
        result[split] = {"ap50": average_precision_50(found, instances, classes), "attribute_accuracy": accuracy["all"]}
    write_json(places.scores / "detector.json", result)


def _export(config: DemoConfig, places: Places, progress: Progress) -> None:
    runs = {"vqa": "vqa", "caption": config.captioner, "match": f"pretraining-{len(config.pretraining)}"}
    for ability, run in runs.items():
        export(places.run(run), places.exports / ability)


def _predict(config: DemoConfig, places: Places, progress: Progress) -> None:
    """Answer, explain and caption from three picture files, with nothing but the exports."""
    folder = places.scenes / "heldout"
    files = sorted((folder / "images").iterdir())[:EXAMPLES]
    answering = Predictor.from_pretrained(places.exports / "vqa")
    captioning = Predictor.from_pretrained(places.exports / "caption")
    asked: dict[str, list[Question]] = {}
    for question in _questions(places, "heldout"):
        asked.setdefault(question.image_id, []).append(question)
    examples = []
    for done, file in enumerate(files):
        image = str(int(file.stem))
        explained = [_explain(answering, file, question) for question in _one_of_each_kind(asked[image])]
        caption = captioning.caption(str(file), beams=config.decoding.beams)
        examples.append({"picture": file.name, "image_id": image, "caption": caption, "questions": explained})
        progress(done + 1, len(files))
    write_json(places.scores / "examples.json", examples)


def _one_of_each_kind(questions: Sequence[Question]) -> list[Question]:
    return list({question.kind: question for question in reversed(questions)}.values())[::-1]


def _explain(predictor: Predictor, file: Path, question: Question) -> dict[str, Any]:
    explanation = predictor.explain(str(file), question.text)
    return {
        "question": question.text,
        "expected": question.answers[0],
        "answers": explanation.answer.top,
        "regions": [region._asdict() for region in explanation.regions],
    }


def training_of(config: DemoConfig, name: str) -> TrainingConfig | None:
    """Training section of a stage, None where it does not train."""
    if name.startswith("pretraining"):
        return config.pretraining[int(name.rpartition("-")[2]) - 1].training
    questions = dict.fromkeys(("vqa", "no_pretraining", "question_only"), config.vqa)
    return {**questions, "caption": config.caption, "self_critical": config.self_critical}.get(name)
