"""A trained model over a region store: answers, captions and match probabilities, batched by rows.

The same texts and regions give the same results whatever their order; nothing is drawn at random.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.callbacks import Progress
from dimvl.config import Missing
from dimvl.data.annotations import Question, describe_file, read_captions, read_questions
from dimvl.data.examples import ImageReader, Prefix, PrefixImages
from dimvl.data.matching import in_store, match_file
from dimvl.data.sampler import in_order
from dimvl.data.scenes import World, read_worlds, score_captions
from dimvl.decoding import DecodingOptions
from dimvl.errors import UserError
from dimvl.files import atomic_path, git_revision, sha256, write_json
from dimvl.metrics.captions import caption_scores
from dimvl.metrics.vqa import question_accuracy, vqa_accuracy
from dimvl.pretrained import TrainedModel, origin_of
from dimvl.regions.store import RegionStore

logger = logging.getLogger(__name__)
ROW_BUDGET = 8192
PACKAGES = ("dimvl", "torch", "tokenizers", "numpy", "pycocoevalcap")
PREDICTIONS, ITEMS, SCORES, MANIFEST = "predictions.json", "items.jsonl", "scores.json", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model predicted for an annotation file.

    Attributes:
        predictions: records of the official submission format.
        items: for people, one for each prediction: what was asked, what is right, what was said, how it scored.
        scores: of all of them; empty where there is nothing to compare with.

    """

    predictions: list[dict[str, Any]]
    items: list[dict[str, Any]]
    scores: dict[str, Any]


def answer_questions(
    trained: TrainedModel,
    store: RegionStore,
    questions: Sequence[Question],
    row_budget: int = ROW_BUDGET,
    progress: Progress | None = None,
) -> dict[int, str]:
    """Give the most probable answer to each question, by question id.

    Where the model's prefixes do not depend on the question, an image is computed once for all its questions.

    Args:
        trained: a model that answers.
        store: the regions of the questions' images.
        questions: their own answers are not looked at.
        row_budget: rows of one forward.
        progress: called with (questions done, questions in all).

    Raises:
        UserError: no question, an image that the store lacks, or a store of another extractor.

    """
    trained.require("answer")
    result: dict[int, str] = {}
    words = trained.tokenise([question.text for question in questions])
    groups: dict[int | str, list[int]] = {}  # questions that share a prefix
    for place, question in enumerate(questions):
        groups.setdefault(question.image_id if trained.processor.shared_prefix else place, []).append(place)
    asked = list(groups.values())
    image_ids = [questions[group[0]].image_id for group in asked]
    rows = [sum(len(words[place]) + 1 for place in group) for group in asked]
    for chosen, prefixes in _batches(trained, store, image_ids, rows, row_budget):
        pairs = [(prefix, place) for prefix, one in zip(prefixes, chosen, strict=True) for place in asked[one]]
        repeated, texts = [prefix for prefix, _ in pairs], [words[place] for _, place in pairs]
        best = trained.answer_probabilities(repeated, texts).argmax(dim=1).tolist()
        for (_, place), answer in zip(pairs, best, strict=True):
            result[questions[place].question_id] = trained.processor.answers[answer]
        if progress is not None:
            progress(len(result), len(questions))
    return result


