"""A trained model over a region store: answers, captions and match probabilities, batched by rows.

The same texts and regions give the same results whatever their order; nothing is drawn at random.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.data.annotations import Question, describe_file, read_captions, read_questions
from dimvl.data.documents import ImageReader, Prefix
from dimvl.data.sampler import in_order
from dimvl.data.scenes import read_worlds, score_captions
from dimvl.decoding import DecodingOptions
from dimvl.errors import UserError
from dimvl.metrics.vqa import vqa_accuracy
from dimvl.pretrained import Trained
from dimvl.regions.store import RegionStore

Progress = Callable[[int, int], None]
ROW_BUDGET = 8192


def answer_questions(
    trained: Trained,
    store: RegionStore,
    questions: Sequence[Question],
    row_budget: int = ROW_BUDGET,
    progress: Progress | None = None,
) -> dict[int, str]:
    """Give the most probable answer to each question, by question id.

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
    image_ids = [question.image_id for question in questions]
    for places, prefixes in _batches(trained, store, image_ids, [len(text) + 1 for text in words], row_budget):
        probabilities = trained.answer_probabilities(prefixes, [words[place] for place in places])
        for place, best in zip(places, probabilities.argmax(dim=1).tolist(), strict=True):
            result[questions[place].question_id] = trained.processor.answers[best]
        if progress is not None:
            progress(len(result), len(questions))
    return result


def caption_images(
    trained: Trained,
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
    trained: Trained,
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
    trained: Trained, store: RegionStore, image_ids: Sequence[str], text_rows: Sequence[int], row_budget: int
) -> Iterator[tuple[np.ndarray, list[Prefix]]]:
    """Give places into `image_ids`, alike many rows together, with the prefixes of their images.

    Raises:
        UserError: nothing to do, an image that the store lacks, or a store of another extractor.

    """
    if not image_ids:
        raise UserError(f"there is nothing to evaluate with {store.path}; give annotations that are not empty")
    processor = trained.processor
    processor.check_extractor(store.extractor, str(store.path))
    reader = ImageReader(store, processor.tags, processor.max_regions)
    positions = store.positions(image_ids)
    for places in in_order(reader.rows(positions) + np.array(text_rows), row_budget):
        yield places, [reader.prefix(reader.read(int(position))) for position in positions[places]]


def evaluate_questions(
    trained: Trained,
    store: RegionStore,
    questions: Path,
    annotations: Path | None,
    progress: Progress | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answer a question file and score the answers.

    Args:
        trained: a model that answers.
        store: the regions of the questions' images.
        questions: VQA v2 questions.
        annotations: VQA v2 annotations; None where they are not published.
        progress: called with (questions done, questions in all).

    Returns:
        The answers in the official results format and the scores, empty without annotations.

    Raises:
        UserError: as `answer_questions` and `read_questions`.

    """
    asked = read_questions(questions, annotations)
    answers = answer_questions(trained, store, asked, progress=progress)
    records = [{"question_id": question.question_id, "answer": answers[question.question_id]} for question in asked]
    if annotations is None:
        return records, {}
    return records, {"task": "vqa", "data": describe_file(questions), **asdict(vqa_accuracy(answers, asked))}


def evaluate_captions(
    trained: Trained,
    store: RegionStore,
    captions: Path,
    worlds: Path | None = None,
    options: DecodingOptions | None = None,
    progress: Progress | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Caption the images of a caption file and, where they are scenes, score the captions by their facts.

    Args:
        trained: a model that captions.
        store: the regions of the images.
        captions: COCO captions.
        worlds: ground truth of scenes; by default `worlds.jsonl` beside the captions, if it is there.
        options: how to decode.
        progress: called with (images done, images in all).

    Returns:
        The captions in the official results format and the scores, empty where the images are no scenes.

    Raises:
        UserError: as `caption_images` and `read_captions`.

    """
    references: dict[str, list[str]] = {}
    for reference in read_captions(captions):
        references.setdefault(reference.image_id, []).append(reference.text)
    found = caption_images(trained, store, list(references), options, progress=progress)
    records = [{"image_id": _official_id(image_id), "caption": caption} for image_id, caption in found.items()]
    beside = captions.parent / "worlds.jsonl"
    if worlds is None and not beside.exists():
        return records, {}
    scores = score_captions(
        {int(image_id): caption for image_id, caption in found.items()},
        read_worlds(worlds or beside),
        {int(image_id): texts for image_id, texts in references.items()},
    )
    return records, {"task": "caption", "data": describe_file(captions), "count": len(found), **asdict(scores)}


def _official_id(image_id: str) -> int | str:
    """Return an image id as annotation files have it: a number where it is one."""
    return int(image_id) if image_id.isdecimal() else image_id
