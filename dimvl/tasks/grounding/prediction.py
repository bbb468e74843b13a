"""Grounding with a trained model: for prefixes, or for the phrases of a file.

Accuracy is the share of phrases whose most probable region has an IoU above .5 with one of their boxes, so a phrase of
several boxes is found with any of them (the "any box" protocol of Flickr30k Entities). One that no region covers is
wrong. A phrase without a box is found if "no region fits" is most probable.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dimvl.callbacks import Progress
from dimvl.data.annotations import Phrase, describe_file, read_phrases
from dimvl.data.prefixes import Prefix
from dimvl.errors import UserError
from dimvl.metrics.predictions import official_images
from dimvl.model.heads import RegionHead, RegionScores
from dimvl.regions.geometry import fractions_to_pixels
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import TaskModule
from dimvl.tasks.grounding.config import GroundConfig, GroundEvaluation
from dimvl.tasks.grounding.matching import Covered, covered, is_right
from dimvl.tasks.grounding.training import SPECS, region_scores
from dimvl.tasks.inference import finite, predict_texts, records_in_store
from dimvl.tasks.task import Ability, Evaluation, Forward, PairRows, ValidationScore, by_probability
from dimvl.tasks.texts import text_batch
from dimvl.tasks.validating import TextValidator
from dimvl.trained_model import TrainedModel

logger = logging.getLogger(__name__)
Scores = dict[str, Any]


@torch.inference_mode()
def region_probabilities(
    trained: TrainedModel, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the probability of each region of a prefix for its phrase, (R,) float32 each.

    A model that was trained with phrases that fit no region has the probability of that as one more, the last.
    Prefixes are computed as in `text_batch`.
    """
    scores, _ = region_scores(trained.model, text_batch(trained, prefixes, words, SPECS))
    parts = scores.pairs.split([len(prefix.features) for prefix in prefixes])
    if scores.nowhere is not None:
        parts = [torch.cat([part, last[None]]) for part, last in zip(parts, scores.nowhere, strict=True)]
    return [finite(part.softmax(dim=0)).cpu().numpy() for part in parts]


def _region_table(found: Sequence[np.ndarray]) -> torch.Tensor:
    """Return probabilities of the same regions, (1 + R, R): 0 for the region that a prefix lacks."""
    whole, *fewer = found
    return torch.from_numpy(np.stack([whole, *(np.insert(own, place, 0.0) for place, own in enumerate(fewer))]))


def _pointed(head: RegionHead, rows: PairRows) -> tuple[torch.Tensor, ...]:
    places = torch.arange(rows.regions.shape[0])
    return _joined(head(rows.text[-1:], rows.regions, torch.zeros_like(places), places))


def _joined(scores: RegionScores) -> tuple[torch.Tensor, ...]:
    return (scores.pairs if scores.nowhere is None else torch.cat([scores.pairs, scores.nowhere]),)


REGION_LOGITS = Forward(
    name="ground",
    head="region_head",
    outputs=_pointed,
    meanings={
        "logits": "a logit of each region, and one more if the model knows that none fits; their softmax is the "
        "probability"
    },
    eager=lambda trained, prefix, words: _joined(
        region_scores(trained.model, text_batch(trained, [prefix], [words], SPECS))[0]
    ),
)
GROUND = Ability(
    verb="ground",
    available=lambda processor: processor.grounds,
    apply=region_probabilities,
    result=lambda trained, probabilities: probabilities,
    takes_text=True,
    evidence=by_probability(region_probabilities, _region_table),
    example='predictor.ground("image.png", "the red circle")',
    forward=REGION_LOGITS,
)


def knows_nowhere(trained: TrainedModel) -> bool:
    """Whether "no region fits" is a class of the model."""
    head = trained.model.region_head
    return head is not None and head.nowhere is not None


def found_boxes(probabilities: np.ndarray, prefix: Prefix) -> np.ndarray:
    """Return the most probable region's box as fractions, (1, 4), or (0, 4) if no region fits or there is none."""
    best = int(probabilities.argmax()) if len(probabilities) else 0
    return prefix.boxes[best : best + 1]


def check_nowhere(phrases: Sequence[Phrase], trained: TrainedModel, place: object) -> None:
    """Refuse phrases without a box if the model always finds a region.

    Raises:
        UserError: there is one.

    """
    if not knows_nowhere(trained) and (without := next((one for one in phrases if not one.boxes), None)):
        raise UserError(
            f"{place}: {without.name} has no box, and the model always finds a region; train with no_region=true, or "
            "remove such phrases"
        )


