"""Pretraining from image-text pairs."""

from collections.abc import Sequence
from typing import Any

from dimvl.data.annotations import Caption
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.text_store import TextStore
from dimvl.model.model import DimvlModel
from dimvl.model.work import Work
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.captioning.prediction import CAPTION
from dimvl.tasks.captioning.task import CaptionDataTask, average_captions
from dimvl.tasks.costs import AverageExample, DataFacts, planned_work
from dimvl.tasks.pretraining.config import PretrainConfig
from dimvl.tasks.pretraining.groups import average_group
from dimvl.tasks.pretraining.matching import MATCH
from dimvl.tasks.pretraining.training import PretrainModule, PretrainSource
from dimvl.tasks.pretraining.validation import PretrainValidator
from dimvl.tasks.task import Validator


class Pretraining(CaptionDataTask[PretrainConfig]):
    """The two language models, masked object prediction, image-text matching and contrastive alignment."""

    name = "pretrain"
    title = "Pretraining"
    pipeline_tag = "feature-extraction"
    abilities = (CAPTION, MATCH)

    def capabilities(self, config: PretrainConfig, records: Sequence[Caption]) -> dict[str, Any]:
        """Record that the model captions and matches, and whether it aligns."""
        shared, aligns = config.objectives.shared_prefix, config.objectives.shares.contrastive > 0
        can = {"captions": True, "matches": True, "aligns": aligns}
        return {**can, "shared_prefix": shared, "variant": config.seq2seq.variant}

    def heads(self, config: PretrainConfig, classes: int, answers: int) -> dict[str, Any]:
        """Request the heads of words, matching and objects, and of alignment if it is trained."""
        space = config.objectives.contrastive.width if config.objectives.shares.contrastive else 0
        return {"word_head": True, "match_head": True, "classes": classes, "aligned": space}

    def build(
        self, config: PretrainConfig, model: DimvlModel, processor: Processor, texts: TextStore, images: ImageReader
    ) -> tuple[TaskModule, ImageSource]:
        """Build the losses and the examples.

        Raises:
            UserError: the file of word changes is wrong, or there are fewer images than a contrastive group needs.

        """
        objectives = config.objectives
        source = PretrainSource(texts, images, objectives, config.seq2seq, processor.tokenizer, config.seed)
        return PretrainModule(model, processor, objectives), source

    def validator(self, config: PretrainConfig, module: TaskModule, store: RegionStore) -> Validator:
        """Validate by losses and matching accuracy."""
        assert isinstance(module, PretrainModule)
        return PretrainValidator(config, module, store)

    def average_example(self, config: PretrainConfig, facts: DataFacts) -> AverageExample:
        """Average over the objectives, by their shares."""
        objectives, texts = config.objectives, facts.texts
        shares = objectives.shares.model_dump()
        words, regions = float(max(1, round(objectives.text_share * texts.words))), 0.0
        if facts.regions:
            regions = float(max(1, round(objectives.region_share * facts.regions)))
        else:  # without regions, the masked language model takes the place of masked object prediction
            shares |= {"masked_lm": shares["masked_lm"] + shares["masked_object"], "masked_object": 0.0}
        number = texts.drawn if objectives.shared_prefix else 1.0
        longest, longest_of_image = texts.longest - texts.words, texts.longest_of_image - texts.words
        masked = planned_work(facts, word_head=words)
        hidden = planned_work(facts, object_head=regions)
        matching = planned_work(facts, number, objectives.shared_prefix, match_head=number)
        kinds = {
            "masked_lm": AverageExample(work=masked, cost=masked.rows + longest_of_image),
            "masked_object": AverageExample(work=hidden, cost=hidden.rows + longest_of_image),
            "seq2seq_lm": average_captions(config.seq2seq, facts),
            # another image's text may be the longest
            "matching": AverageExample(work=matching, cost=matching.rows + number * longest),
            "contrastive": average_group(objectives.contrastive, facts),
        }
        total, work, cost = sum(shares.values()), Work(), 0.0
        for name, share in shares.items():
            work += kinds[name].work * (share / total)
            cost += kinds[name].cost * (share / total)
        return AverageExample(work=work, cost=cost)