def caption_images(
    trained: TrainedModel,
    store: RegionStore,
    image_ids: Sequence[str],
    options: DecodingOptions | None = None,
    row_budget: int = ROW_BUDGET,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Caption images, by image id.

    Args:
        trained: a model that captions.
        store: the regions of the images.
        image_ids: each once.
        options: how to decode; `max_tokens` is lowered to what the model's positions allow.
        row_budget: rows of one batch, those of all beams counted.
        progress: called with (images done, images in all).

    Raises:
        UserError: no image, an image that the store lacks, or a store of another extractor.

    """
    trained.require("caption")
    options = options or DecodingOptions()
    text_rows = options.beams * min(options.max_tokens, trained.processor.text_tokens + 1)
    result: dict[str, str] = {}
    for places, prefixes in _batches(trained, store, image_ids, [text_rows] * len(image_ids), row_budget):
        captions = trained.captions(prefixes, options)
        result.update(zip([image_ids[place] for place in places], captions, strict=True))
        if progress is not None:
            progress(len(result), len(image_ids))
    return {image_id: result[image_id] for image_id in image_ids}


def match_probabilities(
    trained: TrainedModel,
    store: RegionStore,
    pairs: Sequence[tuple[str, str]],
    row_budget: int = ROW_BUDGET,
    progress: Progress | None = None,
) -> np.ndarray:
    """Probability (M,) that the text of each pair belongs to its image.

    Args:
        trained: a model that matches.
        store: the regions of the images.
        pairs: (image id, text).
        row_budget: rows of one forward.
        progress: called with (pairs done, pairs in all).

    Raises:
        UserError: no pair, an empty text, an image that the store lacks, or a store of another extractor.

    """
    trained.require("match")
    result = np.zeros(len(pairs), dtype=np.float32)
    words = trained.tokenise([text for _, text in pairs])
    image_ids = [image_id for image_id, _ in pairs]
    done = 0
    for places, prefixes in _batches(trained, store, image_ids, [len(text) + 1 for text in words], row_budget):
        result[places] = trained.match_probabilities(prefixes, [words[place] for place in places]).numpy()
        done += len(places)
        if progress is not None:
            progress(done, len(pairs))
    return result


def _batches(
    trained: TrainedModel, store: RegionStore, image_ids: Sequence[str], text_rows: Sequence[int], row_budget: int
) -> Iterator[tuple[np.ndarray, list[Prefix]]]:
    """Give places into `image_ids`, alike many rows together, with the prefixes of their images.

    Raises:
        UserError: nothing to do, an image that the store lacks or that the model was trained on, or a store of another
            extractor.

    """
    if not image_ids:
        raise UserError(f"there is nothing to evaluate with {store.path}; give annotations that are not empty")
    processor = trained.processor
    processor.check_extractor(store.extractor, str(store.path))
    reader = ImageReader(store, processor.tags, processor.max_regions)
    positions = PrefixImages.find(store, [((image_id,), ()) for image_id in image_ids])
    trained.refuse_trained(image_ids)
    for places in in_order(reader.rows(positions) + np.array(text_rows), row_budget):
        yield places, reader.prefixes(positions[places])


def evaluate_questions(
    trained: TrainedModel,
    store: RegionStore,
    questions: Path,
    annotations: Path | None,
    progress: Progress | None = None,
    missing: Missing = "error",
) -> Evaluation:
    """Answer a question file and score the answers.

    Args:
        trained: a model that answers.
        store: the regions of the questions' images.
        questions: of any format that is read.
        annotations: VQA v2 annotations; None where they are not published, or where the questions have their answers.
        progress: called with (questions done, questions in all).
        missing: whether questions on images that the store lacks are an error, or left out.

    Raises:
        UserError: as `answer_questions`, `read_questions` and `match_file`.

    """
    read = read_questions(questions, annotations)
    match = match_file(questions, read, store, trained.processor)
    match.check(store, missing, "--skip-missing")
    asked = list(in_store(read, match))
    answers = answer_questions(trained, store, asked, progress=progress)
    names = {question.question_id: question.image_id for question in read}  # as the file names images, not the store
    items = []
    for question in asked:
        given = answers[question.question_id]
        image_id = _official_id(names[question.question_id])
        item: dict[str, Any] = {"question_id": question.question_id, "image_id": image_id}
        item |= {"question": question.text, "prediction": given}
        if question.answers:
            item |= {"answers": question.answers, "accuracy": question_accuracy(given, question.answers)}
        items.append(item)
    records = [{"question_id": item["question_id"], "answer": item["prediction"]} for item in items]
    scores: dict[str, Any] = {}
    if any(question.answers for question in asked):
        found = vqa_accuracy(answers, asked)
        for remark in found.remarks():
            logger.warning("%s", remark)
        scores = {"task": "vqa", "data": describe_file(questions), **asdict(found)}
    return Evaluation(predictions=records, items=items, scores=scores)


def evaluate_captions(
    trained: TrainedModel,
    store: RegionStore,
    captions: Path,
    worlds: Path | None = None,
    options: DecodingOptions | None = None,
    progress: Progress | None = None,
    missing: Missing = "error",
    split: Sequence[str] = (),
) -> Evaluation:
    """Caption the images of a caption file and, where they are scenes, score the captions by their facts.

    `with_official_scores` adds the scores by the COCO protocol.

    Args:
        trained: a model that captions.
        store: the regions of the images.
        captions: of any format that is read.
        worlds: ground truth of scenes; by default `worlds.jsonl` beside the captions, if it is there.
        options: how to decode.
        progress: called with (images done, images in all).
        missing: whether an image that the store lacks is an error, or left out.
        split: splits of a file of Karpathy's splits.

    Raises:
        UserError: as `caption_images`, `read_captions` and `match_file`.

    """
    references: dict[str, list[str]] = {}
    read = read_captions(captions, split)
    match = match_file(captions, read, store, trained.processor)
    match.check(store, missing, "--skip-missing")
    for reference in read:
        if reference.image_id in match.store_ids:
            references.setdefault(reference.image_id, []).append(reference.text)
    scenes = _scenes(captions, worlds, {image: (image, match.store_ids[image]) for image in references})
    written = caption_images(
        trained, store, [match.store_ids[image] for image in references], options, progress=progress
    )
    found = {image: written[match.store_ids[image]] for image in references}
    records = [{"image_id": _official_id(image_id), "caption": caption} for image_id, caption in found.items()]
    items = [
        {"image_id": _official_id(image_id), "prediction": caption, "references": references[image_id]}
        for image_id, caption in found.items()
    ]
    scores = {"task": "caption", "data": describe_file(captions), "count": len(found)}
    if scenes is not None:
        numbers = {image: world.image_id for image, world in scenes.items()}
        facts = score_captions(
            {numbers[image]: caption for image, caption in found.items()},
            {world.image_id: world for world in scenes.values()},
            {numbers[image]: texts for image, texts in references.items()},
        )
        scores |= asdict(facts)
    return Evaluation(predictions=records, items=items, scores=scores)


def _scenes(captions: Path, worlds: Path | None, names: Mapping[str, Sequence[str]]) -> dict[str, World] | None:
    """Find the scene of each image; None where the captions are not of scenes.

    Args:
        captions: their file.
        worlds: ground truth that was given; by default what lies beside the captions, where it has all the images.
        names: image -> its ids, of which the first that is a number is that of its scene.

    Raises:
        UserError: `worlds` has no scene of an image.

    """
    if (path := worlds_of(captions, worlds)) is None:
        return None
    known, found = read_worlds(path), dict[str, World]()
    for image, ids in names.items():
        number = next((int(name) for name in ids if name.isdecimal()), None)
        if number not in known:
            if worlds is not None:
                raise UserError(
                    f"{path} has no scene of image {image!r} of {captions}; give the worlds.jsonl of the same split"
                )
            logger.warning("%s has no scene of image %r of %s: facts are not scored", path, image, captions)
            return None
        found[image] = known[number]
    return found


def worlds_of(captions: Path | None, worlds: Path | None) -> Path | None:
    """Return the ground truth of scenes: the file given, or `worlds.jsonl` beside the captions if it is there."""
    beside = None if captions is None else captions.parent / "worlds.jsonl"
    return worlds or (beside if beside is not None and beside.exists() else None)


def with_official_scores(evaluation: Evaluation) -> Evaluation:
    """Add the scores of the COCO protocol to captions; where they cannot be computed, why.

    They stand under `official` in the scores and in each item, what is not there under `left_out`.
    """
    predictions = {str(item["image_id"]): item["prediction"] for item in evaluation.items}
    references = {str(item["image_id"]): item["references"] for item in evaluation.items}
    try:
        found = caption_scores(predictions, references)
    except UserError as error:
        logger.warning("no scores by the COCO protocol (%s); `dimvl score caption` gives them later", error)
        return replace(evaluation, scores={**evaluation.scores, "left_out": {"official": str(error)}})
    items = [{**item, "official": found.per_image[str(item["image_id"])]} for item in evaluation.items]
    scores = {**evaluation.scores, "official": found.corpus, "left_out": found.left_out}
    return replace(evaluation, items=items, scores=scores)


def describe_evaluation(
    model: Path,
    trained: TrainedModel,
    store: RegionStore,
    files: Mapping[str, Path | None],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Tell what an evaluation depends on: model, regions, annotation files, settings and code.

    Nothing is drawn at random in an evaluation; the seed is the one that a run was trained with.

    Args:
        model: the folder that was given.
        trained: what was loaded from it.
        store: the regions.
        files: name -> annotation file; those that are None are left out.
        settings: everything else that the predictions depend on.

    """
    origin = origin_of(model)
    return {
        "model": {
            "folder": model.name,
            "weights": str(trained.weights.relative_to(model)),
            "sha256": sha256(trained.weights),
            "trained_by": {name: origin.get(name) for name in ("git_revision", "data")},
        },
        "seed": origin.get("seed"),
        "regions": [
            {
                "store": folder.path.name,
                "manifest_sha256": sha256(folder.path / "manifest.json"),
                "images": len(folder),
                "extractor": folder.manifest.extractor.name,
                "fingerprint": folder.manifest.extractor.fingerprint,
            }
            for folder in store.folders
        ],
        "data": {name: describe_file(path) for name, path in files.items() if path is not None},
        "settings": dict(settings),
        "versions": {name: version(name) for name in PACKAGES if find_spec(name)},
        "git_revision": git_revision(),
    }


def write_evaluation(folder: Path, evaluation: Evaluation, manifest: Mapping[str, Any]) -> None:
    """Write items, scores and the manifest, which comes last and has the checksum of the predictions beside it."""
    with atomic_path(folder / ITEMS) as temporary:
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in evaluation.items)
        temporary.write_text("".join(lines), encoding="utf-8")
    if evaluation.scores:
        write_json(folder / SCORES, evaluation.scores)
    write_json(folder / MANIFEST, {**manifest, "predictions_sha256": sha256(folder / PREDICTIONS)})


def write_predictions(folder: Path, evaluation: Evaluation) -> None:
    """Write the predictions; what an earlier evaluation left of other predictions is removed."""
    write_json(folder / PREDICTIONS, evaluation.predictions, indent=None)
    for name in (ITEMS, SCORES, MANIFEST):
        (folder / name).unlink(missing_ok=True)


def _official_id(image_id: str) -> int | str:
    """Return an image id as annotation files have it: a number where it is one."""
    return int(image_id) if image_id.isdecimal() and image_id == str(int(image_id)) else image_id
