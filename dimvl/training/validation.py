"""The task's own score on other data, during training: what the best checkpoint is chosen by.

Scores are the higher the better. Nothing here is drawn at random but the subset, which its own seed decides; so a run
that is resumed finds the same scores. Captions are decoded greedily, which is quick and what self-critical training
changes first.

Ranks share the work: each scores every so manieth batch, an empty one where there is none left for it, so that all of
them call the modules of the model equally often.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dimvl.callbacks import NamedProgress
from dimvl.config import (
    AnyConfig,
    CaptionConfig,
    CaptionValidationConfig,
    ValidationConfig,
    VqaConfig,
    VqaValidationConfig,
)
from dimvl.data.annotations import Caption, ImageKey, read_captions, read_questions
from dimvl.data.examples import ImageReader, PrefixImages, collate, keyed_generator
from dimvl.data.matching import Record, in_store, match_file
from dimvl.data.sampler import in_order
from dimvl.data.text_store import LabelledText, text_store
from dimvl.data.trained_on import read_trained_on, trained_images
from dimvl.decoding import DecodingOptions
from dimvl.errors import UserError
from dimvl.metrics.cider import CiderD
from dimvl.metrics.vqa import vqa_accuracy
from dimvl.metrics.words import plain_words
from dimvl.pretrained import TrainedModel
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import Task
from dimvl.tasks.captioning import OBJECTIVE, CaptionSource, CaptionTask
from dimvl.training.early_stopping import Validation
from dimvl.training.ranks import Ranks

logger = logging.getLogger(__name__)
Score = Callable[[], float]
PREDICTIONS = 32
TOP_ANSWERS = 3


@dataclass(frozen=True)
class _Shared:
    """Batches dealt over ranks, with progress told."""

    ranks: Ranks
    working: NamedProgress

    def out(self, batches: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Give this rank's share of the batches; as many on every rank, the last one empty on some."""
        nothing = np.zeros(0, dtype=np.int64)
        for first in range(0, len(batches), self.ranks.size):
            place = first + self.ranks.rank
            yield batches[place] if place < len(batches) else nothing
            self.working("batches validated", min(first + self.ranks.size, len(batches)), len(batches))


def build_validation(
    config: AnyConfig, task: Task, store: RegionStore, ranks: Ranks, working: NamedProgress
) -> Validation | None:
    """Prepare the validation that a run asks for.

    Args:
        config: of the run.
        task: its model is scored; in eval mode, and put back into training mode.
        store: of the training images, where the validation names none.
        ranks: all of which ask for the score at once.
        working: called while the score is found.

    Raises:
        UserError: annotations or regions that do not fit.

    """
    if not isinstance(config, VqaConfig | CaptionConfig) or config.validation is None:
        return None
    section = config.validation
    if section.regions is not None:
        store = RegionStore(section.regions, config.training.check_reads)
        task.processor.check_extractor(store.extractor, str(store.path))
    predictions: list[dict[str, Any]] = []
    shared = _Shared(ranks, working)
    if isinstance(config, VqaConfig):
        assert config.validation is not None
        score = _accuracy(config, config.validation, task, store, shared, predictions)
    else:
        assert config.validation is not None
        score = _captioning(config, config.validation, task, store, shared, predictions)

    def without_training() -> float:
        task.eval()
        try:
            with torch.inference_mode():
                return score()
        finally:
            task.train()

    return Validation(without_training, section.every, section.patience, predictions)


def _accuracy(
    config: VqaConfig,
    section: VqaValidationConfig,
    task: Task,
    store: RegionStore,
    shared: _Shared,
    predictions: list[dict[str, Any]],
) -> Score:
    """Official accuracy of the most probable answers; the best answers to a sample go to `predictions`."""
    every = _on_images(read_questions(section.questions, section.annotations), section.questions, config, store)
    asked = [every[place] for place in _chosen(len(every), section)]
    if unanswered := [question for question in asked if not question.answers]:
        raise UserError(
            f"question {unanswered[0].question_id} of {section.questions} has no answers to compare with; give "
            "validation.annotations"
        )
    trained = TrainedModel(task.model, task.processor, section.questions)
    words = trained.tokenise([question.text for question in asked])
    images = ImageReader(store, task.processor.tags, task.processor.max_regions)
    positions = PrefixImages.find(store, [question.images for question in asked])
    costs = images.rows(positions) + np.array([len(text) + 1 for text in words])

    names, shown = task.processor.answers, _sample(len(asked), section)
    top = min(TOP_ANSWERS, len(names))

    def score() -> float:
        best = np.zeros((len(asked), top), dtype=np.int64)
        sure = np.zeros((len(asked), top))
        for places in shared.out(in_order(costs, config.training.rows_per_micro_batch)):
            prefixes = images.prefixes(positions[places])
            found = trained.answer_probabilities(prefixes, [words[place] for place in places])
            found, order = found.sort(dim=1, descending=True, stable=True)
            best[places], sure[places] = order[:, :top], found[:, :top]
        best, sure = shared.ranks.sum(best), shared.ranks.sum(sure)
        predictions[:] = [
            {
                "question_id": asked[place].question_id,
                "image_id": ", ".join(asked[place].image_ids),
                "question": asked[place].text,
                "answers": [[names[answer], round(p, 4)] for answer, p in zip(best[place], sure[place], strict=True)],
                "truth": [answer for answer, _ in Counter(asked[place].answers).most_common()],
            }
            for place in shown
        ]
        return vqa_accuracy({q.question_id: names[n] for q, n in zip(asked, best[:, 0], strict=True)}, asked).overall

    return score


