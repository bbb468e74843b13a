"""Validation of pretraining: losses by objective and matching accuracy on held-out captions.

Each objective with a share has one example per image, contrastive alignment one for as many images as a group has.
Masks, negatives, groups and captions are drawn by the section's seed, so they are the same at every validation.
"""

from collections.abc import Sequence

import numpy as np

from dimvl.data.annotations import read_captions
from dimvl.data.examples import collate
from dimvl.data.text_store import LabelledText, text_store
from dimvl.regions.store import RegionStore
from dimvl.tasks.pretraining.config import PretrainConfig, SharesConfig
from dimvl.tasks.pretraining.training import PretrainModule, PretrainSource
from dimvl.tasks.task import ValidationScore, Validator
from dimvl.tasks.validating import matched, subset

Sums = dict[str, tuple[float, int]]
"""Name of a loss, or `matching/accuracy` -> its sum and the number of its targets."""


class PretrainValidator(Validator):
    """Losses by objective and matching accuracy."""

    def __init__(self, config: PretrainConfig, module: PretrainModule, store: RegionStore) -> None:
        section, processor = config.validation, module.processor
        assert section is not None
        records = matched(read_captions(section.captions, section.split), section.captions, config, store)
        names = list(dict.fromkeys(record.images for record in records))
        chosen = {names[place] for place in subset(len(names), section)}
        texts = [LabelledText(r.caption_id, r.image_ids, r.text, times=r.times) for r in records if r.images in chosen]
        tokens = text_store(config.texts_folder, processor.tokenizer, processor.text_tokens, [section.captions], texts)
        images = processor.reader(store)
        self.module, self.metric = module, section.metric
        wanted = [name for name, share in config.objectives.shares if share]
        contrastive = config.objectives.contrastive
        group = max(2, min(contrastive.group, tokens.num_groups))
        common = {"contrastive": contrastive.model_copy(update={"group": group})}
        self.sources: list[PretrainSource] = []
        sources, items, costs = [], [], []
        for number, name in enumerate(wanted):
            shares = SharesConfig(**{other: float(other == name) for other in SharesConfig.model_fields})
            objectives = config.objectives.model_copy(update={**common, "shares": shares})
            self.sources.append(
                PretrainSource(tokens, images, objectives, config.seq2seq, processor.tokenizer, section.seed)
            )
            own = np.arange(0, tokens.num_groups, group if name == "contrastive" else 1)
            sources.append(np.full(len(own), number))
            items.append(own)
            costs.append(self.sources[number].costs(0, slice(0, tokens.num_groups))[own])
        self.source_of, self.image_of, self.costs = map(np.concatenate, (sources, items, costs))

    def run(self, items: np.ndarray) -> Sums:
        """Return the sums of losses and of correct pairs."""
        examples = [
            example
            for number, source in enumerate(self.sources)
            for example in source.build_all(0, self.image_of[items[self.source_of[items] == number]])
        ]
        batch = collate(examples, self.module.shape).to(self.module.device)
        rows, counts = self.module.model(batch), batch.counts()
        losses = self.module.losses(batch, rows)
        sums = {name: (float(loss), counts[name.partition("/")[0]]) for name, loss in losses.items()}
        return sums | {"matching/accuracy": (self.module.count_correct(batch, rows), counts["matching"])}

    def result(self, parts: Sequence[tuple[np.ndarray, Sums]]) -> ValidationScore:
        """Average over targets; the score is minus the training loss, or matching accuracy."""
        every = [sums for _, sums in parts]
        names = [name for name in every[0] if sum(sums[name][1] for sums in every)]
        means = {name: sum(s[name][0] for s in every) / sum(s[name][1] for s in every) for name in names}
        loss = sum(self.module.weights[name] * mean for name, mean in means.items() if name != "matching/accuracy")
        return ValidationScore(-loss if self.metric == "loss" else means["matching/accuracy"], means)
