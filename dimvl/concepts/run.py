"""`dimvl concepts`: captions and a region store to a folder of trained concepts, with a report of what was measured."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dimvl.callbacks import Progress
from dimvl.concepts.config import ConceptConfig
from dimvl.concepts.data import ImageTexts, LabelledImages, label, read_texts
from dimvl.concepts.measure import AveragePrecision, tag_quality
from dimvl.concepts.train import probabilities, steps_of, train
from dimvl.concepts.words import Lexicon, Word
from dimvl.config import InputsConfig
from dimvl.errors import UserError
from dimvl.files import atomic_folder, check_writable, write_json
from dimvl.regions.naming.concepts import ConceptNamer
from dimvl.regions.naming.folds import Folds
from dimvl.regions.naming.settings import Source
from dimvl.regions.store import RegionStore

REPORT = "report.json"
MEASURED = 1000
"""Training images that are measured: as many as a usual validation part, since average precision varies with size."""


def train_concepts(
    config: ConceptConfig, device: torch.device | str, progress: Progress | None = None
) -> dict[str, Any]:
    """Train concepts, measure them and write their folder.

    Args:
        config: what to do.
        device: where to compute.
        progress: called with the steps done and in total, of all models.

    Returns:
        The content of `report.json`: `words` by part of speech, `images`, `captions`, `captions_dropped`, `seconds` of
        training, `average_precision` (of `validation`, of `training` images by the model that has seen them, and of
        these `held_out`, by the models that have not), and of the validation images `tags` and `each_word`.

    Raises:
        UserError: the output exists or cannot be written; captions and store do not fit together; or the captions have
            fewer content words than asked.

    """
    if config.output.exists():
        raise UserError(f"{config.output} exists already; choose another output, or remove it")
    check_writable(config.output)
    store = RegionStore(config.regions)
    texts = read_texts(config.captions, config.split, store, config.missing, config.match)
    others = _validation_texts(config, store)
    lexicon = Lexicon(texts.all_texts())
    words = _chosen(lexicon, config.words)
    ids = {word.lemma: number for number, word in enumerate(words)}
    images = label(texts, lexicon, ids)
    started = time.monotonic()
    fold_of = draw_folds(texts.texts, config)
    namer, *models = _models(config, images, words, fold_of, device, progress)
    report: dict[str, Any] = {
        "words": dict(Counter(word.part for word in words)),
        "images": len(images),
        "captions": sum(map(len, texts.texts)),
        "captions_dropped": texts.dropped + (others.dropped if others is not None else 0),
        "seconds": round(time.monotonic() - started, 1),
        "average_precision": _on_training_images(namer, models, images, fold_of, words),
    }
    if others is not None:
        report = _on_validation_images(report, namer, label(others, lexicon, ids), words, config)
    with atomic_folder(config.output, replace=False) as folder:
        namer.save(folder)
        if models:
            named = [
                [store.image_id(int(place)) for place in images.positions[fold_of == fold]]
                for fold in range(len(models))
            ]
            Folds(models, named).save(folder)
        write_json(folder / REPORT, report)
    return report


def _validation_texts(config: ConceptConfig, store: RegionStore) -> ImageTexts | None:
    """Read the validation captions, and compare the extractor of their store with that of training."""
    validation = config.validation
    if validation is None:
        return None
    if validation.regions is not None:
        other = RegionStore(validation.regions)
        if difference := Source.of(store.extractor).difference(Source.of(other.extractor)):
            raise UserError(
                f"region stores {other.path} and {store.path} have different features: {difference}; give stores of "
                "one extractor as regions and validation.regions"
            )
        store = other
    return read_texts(validation.captions, validation.split, store, config.missing, config.match)


def _chosen(lexicon: Lexicon, number: int) -> list[Word]:
    words = lexicon.most_frequent(number)
    if not words:
        raise UserError("the captions have no content word; check that they are in English, and the right files")
    if len(words) < number:
        raise UserError(f"the captions have {len(words):,} content words but words is {number}; set words={len(words)}")
    return words


def draw_folds(texts: Sequence[Sequence[str]], config: ConceptConfig) -> np.ndarray:
    """Draw the fold (I,) of each image; images with the same captions, such as mirrored copies, share one."""
    folds = config.training.folds
    groups = {captions: number for number, captions in enumerate(dict.fromkeys(tuple(sorted(own)) for own in texts))}
    if folds > len(groups):
        raise UserError(
            f"training.folds is {folds} but there are {len(groups)} images with captions of their own; give fewer "
            "training.folds"
        )
    drawn = np.random.default_rng(config.seed).permutation(len(groups)) % max(folds, 1)
    return drawn[[groups[tuple(sorted(own))] for own in texts]]


def _models(
    config: ConceptConfig,
    images: LabelledImages,
    words: Sequence[Word],
    fold_of: np.ndarray,
    device: torch.device | str,
    progress: Progress | None,
) -> list[ConceptNamer]:
    """Train a model on all images, and one without each fold."""
    parts = [np.arange(len(images)), *(np.flatnonzero(fold_of != fold) for fold in range(config.training.folds))]
    total = sum(steps_of(len(part), config.training) for part in parts)
    done, models = 0, []
    lemmas, parts_of_speech = tuple(word.lemma for word in words), tuple(word.part for word in words)
    for part in parts:

        def show(step: int, _: int, before: int = done) -> None:
            if progress is not None:
                progress(before + step, total)

        network = train(images.part(part), config.training, config.seed, device, show)
        models.append(ConceptNamer(network, lemmas, parts_of_speech, Source.of(images.store.extractor)))
        done += steps_of(len(part), config.training)
    return models


def _groups(words: Sequence[Word]) -> dict[str, np.ndarray]:
    """Return the ids of all words, and of those of each part of speech."""
    parts = np.array([word.part for word in words])
    return {
        "all": np.arange(len(words)),
        **{part: np.flatnonzero(parts == part) for part in dict.fromkeys(parts.tolist())},
    }


def _on_training_images(
    namer: ConceptNamer,
    models: Sequence[ConceptNamer],
    images: LabelledImages,
    fold_of: np.ndarray,
    words: Sequence[Word],
) -> dict[str, Any]:
    """Measure images trained on by the model that has seen them, and by those that have not."""
    measured = np.linspace(0, len(images) - 1, min(len(images), MEASURED)).astype(np.int64)
    part, folds = images.part(measured), fold_of[measured]
    found = {"training": probabilities(namer.network, part)}
    if models:
        found["held_out"] = np.zeros_like(found["training"])
        for fold, model in enumerate(models):
            rows = np.flatnonzero(folds == fold)
            found["held_out"][rows] = probabilities(model.network, part.part(rows))
    labels = part.labels(np.arange(len(part))).bool().numpy()
    return {name: _as_json(AveragePrecision(of, labels).means(_groups(words), 0, 0)) for name, of in found.items()}


def _on_validation_images(
    report: dict[str, Any], namer: ConceptNamer, images: LabelledImages, words: Sequence[Word], config: ConceptConfig
) -> dict[str, Any]:
    """Add what is measured on other images to a report."""
    assert config.validation is not None
    labels = images.labels(np.arange(len(images))).bool().numpy()
    measured = AveragePrecision(probabilities(namer.network, images), labels)
    means = measured.means(_groups(words), config.validation.replicates, config.seed)
    columns = zip(words, labels.sum(0).tolist(), measured.of_words().tolist(), strict=True)
    each = [
        {"word": word.lemma, "part": word.part, "images": number, "average_precision": value if number else None}
        for word, number, value in columns
    ]
    precision = {"validation": _as_json(means), **report["average_precision"]}
    return {
        **report,
        "average_precision": precision,
        "tags": tag_quality(namer, images, labels, InputsConfig().concept_score),
        "each_word": each,
    }


def _as_json(means: dict[str, Any]) -> dict[str, Any]:
    return {name: precision._asdict() for name, precision in means.items()}