def _captioning(
    config: CaptionConfig,
    section: CaptionValidationConfig,
    task: Task,
    store: RegionStore,
    shared: _Shared,
    predictions: list[dict[str, Any]],
) -> Score:
    """CIDEr-D of greedy captions, those of a sample to `predictions`; or minus the loss per word, without any."""
    by_image: dict[ImageKey, list[Caption]] = {}
    for caption in _on_images(read_captions(section.captions, section.split), section.captions, config, store):
        by_image.setdefault(caption.images, []).append(caption)
    names = list(by_image)
    chosen = [names[place] for place in _chosen(len(names), section)]
    if section.metric == "loss":
        return _loss(config, section.captions, task, store, [c for name in chosen for c in by_image[name]], shared)
    if len(chosen) < 2:
        raise UserError(f"validation.captions {section.captions}: CIDEr-D of one image is always 0; take more images")
    reward = CiderD([[plain_words(caption.text) for caption in by_image[name]] for name in chosen])
    trained = TrainedModel(task.model, task.processor, section.captions)
    images = ImageReader(store, task.processor.tags, task.processor.max_regions)
    positions = PrefixImages.find(store, chosen)
    options = DecodingOptions(beams=1, max_tokens=task.processor.text_tokens + 1)
    shown = _sample(len(chosen), section)

    def score() -> float:
        scores, texts = np.zeros(len(chosen)), dict[int, str]()
        costs = images.rows(positions) + options.max_tokens
        for places in shared.out(in_order(costs, config.training.rows_per_micro_batch)):
            prefixes = images.prefixes(positions[places])
            written = trained.captions(prefixes, options, task.all_ranks)
            scores[places] = reward.scores([plain_words(text) for text in written], places)
            texts |= {int(place): text for place, text in zip(places, written, strict=True) if place in shown}
        scores, told = shared.ranks.sum(scores), shared.ranks.gather(texts)
        texts = {place: text for part in told for place, text in part.items()}
        predictions[:] = [
            {
                "image_id": ", ".join(chosen[place][0]),
                "caption": texts[place],
                "references": [caption.text for caption in by_image[chosen[place]]],
                "cider": round(float(scores[place]), 4),
            }
            for place in sorted(texts)
        ]
        return float(scores.mean())

    return score


def _loss(
    config: CaptionConfig, path: Path, task: Task, store: RegionStore, captions: Sequence[Caption], shared: _Shared
) -> Score:
    """Minus the cross entropy per word, without smoothing, of all captions of each image."""
    processor = task.processor
    texts = [LabelledText(c.caption_id, c.image_ids, c.text, times=c.times) for c in captions]
    cache = config.cache or config.output / "texts"
    tokens = text_store(cache, processor.tokenizer, processor.text_tokens, [path], texts)
    images = ImageReader(store, processor.tags, processor.max_regions)
    all_of_them = config.seq2seq.model_copy(update={"captions": len(captions)})
    source = CaptionSource(tokens, images, all_of_them, processor.tokenizer, config.seed)
    plain = CaptionTask(task.model, processor, smoothing=0.0).eval()
    costs = source.costs(0, slice(0, len(source)))

    def score() -> float:
        total, device = np.zeros(2), next(task.parameters()).device
        for places in shared.out(in_order(costs, config.training.rows_per_micro_batch)):
            batch = collate(source.build_all(0, places), plain.shape)
            total += float(plain(batch.to(device))[OBJECTIVE]), batch.counts()[OBJECTIVE]
        loss, count = shared.ranks.sum(total)
        return float(-loss / count)

    return score


def _chosen(number: int, section: ValidationConfig) -> np.ndarray:
    """Places of the subset, ascending; of all without one."""
    if section.subset is None or section.subset >= number:
        return np.arange(number)
    return np.sort(keyed_generator(section.seed, "validation").permutation(number)[: section.subset])


def _sample(number: int, section: ValidationConfig) -> list[int]:
    """Places whose predictions are shown, ascending; the same ones at every validation."""
    drawn = keyed_generator(section.seed, "predictions").permutation(number)[:PREDICTIONS]
    return [int(place) for place in np.sort(drawn)]


def _on_images(records: Sequence[Record], path: Path, config: AnyConfig, store: RegionStore) -> list[Record]:
    """Match records with the store's images; tell how many of these are trained on."""
    match = match_file(path, records, store, config.inputs)
    match.check(store, config.missing, "missing=skip")
    found = list(in_store(records, match))
    images = list(dict.fromkeys(image for record in found for image in record.image_ids))
    if seen := trained_images(images, read_trained_on(config.output)):
        logger.warning(
            "%d of the %d images of %s were trained on, %r for one: the validation is too kind",
            *(len(seen), len(images), path, seen[0]),
        )
    return found
