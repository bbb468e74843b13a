"""Pretraining from image-text pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dimvl.data.annotations import Caption
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.text_store import TextStore
from dimvl.model.model import DimvlModel
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.captioning.prediction import CAPTION
from dimvl.tasks.captioning.task import CaptionDataTask, CaptioningTask
from dimvl.tasks.costs import AverageExample, DataFacts
from dimvl.tasks.pretraining.config import PretrainConfig
from dimvl.tasks.pretraining.costs import average_of_objectives
from dimvl.tasks.pretraining.hard_negatives import HardNegatives
from dimvl.tasks.pretraining.matching import MATCH
from dimvl.tasks.pretraining.training import PretrainModule, PretrainSource
from dimvl.tasks.pretraining.validation import PretrainValidator
from dimvl.tasks.retrieval.neighbours import KEY, find_neighbours
from dimvl.tasks.task import Config, Validator


class ObjectivesTask(CaptionDataTask[Config], abstract=True):
    """Base of tasks that train the objectives of pretraining."""

    def build(
        self, config: Any, model: DimvlModel, processor: Processor, texts: TextStore, images: ImageReader
    ) -> tuple[TaskModule, ImageSource]:
        """Build the losses and the examples.

        Raises:
            UserError: the file of word changes is wrong, there are fewer images than a contrastive group needs, or the
                model of hard negatives does not fit.

        """
        objectives, section, hard = config.objectives, config.hard_negatives, None
        if section is not None:
            hard = HardNegatives(find_neighbours(section, processor, texts, images.store), section.share, config.seed)
        source = PretrainSource(texts, images, objectives, config.seq2seq, processor.tokenizer, config.seed, hard)
        return PretrainModule(model, processor, objectives), source

    def judges(self, config: Any) -> dict[str, Path]:
        """Return the model that chooses hard negatives, if there is one."""
        return {KEY: config.hard_negatives.model} if config.hard_negatives else {}

    def average_example(self, config: Any, facts: DataFacts) -> AverageExample:
        """Average over the objectives, by their shares."""
        return average_of_objectives(config.objectives, config.seq2seq, facts)


class Pretraining(ObjectivesTask[PretrainConfig], CaptioningTask[PretrainConfig]):
    """The two language models, masked object prediction, image-text matching and contrastive alignment."""

    name = "pretrain"
    title = "Pretraining"
    pipeline_tag = "feature-extraction"
    abilities = (CAPTION, MATCH)

    def capabilities(
        self, config: PretrainConfig, records: Sequence[Caption], initial: Processor | None
    ) -> dict[str, Any]:
        """Record what the model learns by its objectives, or could do already; heads of others are still random."""
        shares = config.objectives.shares
        learned = {
            "captions": shares.seq2seq_lm > 0,
            "matches": shares.matching > 0,
            "masked_words": shares.masked_lm > 0,
        }
        can = {name: now or (initial is not None and getattr(initial, name)) for name, now in learned.items()}
        how = {"shared_prefix": config.objectives.shared_prefix, "variant": config.seq2seq.variant}
        return {**can, "aligns": shares.contrastive > 0, **how}

    def heads(self, config: PretrainConfig, classes: int, answers: int) -> dict[str, Any]:
        """Request the heads of words, matching and objects, and of alignment if it is trained."""
        space = config.objectives.contrastive.width if config.objectives.shares.contrastive else 0
        return {"word_head": True, "match_head": True, "classes": classes, "aligned": space}

    def validator(self, config: PretrainConfig, module: TaskModule, store: RegionStore) -> Validator:
        """Validate by losses and matching accuracy."""
        assert isinstance(module, PretrainModule)
        return PretrainValidator(config, module, store)