def evaluate_phrases(
    trained: TrainedModel, store: RegionStore, options: GroundEvaluation, progress: Progress | None = None
) -> Evaluation:
    """Find the phrases of a file and score what is found, overall, by split, and for phrases with one box.

    Raises:
        UserError: as `read_phrases`, `records_in_store`, `covered` and `predict_texts`; or a phrase without a box that
            the model has no class for.

    """
    GROUND.check(trained)
    read = read_phrases(options.phrases, options.images, options.split)
    phrases, missing = records_in_store(options.phrases, read, trained, store, options)
    check_nowhere(phrases, trained, options.phrases)
    facts = covered(phrases, store, trained.processor.max_regions)
    sizes = store.sizes(store.positions(phrase.image_id for phrase in phrases)).tolist()
    words = trained.tokenise([phrase.text for phrase in phrases])

    def boxes(prefixes: Sequence[Prefix], own: Sequence[np.ndarray]) -> list[tuple[np.ndarray, float]]:
        found = zip(region_probabilities(trained, prefixes, own), prefixes, strict=True)
        return [(found_boxes(each, prefix), float(each.max(initial=0))) for each, prefix in found]

    found = predict_texts(trained, store, [phrase.images for phrase in phrases], words, boxes, progress)
    items = [
        _item(phrase, fact, box, probability, phrase.size or size)
        for phrase, fact, (box, probability), size in zip(phrases, facts, found, sizes, strict=True)
    ]
    scores = {"task": "ground", "data": describe_file(options.phrases), **summary([item["means"] for item in items])}
    predictions = [{name: item[name] for name in ("id", "image_id", "phrase", "box")} for item in items]
    logger.info("the regions allow at most %.2f", scores["upper_bound"])
    left_out = {"image not in the store": missing}
    return Evaluation(predictions=predictions, items=items, scores=scores, left_out=left_out)


def _item(phrase: Phrase, fact: Covered, box: np.ndarray, probability: float, size: Sequence[int]) -> dict[str, Any]:
    shown = [[round(side, 2) for side in each] for each in fractions_to_pixels(box, size[0], size[1]).tolist()]
    item: dict[str, Any] = {"id": phrase.phrase_id, **official_images(phrase.named_images), "phrase": phrase.text}
    item |= {"box": shown[0] if shown else None, "probability": round(probability, 4), "boxes": phrase.boxes}
    item |= {name: value for name, value in (("split", phrase.split), ("kinds", phrase.kinds)) if value}
    return item | {"means": means(phrase, fact, box)}


def means(phrase: Phrase, fact: Covered, box: np.ndarray) -> Scores:
    """Return what a phrase adds to each score: 0 or 1, or nothing to those that it does not count for.

    As `accuracy` is 0 where no region is right, `of_upper_bound` is its mean over the other phrases.
    """
    hit = bool(is_right(box, fact.boxes).any()) if phrase.boxes else not len(box)
    possible = bool(len(fact.right)) or not phrase.boxes
    own: Scores = {"accuracy": float(hit), "upper_bound": float(possible)}
    own |= {"of_upper_bound": float(hit)} if possible else {}
    own |= {"baseline": float(fact.guess in fact.right)}
    parts = {"one_box": own} if len(phrase.boxes) == 1 else {}
    parts |= {"by_split": {phrase.split: own}} if phrase.split else {}
    return {**own, **parts}


def summary(every: Sequence[Mapping[str, Any]]) -> Scores:
    """Average what phrases add to each score, and count them.

    Returns:
        `count`, `accuracy`, `upper_bound` (what the regions allow), `of_upper_bound`, `baseline` (the largest person or
        else the largest region); the same of phrases with one box as `one_box`, and of each split in `by_split`.

    """
    result: Scores = {"count": len(every)}
    for name in dict.fromkeys(name for own in every for name in own):
        values = [own[name] for own in every if name in own]
        if name == "by_split":
            splits = dict.fromkeys(split for value in values for split in value)
            result[name] = {split: summary([value[split] for value in values if split in value]) for split in splits}
        else:
            result[name] = summary(values) if name == "one_box" else float(np.mean(values))
    return result


class GroundingValidator(TextValidator[Phrase]):
    """Accuracy of the most probable region."""

    def __init__(self, config: GroundConfig, module: TaskModule, store: RegionStore) -> None:
        section = config.validation
        assert section is not None
        read = read_phrases(section.phrases, section.images, section.split)
        super().__init__(config, module, store, section.phrases, read)
        check_nowhere(self.records, self.trained, section.phrases)
        self.facts = covered(self.records, store, module.processor.max_regions)

    def predict(self, prefixes: Sequence[Prefix], texts: Sequence[np.ndarray]) -> list[list[list[float]]]:
        """Return the box found for each phrase, as fractions."""
        found = region_probabilities(self.trained, prefixes, texts)
        return [found_boxes(each, prefix).tolist() for each, prefix in zip(found, prefixes, strict=True)]

    def score(self, found: Sequence[Sequence[Sequence[float]]]) -> ValidationScore:
        """Score the boxes."""
        boxes = [np.array(box, np.float32).reshape(-1, 4) for box in found]
        scores = summary([means(*one) for one in zip(self.records, self.facts, boxes, strict=True)])
        predictions = [
            {
                "image_id": self.records[item].image_id,
                "phrase": self.records[item].text,
                "box": [round(side, 3) for side in boxes[item][0].tolist()] if len(boxes[item]) else None,
                "truth": self.facts[item].boxes.round(3).tolist(),
            }
            for item in self.shown
        ]
        parts_shown = {name: scores[name] for name in ("upper_bound", "baseline")}
        return ValidationScore(scores["accuracy"], parts_shown, predictions)
