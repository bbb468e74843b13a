"""Classification with a trained model: for prefixes, a region store or files of items."""

import csv
import io
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.data.annotations import LabelledItem, describe_file, read_items
from dimvl.data.annotations.items import GQA, NLVR, NLVR2
from dimvl.data.prefixes import Prefix
from dimvl.data.processor import Processor
from dimvl.errors import UserError
from dimvl.metrics.measures import mean_scores
from dimvl.metrics.predictions import official_images
from dimvl.regions.store import RegionStore
from dimvl.showing import counted, short, some
from dimvl.tasks.base import NOTHING, TaskModule
from dimvl.tasks.classification.config import ClassifyConfig, ClassifyEvaluation
from dimvl.tasks.classification.scores import item_means
from dimvl.tasks.classification.training import label_logits, label_spec
from dimvl.tasks.inference import finite, predict_texts, records_in_store
from dimvl.tasks.task import Ability, Evaluation, Forward, ValidationScore, by_probability
from dimvl.tasks.texts import text_batch
from dimvl.tasks.validating import TextValidator
from dimvl.trained_model import TrainedModel

logger = logging.getLogger(__name__)
LIKELY = 0.5
"""Where several labels may fit, those of at least this probability are predicted."""
TOP = 3
"""Labels logged per item of the validation sample."""


def tokenise(trained: TrainedModel, texts: Sequence[str], **options: Any) -> list[np.ndarray]:
    """Return the token ids (T,) of each text, none of an empty one.

    Raises:
        UserError: as `TrainedModel.tokenise`, or a text for a model that compares images with names.

    """
    if trained.processor.class_prompt and (given := next(filter(str.strip, texts), None)):
        raise UserError(f"the model compares images with names of labels and takes no text ({short(given)}); omit it")
    words = iter(trained.tokenise([text for text in texts if text.strip()]))
    return [next(words) if text.strip() else NOTHING for text in texts]


