"""Pretraining from image-text pairs."""

from collections.abc import Sequence
from typing import Any

from dimvl.data.annotations import Caption
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.text_store import TextStore
from dimvl.model.model import DimvlModel
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.captioning.prediction import CAPTION
from dimvl.tasks.captioning.task import CaptionDataTask
from dimvl.tasks.costs import AverageExample, DataFacts
from dimvl.tasks.pretraining.config import PretrainConfig
from dimvl.tasks.pretraining.costs import average_of_objectives
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
        return average_of_objectives(config.objectives, config.seq2seq, facts)
