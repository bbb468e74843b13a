"""Retrieval: images by texts and texts by images, in two stages (ALBEF: Li et al., NeurIPS 2021)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dimvl.callbacks import Progress
from dimvl.data.annotations import Caption
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.text_store import TextStore
from dimvl.model.model import DimvlModel
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.captioning.task import CaptionDataTask
from dimvl.tasks.costs import AverageExample, DataFacts
from dimvl.tasks.pretraining.costs import average_of_objectives
from dimvl.tasks.pretraining.hard_negatives import HardNegatives
from dimvl.tasks.pretraining.matching import MATCH
from dimvl.tasks.pretraining.training import PretrainModule, PretrainSource
from dimvl.tasks.retrieval.config import RetrievalEvaluation, RetrieveConfig
from dimvl.tasks.retrieval.evaluation import RecallValidator, evaluate_retrieval
from dimvl.tasks.retrieval.neighbours import KEY, find_neighbours
from dimvl.tasks.retrieval.prediction import ALIGN, EMBED_IMAGE, EMBED_TEXT
from dimvl.tasks.retrieval.zero_shot import BY_LABELS
from dimvl.tasks.task import Evaluation, Validator
from dimvl.trained_model import TrainedModel


class Retrieval(CaptionDataTask[RetrieveConfig]):
    """Contrastive alignment and matching: two of the objectives of pretraining."""

    name = "retrieve"
    title = "Fine-tuning for retrieval"
    pipeline_tag = "feature-extraction"
    evaluation = RetrievalEvaluation
    abilities = (EMBED_IMAGE, EMBED_TEXT, ALIGN, BY_LABELS, MATCH)
    texts_per_image = 5.0

    def capabilities(self, config: RetrieveConfig, records: Sequence[Caption]) -> dict[str, Any]:
        """Record that the model aligns, and whether it matches."""
        return {"aligns": True, "matches": config.matching_share > 0, "shared_prefix": config.shared_prefix}

    def heads(self, config: RetrieveConfig, classes: int, answers: int) -> dict[str, Any]:
        """Request the heads of alignment and of matching."""
        return {"match_head": config.matching_share > 0, "aligned": config.contrastive.width}

    def build(
        self, config: RetrieveConfig, model: DimvlModel, processor: Processor, texts: TextStore, images: ImageReader
    ) -> tuple[TaskModule, ImageSource]:
        """Build the losses and the examples.

        Raises:
            UserError: there are fewer images than a group needs, or the model of hard negatives does not fit.

        """
        seq2seq, section, hard = Seq2seqConfig(captions=config.captions_per_image), config.hard_negatives, None
        if section is not None:
            neighbours = find_neighbours(section, processor, texts, images.store)
            hard = HardNegatives(neighbours, section.share, config.seed)
        source = PretrainSource(texts, images, config.objectives, seq2seq, processor.tokenizer, config.seed, hard)
        return PretrainModule(model, processor, config.objectives), source

    def judges(self, config: RetrieveConfig) -> dict[str, Path]:
        """Return the model that chooses hard negatives, if there is one."""
        return {KEY: config.hard_negatives.model} if config.hard_negatives else {}

    def validator(self, config: RetrieveConfig, module: TaskModule, store: RegionStore) -> Validator:
        """Validate by recall."""
        return RecallValidator(config, module, store)

    def evaluate(
        self, trained: TrainedModel, store: RegionStore, options: RetrievalEvaluation, progress: Progress | None = None
    ) -> Evaluation:
        """Search the images of a caption file by its texts, and the other way round."""
        return evaluate_retrieval(trained, store, options, progress)

    def texts_per_prefix(self, config: RetrieveConfig) -> int:
        """Return the maximum number of texts that share an image."""
        return config.captions_per_image

    def average_example(self, config: RetrieveConfig, facts: DataFacts) -> AverageExample:
        """Average over both objectives, by their shares."""
        return average_of_objectives(config.objectives, Seq2seqConfig(captions=config.captions_per_image), facts)