@torch.inference_mode()
def label_probabilities(trained: TrainedModel, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> Tensor:
    """Return the probability of each label for one text per prefix, (M, K), as `text_batch`.

    Rows sum to 1 unless several labels fit.
    """
    processor = trained.processor
    batch = text_batch(trained, prefixes, words, label_spec(processor))
    logits = label_logits(trained.model, batch, processor).float()
    return finite((logits.sigmoid() if processor.several_labels else logits.softmax(dim=1)).cpu())


def best_labels(trained: TrainedModel, probabilities: Tensor, top: int = 5) -> list[tuple[str, float]]:
    """Return the most probable labels of an input with their probabilities, from those of all: (K,)."""
    if top < 1:
        raise UserError(f"top is {top}; it must be at least 1")
    values, places = probabilities.sort(descending=True, stable=True)
    ranked = zip(places[:top].tolist(), values[:top].tolist(), strict=True)
    return [(trained.processor.labels[place], value) for place, value in ranked]


LABEL_LOGITS = Forward(
    name="classify",
    head="label_head",
    outputs=lambda head, rows: (head(rows.text[-1:])[0],),
    meanings={"logits": "(labels,) logits; their softmax, or their sigmoid if several labels fit, are probabilities"},
    eager=lambda trained, prefix, words: (
        label_logits(
            trained.model,
            text_batch(trained, [prefix], [words], label_spec(trained.processor)),
            trained.processor,
        )[0],
    ),
    labels=lambda processor: processor.labels,
    available=lambda processor: not processor.class_prompt,  # its labels are rows of their own
)
CLASSIFY = Ability(
    verb="classify",
    available=lambda processor: bool(processor.labels),
    prepare=tokenise,
    apply=label_probabilities,
    result=best_labels,
    takes_text=True,
    evidence=by_probability(label_probabilities),
    example='predictor.classify(("left.png", "right.png"), text="both images show a dog")',
    forward=LABEL_LOGITS,
)


def check_labels(path: Path, items: Sequence[LabelledItem], processor: Processor) -> int:
    """Return how many items have a label that the model does not know, and warn about them.

    Raises:
        UserError: all of the labels are unknown, or an item has not exactly one label where the model gives one.

    """
    known, labelled = {*processor.labels}, [item for item in items if item.labels is not None]
    check_numbers(path, labelled, processor.several_labels)
    unknown = [item for item in labelled if not known.issuperset(item.labels or ())]
    if not unknown:
        return 0
    example = f"{short(next(label for label in unknown[0].labels or () if label not in known))} of {unknown[0].name}"
    if known.isdisjoint(label for item in labelled for label in item.labels or ()):
        raise UserError(
            f"{path} has none of the {len(known):,} labels of the model ({some(processor.labels)}), but {example}; "
            "give items with the labels that the model was trained on"
        )
    logger.warning(
        "%s: %s of %d have a label that the model does not know, such as %s; they count as wrong",
        *(path, counted(len(unknown), "item"), len(labelled), example),
    )
    return len(unknown)


def check_numbers(path: Path, items: Sequence[LabelledItem], several: bool) -> None:
    """Check that items have exactly one label each, unless several may fit.

    Raises:
        UserError: one has another number.

    """
    if wrong := [item for item in items if not several and len(item.labels or ()) != 1]:
        raise UserError(
            f"{path}: {wrong[0].name} has {counted(len(wrong[0].labels or ()), 'label')}, but exactly one fits without "
            "several_labels; give one label, or train with several_labels=true"
        )


def chosen_labels(processor: Processor, probabilities: Tensor) -> list[tuple[str, ...]]:
    """Return the labels that are predicted for each item, from probabilities (M, K)."""
    names = processor.labels
    if not processor.several_labels:
        return [(names[place],) for place in probabilities.argmax(dim=1).tolist()]
    return [tuple(names[place] for place in row.nonzero().flatten()) for row in probabilities >= LIKELY]


def evaluate_items(
    trained: TrainedModel, store: RegionStore, options: ClassifyEvaluation, progress: Progress | None = None
) -> Evaluation:
    """Classify the items of a file and score them where they have labels.

    Raises:
        UserError: as `read_items`, `records_in_store` and `check_labels`; or the model was not trained to classify.

    """
    CLASSIFY.check(trained)
    processor = trained.processor
    form, read = read_items(options.items, options.choices)
    items, missing = records_in_store(options.items, read, trained, store, options)
    unknown = check_labels(options.items, items, processor)
    words, apply = tokenise(trained, [item.text for item in items]), partial(label_probabilities, trained)
    found = predict_texts(trained, store, [item.images for item in items], words, apply, progress)
    probabilities = torch.stack(found)
    predicted = chosen_labels(processor, probabilities)
    means = item_means(items, predicted, processor.several_labels)
    scores: dict[str, Any] = {}
    unlabelled = sum(item.labels is None for item in items)
    if unlabelled < len(items):
        counts = {"count": len(items) - unlabelled, "unknown_labels": unknown}
        scores = {"task": "classify", "data": describe_file(options.items), **counts, **mean_scores(means)}
    return Evaluation(
        predictions=[_official(form, item, own) for item, own in zip(items, predicted, strict=True)],
        items=[
            _readable(item, own, row, processor, mean)
            for item, own, row, mean in zip(items, predicted, probabilities, means, strict=True)
        ],
        scores=scores,
        left_out={
            "image not in the store": missing,
            "item without a label to compare with": unlabelled if scores else 0,
        },
        submissions={"submission.csv": _csv(items, predicted)} if form in (NLVR, NLVR2) else {},
    )


def _official(form: str, item: LabelledItem, predicted: Sequence[str]) -> dict[str, Any]:
    """Return a prediction: GQA's own form, or id and label, or labels where several may fit."""
    if form == GQA:
        return {"questionId": item.item_id, "prediction": predicted[0]}
    return (
        {"id": item.item_id, "label": predicted[0]}
        if len(predicted) == 1
        else {"id": item.item_id, "labels": predicted}
    )


def _csv(items: Sequence[LabelledItem], predicted: Sequence[Sequence[str]]) -> str:
    """Return lines of identifier and prediction, as the official programs of NLVR2 and NLVR read them."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(
        (i.item_id, own[0]) for i, own in zip(items, predicted, strict=True)
    )
    return file.getvalue()


def _readable(
    item: LabelledItem, predicted: Sequence[str], probabilities: Tensor, processor: Processor, means: dict[str, float]
) -> dict[str, Any]:
    found = {"text_id": item.item_id, **official_images(item.named_images), "text": item.text}
    found |= {"prediction": list(predicted) if processor.several_labels else predicted[0]}
    found |= {"probability": float(probabilities.max())}
    return found | ({} if item.labels is None else {"labels": item.labels}) | ({"means": means} if means else {})


class LabelValidator(TextValidator[LabelledItem]):
    """Accuracy of the most probable label, or F1 where several may fit."""

    def __init__(self, config: ClassifyConfig, module: TaskModule, store: RegionStore) -> None:
        section = config.validation
        assert section is not None
        super().__init__(config, module, store, section.items, read_items(section.items).items)
        check_labels(section.items, self.records, module.processor)
        if all(item.labels is None for item in self.records):
            raise UserError(f"no item of {section.items} has a label to compare with; give labelled items")

    def tokenise(self) -> list[np.ndarray]:
        """Return the token ids (T,) of each text, which may be empty."""
        return tokenise(self.trained, [item.text for item in self.records])

    def predict(self, prefixes: Sequence[Prefix], texts: Sequence[np.ndarray]) -> list[Any]:
        """Return the predicted labels of each item, and the most probable ones."""
        found = label_probabilities(self.trained, prefixes, texts)
        chosen = chosen_labels(self.trained.processor, found)
        return [(own, best_labels(self.trained, row, TOP)) for own, row in zip(chosen, found, strict=True)]

    def score(self, found: Sequence[Any]) -> ValidationScore:
        """Score the predicted labels of all items."""
        several = self.trained.processor.several_labels
        scores = mean_scores(item_means(self.records, [predicted for predicted, _ in found], several))
        predictions = [
            {
                "text_id": self.records[place].item_id,
                "image_id": ", ".join(self.records[place].image_ids),
                "text": self.records[place].text,
                "labels": [[name, round(value, 4)] for name, value in found[place][1]],
                "truth": list(self.records[place].labels or ()),
            }
            for place in self.shown
        ]
        score = scores.pop("f1" if several else "accuracy")
        return ValidationScore(score, scores, predictions)
