"""Validation of captioning: CIDEr-D of greedy captions, or the loss per word.

Greedy decoding is fast, and self-critical training changes it first.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dimvl.config import DecodingOptions
from dimvl.data.annotations import Caption, compared, read_captions
from dimvl.data.examples import collate
from dimvl.data.prefixes import PrefixImages
from dimvl.data.text_store import LabelledText, text_store
from dimvl.errors import UserError
from dimvl.metrics.cider import CiderD, plain_words
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import TaskModule
from dimvl.tasks.captioning.config import CaptionConfig
from dimvl.tasks.captioning.prediction import captions
from dimvl.tasks.captioning.training import OBJECTIVE, CaptionModule, CaptionSource
from dimvl.tasks.task import ValidationScore, Validator
from dimvl.tasks.validating import matched, sample, subset
from dimvl.trained_model import TrainedModel


def caption_validator(config: CaptionConfig, module: TaskModule, store: RegionStore) -> Validator:
    """Prepare the validation of a captioning run.

    Raises:
        UserError: annotations that do not fit, or a single image for CIDEr-D.

    """
    section = config.validation
    assert section is not None
    groups = compared(matched(read_captions(section.captions, section.split), section.captions, config, store))
    chosen = [groups[place] for place in subset(len(groups), section)]
    if section.metric == "loss":
        return LossValidator(config, module, store, [caption for texts in chosen for caption in texts])
    if len(chosen) < 2:
        raise UserError(
            f"validation.captions {section.captions}: CIDEr-D of one image is always 0; use more images, or set "
            "validation.metric to loss"
        )
    return CiderValidator(config, module, store, chosen)


class CiderValidator(Validator):
    """CIDEr-D of greedy captions, each compared with the captions of its images, or with all stories of its album."""

    def __init__(
        self, config: CaptionConfig, module: TaskModule, store: RegionStore, groups: Sequence[Sequence[Caption]]
    ) -> None:
        assert config.validation is not None
        self.groups, self.names, self.module = groups, [texts[0].images for texts in groups], module
        self.reward = CiderD([[plain_words(caption.text) for caption in texts] for texts in groups])
        self.trained = TrainedModel(module.model, module.processor, config.validation.captions)
        self.reader, self.images = module.processor.reader(store), PrefixImages.find(store, self.names)
        self.options = DecodingOptions(beams=1, max_tokens=module.processor.text_tokens + 1)
        self.costs = self.reader.rows(self.images) + self.options.max_tokens
        self.shown = set(sample(len(self.names), config.validation))

    def run(self, items: np.ndarray) -> tuple[list[float], dict[int, str]]:
        """Return the score of each image's caption, and the captions of the sample."""
        written = captions(self.trained, self.reader.prefixes(self.images[items]), self.options, self.module.all_ranks)
        scores = self.reward.scores([plain_words(text) for text in written], items)
        texts = {int(item): text for item, text in zip(items, written, strict=True) if item in self.shown}
        return [float(score) for score in scores], texts

    def result(self, parts: Sequence[tuple[np.ndarray, Any]]) -> ValidationScore:
        """Average over images."""
        scores, texts = np.zeros(len(self.names)), dict[int, str]()
        for items, (values, shown) in parts:
            scores[items] = values
            texts |= shown
        predictions = [
            {
                "image_id": ", ".join(self.names[item][0]),
                "caption": texts[item],
                "references": [caption.text for caption in self.groups[item]],
                "cider": round(float(scores[item]), 4),
            }
            for item in sorted(texts)
        ]
        return ValidationScore(float(scores.mean()), predictions=predictions)


class LossValidator(Validator):
    """Minus the cross entropy per word, without smoothing, of all captions of each image."""

    def __init__(
        self, config: CaptionConfig, module: TaskModule, store: RegionStore, records: Sequence[Caption]
    ) -> None:
        assert config.validation is not None
        processor = module.processor
        texts = [LabelledText(c.caption_id, c.image_ids, c.text, times=c.times) for c in records]
        path = config.validation.captions
        tokens = text_store(config.texts_folder, processor.tokenizer, processor.text_tokens, [path], texts)
        images = processor.reader(store)
        all_of_them = config.seq2seq.model_copy(update={"captions": len(records)})
        self.source = CaptionSource(tokens, images, all_of_them, processor.tokenizer, config.seed)
        self.plain = CaptionModule(module.model, processor, smoothing=0.0).eval()
        self.costs = self.source.costs(0, slice(0, len(self.source)))

    def run(self, items: np.ndarray) -> tuple[float, int]:
        """Return the summed loss and the number of words."""
        batch = collate(self.source.build_all(0, items), self.plain.shape)
        return float(self.plain(batch.to(self.plain.device))[OBJECTIVE]), batch.counts()[OBJECTIVE]

    def result(self, parts: Sequence[tuple[np.ndarray, Any]]) -> ValidationScore:
        """Average over words."""
        loss = sum(loss for _, (loss, _) in parts)
        return ValidationScore(-loss / sum(count for _, (_, count) in parts))
