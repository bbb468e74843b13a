"""The demo's scores: answers beside their baselines, facts of captions, matching, and the detector."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dimvl.callbacks import Progress
from dimvl.data.annotations import Caption, Id, Question, read_captions, read_questions
from dimvl.data.scenes import (
    COLOURS,
    SIZES,
    TEXTURES,
    changed_caption,
    is_true,
    read_worlds,
    score_captions,
    word_change_pairs,
)
from dimvl.demo.config import DemoConfig, DemoPaths, shipped_config
from dimvl.files import read_json, write_json
from dimvl.metrics.intervals import Interval, mean_interval
from dimvl.metrics.recall import ranks, recall_scores
from dimvl.metrics.vqa import question_accuracy
from dimvl.metrics.wording import faults
from dimvl.regions.detectors.scores import attribute_accuracy, average_precision_50
from dimvl.regions.store import RegionStore
from dimvl.tasks.answering.prediction import answer_questions
from dimvl.tasks.answering.statements import read_statements
from dimvl.tasks.answering.zero_shot import answer_by_statements
from dimvl.tasks.captioning.prediction import caption_images
from dimvl.tasks.pretraining.matching import match_pairs
from dimvl.tasks.retrieval.evaluation import Gallery, embedding_scores, match_candidates
from dimvl.tasks.retrieval.prediction import embed_all_texts, embed_store, scales
from dimvl.trained_model import TrainedModel, load_model

SEARCHED = 300
"""Held-out images to search."""
CANDIDATES = 8
"""Images that are judged together with a query after the search by embedding."""
SPLITS = ("heldout", "compositional")
GROUND_TRUTH = "heldout-ground-truth-boxes"
BASELINES = "baselines.json"
"""Accuracies of the baselines' answers to the held-out questions, by name."""


def read_split_questions(paths: DemoPaths, split: str) -> list[Question]:
    """Read the questions and answers of a split."""
    folder = paths.scenes / split
    return read_questions(folder / "questions.json", folder / "annotations.json")


