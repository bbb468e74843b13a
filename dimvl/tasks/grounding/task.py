"""Grounding: an image and a phrase to the region that the phrase refers to."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dimvl.callbacks import Progress
from dimvl.checkpoints import MATCH
from dimvl.data.annotations import Phrase, read_phrases
from dimvl.data.matching import Subset, match_files
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.text_store import LabelledText, TextStore
from dimvl.errors import UserError
from dimvl.files import read_json, write_json
from dimvl.model.model import DimvlModel
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.costs import AverageExample, DataFacts, average_text
from dimvl.tasks.grounding.config import GroundConfig, GroundEvaluation
from dimvl.tasks.grounding.matching import covered
from dimvl.tasks.grounding.prediction import GROUND, GroundingValidator, evaluate_phrases
from dimvl.tasks.grounding.training import GroundModule, PhraseSource
from dimvl.tasks.task import Evaluation, Task, Validator
from dimvl.trained_model import TrainedModel

logger = logging.getLogger(__name__)
UNCOVERED = "no region has an IoU above .5 with its boxes"


class Grounding(Task[GroundConfig]):
    """The region that a phrase refers to."""

    name = "ground"
    title = "Fine-tuning for grounding"
    evaluation = GroundEvaluation
    pipeline_tag = "zero-shot-object-detection"
    abilities = (GROUND,)
    texts_per_image = 5.0

    def annotation_files(self, config: GroundConfig) -> dict[str, list[Path]]:
        """Return the phrases and what belongs to them."""
        files = {"phrases": config.phrases, "images": [file for file in config.images if file is not None]}
        if config.validation is not None:
            files["validation phrases"] = [config.validation.phrases]
            if config.validation.images is not None:
                files["validation images"] = [config.validation.images]
        return files

    def read(self, config: GroundConfig, store: RegionStore) -> list[Phrase]:
        """Read the phrases, match them with the store, and leave out those that none of its regions covers.

        Raises:
            UserError: as in `read_phrases`, `match_files` and `covered`; phrases without a box where `no_region` is
                false, or none where it is true; or no phrase that a region covers.

        """
        images = config.images or [None] * len(config.phrases)
        pairs = zip(config.phrases, images, strict=True)
        files = [(path, read_phrases(path, other, config.split)) for path, other in pairs]
        report = config.output / MATCH
        phrases = match_files(files, store, config.inputs, config.missing, report, None, config.match)
        names = ", ".join(map(str, config.phrases))
        without = next((phrase for phrase in phrases if not phrase.boxes), None)
        if without and not config.no_region:
            raise UserError(f"{names}: {without.name} has no box; set no_region=true, or remove such phrases")
        if config.no_region and not without:
            raise UserError(f"no_region is true but each phrase of {names} has a box; set no_region=false")
        facts = covered(phrases, store, config.inputs.max_regions)
        regions = [tuple(fact.right.tolist()) for fact in facts]
        found = [
            replace(phrase, regions=own)
            for phrase, own in zip(phrases, regions, strict=True)
            if own or not phrase.boxes
        ]
        if not any(phrase.boxes for phrase in found):
            raise UserError(
                f"no region of {store.path} covers a phrase of {names}: no IoU is above .5; check that boxes and store "
                "are of the same images, or extract more regions"
            )
        logger.info("the regions allow at most %.2f of %d phrases", len(found) / len(phrases), len(phrases))
        kept = Subset(config.subset, config.seed, "phrase", lambda phrase: phrase).of(found, names)
        written = read_json(report)
        written["texts_dropped"] |= {UNCOVERED: len(phrases) - len(found)}
        written["texts_dropped"] |= {"not drawn for subset": len(found) - len(kept)} if len(kept) < len(found) else {}
        write_json(report, written | {"texts_used": len(kept)})
        if len(found) < len(phrases):
            logger.warning("%d texts are dropped: %s", len(phrases) - len(found), UNCOVERED)
        return kept

    def labelled_texts(self, records: Sequence[Phrase], processor: Processor) -> list[LabelledText]:
        """Label each phrase with the numbers of the right regions."""
        return [
            LabelledText(one.phrase_id, one.image_ids, one.text, tuple((region, 1.0) for region in one.regions))
            for one in records
        ]

    def capabilities(
        self, config: GroundConfig, records: Sequence[Phrase], initial: Processor | None
    ) -> dict[str, Any]:
        """Record that the model grounds."""
        return {"grounds": True, "shared_prefix": config.shared_prefix}

    def heads(self, config: GroundConfig, classes: int, answers: int) -> dict[str, Any]:
        """Request a region head, with a class of its own for phrases that no region fits."""
        return {"grounded": 2 if config.no_region else 1}

    def build(
        self, config: GroundConfig, model: DimvlModel, processor: Processor, texts: TextStore, images: ImageReader
    ) -> tuple[TaskModule, ImageSource]:
        """Build the losses and the examples."""
        return GroundModule(model, processor), PhraseSource(texts, images, processor)

    def validator(self, config: GroundConfig, module: TaskModule, store: RegionStore) -> Validator:
        """Validate by accuracy."""
        return GroundingValidator(config, module, store)

    def evaluate(
        self, trained: TrainedModel, store: RegionStore, options: GroundEvaluation, progress: Progress | None = None
    ) -> Evaluation:
        """Find the phrases of a file and score what is found."""
        return evaluate_phrases(trained, store, options, progress)

    def average_example(self, config: GroundConfig, facts: DataFacts) -> AverageExample:
        """Count one phrase, or all phrases of an image on its shared prefix."""
        regions = facts.regions

        def heads(texts: float) -> dict[str, float]:
            parts = {"": texts + regions, ".text": texts, ".region": regions, ".alone": regions, ".nowhere": texts}
            return {f"region_head{part}": rows for part, rows in parts.items()}

        return average_text(facts, config.shared_prefix, heads)
