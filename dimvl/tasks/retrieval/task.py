"""Retrieval: images by texts and texts by images, in two stages (ALBEF: Li et al., NeurIPS 2021)."""

from collections.abc import Sequence
from typing import Any

from dimvl.callbacks import Progress
from dimvl.data.annotations import Caption
from dimvl.data.processor import Processor
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import TaskModule
from dimvl.tasks.pretraining.matching import MATCH
from dimvl.tasks.pretraining.task import ObjectivesTask
from dimvl.tasks.retrieval.config import RetrievalEvaluation, RetrieveConfig
from dimvl.tasks.retrieval.evaluation import RecallValidator, evaluate_retrieval
from dimvl.tasks.retrieval.prediction import ALIGN, EMBED_IMAGE, EMBED_TEXT
from dimvl.tasks.retrieval.zero_shot import BY_LABELS
from dimvl.tasks.task import Evaluation, Validator
from dimvl.trained_model import TrainedModel


class Retrieval(ObjectivesTask[RetrieveConfig]):
    """Contrastive alignment and matching: two of the objectives of pretraining."""

    name = "retrieve"
    title = "Fine-tuning for retrieval"
    pipeline_tag = "feature-extraction"
    evaluation = RetrievalEvaluation
    abilities = (EMBED_IMAGE, EMBED_TEXT, ALIGN, BY_LABELS, MATCH)
    texts_per_image = 5.0

    def capabilities(
        self, config: RetrieveConfig, records: Sequence[Caption], initial: Processor | None
    ) -> dict[str, Any]:
        """Record that the model aligns, and whether it matches."""
        return {"aligns": True, "matches": config.matching_share > 0, "shared_prefix": config.shared_prefix}

    def heads(self, config: RetrieveConfig, classes: int, answers: int) -> dict[str, Any]:
        """Request the heads of alignment and of matching."""
        return {"match_head": config.matching_share > 0, "aligned": config.contrastive.width}

    def validator(self, config: RetrieveConfig, module: TaskModule, store: RegionStore) -> Validator:
        """Validate by recall."""
        return RecallValidator(config, module, store)

    def evaluate(
        self, trained: TrainedModel, store: RegionStore, options: RetrievalEvaluation, progress: Progress | None = None
    ) -> Evaluation:
        """Search the images of a caption file by its texts, and the other way round."""
        return evaluate_retrieval(trained, store, options, progress)