def score_baselines(config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    """Write the accuracy of each answer of the models without pretraining and without images."""
    heldout = read_split_questions(paths, "heldout")
    names = [*(f"no_pretraining-{point.questions}" for point in config.labels), "question_only"]
    found = {name: _accuracies(_answers(paths, name, heldout, progress), heldout) for name in names}
    write_json(paths.scores / BASELINES, {name: values.tolist() for name, values in found.items()})


def score_vqa(config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    """Score the answers of the models beside their baselines: by number of labels, overall, and by kind of question.

    The pretrained model, which knows no label, answers by statements; questions that no rule covers count as wrong.
    """
    questions = {split: read_split_questions(paths, split) for split in ("train", *SPLITS)}
    heldout, images = questions["heldout"], [question.images for question in questions["heldout"]]
    baselines = {name: np.array(values) for name, values in read_json(paths.scores / BASELINES).items()}

    def accuracies(run: str, store: str = "heldout", split: str = "heldout") -> np.ndarray:
        return _accuracies(_answers(paths, run, questions[split], progress, store), questions[split])

    def zero_shot() -> np.ndarray:
        trained, store = load_model(paths.run(config.last_pretraining)), RegionStore(paths.regions("heldout"))
        rules = read_statements(shipped_config("statements"))
        return _accuracies(answer_by_statements(trained, store, heldout, rules, progress), heldout)

    few_labels = {}
    for point in config.labels:
        ours, scratch = accuracies(f"vqa-{point.questions}"), baselines[f"no_pretraining-{point.questions}"]
        few_labels[str(point.questions)] = {
            "pretrained": float(ours.mean()),
            "none": float(scratch.mean()),
            "pretrained_interval": list(mean_interval(ours, images)),
            "none_interval": list(mean_interval(scratch, images)),
            "gain": float((ours - scratch).mean()),
            "interval": list(mean_interval(ours - scratch, images)),
        }
    scores = {
        "heldout": ours,
        "compositional": accuracies(config.answerer, "compositional", "compositional"),
        "ground_truth_boxes": accuracies(config.answerer, GROUND_TRUTH),
        "zero_shot": zero_shot(),
        "no_pretraining": scratch,
        "question_only": baselines["question_only"],
        "majority": np.array(_majority(questions["train"], heldout)),
    }
    result = {
        **{name: float(values.mean()) for name, values in scores.items()},
        "heldout_interval": half(mean_interval(ours, images)),
        "pretraining_gain": float((ours - scratch).mean()),
        "pretraining_gain_interval": half(mean_interval(ours - scratch, images)),
        "labels": config.labels[-1].questions,
        "questions": len(heldout),
        "few_labels": few_labels,
        "by_kind": {
            name: _by_kind(values, questions["compositional"] if name == "compositional" else heldout)
            for name, values in scores.items()
        },
    }
    write_json(paths.scores / "vqa.json", result)


def _answers(
    paths: DemoPaths, run: str, questions: Sequence[Question], progress: Progress, store: str = "heldout"
) -> dict[Id, str]:
    return answer_questions(load_model(paths.run(run)), RegionStore(paths.regions(store)), questions, progress=progress)


def _accuracies(answers: Mapping[Id, str], questions: Sequence[Question]) -> np.ndarray:
    """Accuracies of the answers to questions; 0 for one without an answer."""
    found = [(answers.get(question.question_id, ""), question.answers) for question in questions]
    return np.array([question_accuracy(*pair) for pair in found])


def half(interval: Interval) -> float:
    """Half of the length of an interval."""
    return (interval.high - interval.low) / 2


def _by_kind(values: np.ndarray, questions: Sequence[Question]) -> dict[str, float]:
    kinds = [question.kind for question in questions]
    return {
        kind: float(np.mean([value for value, own in zip(values, kinds, strict=True) if own == kind]))
        for kind in sorted(set(kinds))
    }


def _majority(train: Sequence[Question], test: Sequence[Question]) -> list[float]:
    """Accuracies of the most common training answer, given to every question."""
    answers, counts = np.unique([question.answers[0] for question in train], return_counts=True)
    return [question_accuracy(str(answers[counts.argmax()]), question.answers) for question in test]


def score_caption_facts(config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    """Score the facts that captions state on both test splits, and those before self-critical training."""
    scores: dict[str, Any] = {}
    final = load_model(paths.run(config.captioner))
    for split in SPLITS:
        scores[split], captions = _score_split_captions(final, config, paths, split, progress)
        write_json(paths.scores / f"captions-{split}.json", {str(image): text for image, text in captions.items()})
    result = {**scores["heldout"], "compositional": scores["compositional"]}
    if config.self_critical is not None:
        before = load_model(paths.run("caption"))
        result["before_self_critical"], _ = _score_split_captions(before, config, paths, "heldout", progress)
    write_json(paths.scores / "caption.json", result)


def _score_split_captions(
    trained: TrainedModel, config: DemoConfig, paths: DemoPaths, split: str, progress: Progress
) -> tuple[dict[str, Any], dict[int, str]]:
    """Scores of the captions of a split, and the captions by image."""
    options = config.decoding.model_copy(update={"max_tokens": config.inputs.text_tokens + 1})
    folder = paths.scenes / split
    references: dict[int, list[str]] = {}
    for caption in read_captions(folder / "captions.json"):
        references.setdefault(int(caption.image_id), []).append(caption.text)
    store = RegionStore(paths.regions(split))
    generated = caption_images(trained, store, list(map(str, references)), options, progress=progress)
    captions = {int(image): text for image, text in generated.items()}
    scores = score_captions(captions, read_worlds(folder / "worlds.jsonl"), references)
    form = [faults(caption) for caption in captions.values()]
    return scores.__dict__ | {name: float(np.mean([own[name] for own in form])) for name in form[0]}, captions


def score_matching(config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    """Score matching after the last phase of pretraining."""
    random_pairs, word_pairs = matching_pairs(config, paths)
    trained, store = load_model(paths.run(config.last_pretraining)), RegionStore(paths.regions("heldout"))
    result = {
        "random": match_accuracy(trained, store, random_pairs),
        "one_word": match_accuracy(trained, store, word_pairs),
        "pairs": len(random_pairs) + len(word_pairs),
    }
    write_json(paths.scores / "matching.json", result)


Pair = tuple[str, str, bool]


def matching_pairs(config: DemoConfig, paths: DemoPaths) -> tuple[list[Pair], list[Pair]]:
    """Make held-out pairs (image id, text, whether it is true), half of them true; the others are false of their scene.

    A random negative is the caption of another scene. The negatives of the second list have one word changed, by pairs
    of words that training never exchanges.
    """
    folder = paths.scenes / "heldout"
    worlds = read_worlds(folder / "worlds.jsonl")
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
    """Share of the pairs judged correctly at a threshold of .5."""
    probabilities = match_pairs(trained, store, [(image, text) for image, text, _ in pairs])
    return float(np.mean((probabilities > 0.5) == np.array([true for _, _, true in pairs])))


def score_search(config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    """Score the search for held-out images, by one caption and by all captions of an image together.

    The baseline compares bags of words: those of the captions with the names of the regions.
    """
    trained, store = load_model(paths.run(config.last_pretraining)), RegionStore(paths.regions("heldout"))
    captions = read_captions(paths.scenes / "heldout" / "captions.json")
    every = Gallery.of(captions)
    chosen = set(every.images[:SEARCHED])
    captions = [caption for caption in captions if caption.images in chosen]
    images = embed_store(trained, store, every.images[:SEARCHED])
    scale = float(scales(trained)[0])
    cosines = embedding_scores(images, embed_all_texts(trained, [one.text for one in captions]), "global")
    result: dict[str, Any] = {"images": len(chosen), "captions": len(captions)}
    for name, together in (("one_caption", False), ("all_captions", True)):
        gallery = Gallery.of(captions, together)
        scores = gallery.of_queries(scale * cosines)
        second = match_candidates(trained, store, gallery, scores, CANDIDATES, progress)["text_to_image"]
        right = gallery.right["text_to_image"]
        found = ranks(scores.T, right, second)
        result[name] = recall_scores(found) | {
            "interval": list(mean_interval(found == 1, gallery.owners.tolist())),
            "embedding_only": recall_scores(ranks(scores.T, right)),
        }
    words = gallery.of_queries(shared_words(captions, store, gallery.images))
    result["bag_of_words"] = recall_scores(ranks(words.T, right))
    write_json(paths.scores / "search.json", result)


def shared_words(captions: Sequence[Caption], store: RegionStore, images: Sequence[Any]) -> np.ndarray:
    """Cosines of captions' words and the names of regions: (I, T). The fewer images have a word, the more it weighs."""
    extractor = store.extractor
    names = []
    for ids, _ in images:
        regions = store.read(store.position(ids[0]))
        classes, attributes = (ids[ids >= 0].tolist() for ids in (regions.class_ids[:, 0], regions.attribute_ids))
        own = [extractor.classes[one] for one in classes] + [extractor.attributes[one] for one in attributes]
        names.append(_bag(own))
    known = sorted({word for own in names for word in own})
    texts = [_bag(caption.text.lower().replace(".", " ").split()) for caption in captions]
    rarity = np.log(len(images) / np.array([sum(word in own for own in names) for word in known]))
    of_images, of_texts = (
        np.array([[own[word] for word in known] for own in side]) * rarity for side in (names, texts)
    )
    lengths = np.linalg.norm(of_images, axis=1)[:, None] * np.linalg.norm(of_texts, axis=1)
    return of_images @ of_texts.T / np.maximum(lengths, 1e-9)


def _bag(words: Sequence[str]) -> Counter[str]:
    """Count words, singular and plural as one."""
    return Counter(word.rstrip("s") for word in words)


def score_detector(config: DemoConfig, paths: DemoPaths, progress: Progress) -> None:
    """Score the detector's boxes and attributes on both test splits."""
    groups = {"size": list(SIZES), "colour": list(COLOURS), "texture": list(TEXTURES)}
    result = {}
    for split in SPLITS:
        store = RegionStore(paths.regions(split))
        detected = {int(store.image_id(index)): store.read(index) for index in range(len(store))}
        instances = read_json(paths.scenes / split / "instances.json")
        classes = store.extractor.classes
        accuracy = attribute_accuracy(detected, instances, classes, groups)["all"]
        result[split] = {"ap50": average_precision_50(detected, instances, classes), "attribute_accuracy": accuracy}
    write_json(paths.scores / "detector.json", result)
