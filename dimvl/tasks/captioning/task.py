"""Captioning with the shared stack instead of a separate decoder, by cross entropy or self-critically."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.callbacks import Progress
from dimvl.checkpoints import MATCH
from dimvl.data.annotations import Caption, read_captions
from dimvl.data.matching import Subset, match_files
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.text_store import LabelledText, TextStore
from dimvl.errors import UserError
from dimvl.metrics.cider import CiderD
from dimvl.model.model import DimvlModel
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.captioning.config import CaptionConfig, CaptionEvaluation, Seq2seqConfig
from dimvl.tasks.captioning.prediction import CAPTION, evaluate_captions, with_official_scores
from dimvl.tasks.captioning.retrieval import KEY, RETRIEVALS, load_judge
from dimvl.tasks.captioning.self_critical import SampleSource, SelfCriticalModule, token_references
from dimvl.tasks.captioning.training import CaptionModule, CaptionSource
from dimvl.tasks.captioning.validation import caption_validator
from dimvl.tasks.costs import AverageExample, DataFacts, planned_work
from dimvl.tasks.task import Config, Evaluation, Task, Validator
from dimvl.trained_model import TrainedModel


class CaptionDataTask(Task[Config], abstract=True):
    """Base of tasks that are trained on captions: how captions are read and tokenised."""

    def annotation_files(self, config: Any) -> dict[str, list[Path]]:
        """Return the caption files."""
        files = {"captions": config.captions}
        if config.validation is not None:
            files["validation captions"] = [config.validation.captions]
        return files

    def read(self, config: Any, store: RegionStore) -> list[Caption]:
        """Read the captions and match them with the store.

        Raises:
            UserError: as `read_captions` and `match_files`.

        """
        read = [(path, read_captions(path, config.split)) for path in config.captions]
        subset = Subset(config.subset, config.seed, "image", lambda caption: caption.images)
        report = config.output / MATCH
        return match_files(read, store, config.inputs, config.missing, report, rule=config.match, subset=subset)

    def labelled_texts(self, records: Sequence[Caption], processor: Processor) -> list[LabelledText]:
        """Return the captions, which have no labels."""
        return [LabelledText(c.caption_id, c.image_ids, c.text, times=c.times) for c in records]

    def texts_per_prefix(self, config: Any) -> int:
        """Return the maximum number of captions that share a prefix."""
        return int(config.seq2seq.captions)


class CaptioningTask(CaptionDataTask[Config], abstract=True):
    """Base of tasks whose models are evaluated by their captions."""

    evaluation = CaptionEvaluation

    def evaluate(
        self, trained: TrainedModel, store: RegionStore, options: CaptionEvaluation, progress: Progress | None = None
    ) -> Evaluation:
        """Caption the images of a caption file."""
        return evaluate_captions(trained, store, options, progress=progress)

    def with_official_scores(self, evaluation: Evaluation) -> Evaluation:
        """Add the scores of the COCO protocol."""
        return with_official_scores(evaluation)


class Captioning(CaptioningTask[CaptionConfig]):
    """Captioning by cross entropy."""

    name = "caption"
    title = "Fine-tuning for captioning"
    pipeline_tag = "image-to-text"
    abilities = (CAPTION,)
    texts_per_image = 5.0

    def variant(self, config: CaptionConfig) -> Task[CaptionConfig]:
        """Return self-critical captioning if it is configured."""
        return self if config.self_critical is None else SelfCritical()

    def capabilities(
        self, config: CaptionConfig, records: Sequence[Caption], initial: Processor | None
    ) -> dict[str, Any]:
        """Record that the model captions, and its language model."""
        return {"captions": True, "variant": config.seq2seq.variant}

    def heads(self, config: CaptionConfig, classes: int, answers: int) -> dict[str, Any]:
        """Request a word head."""
        return {"word_head": True}

    def build(
        self, config: CaptionConfig, model: DimvlModel, processor: Processor, texts: TextStore, images: ImageReader
    ) -> tuple[TaskModule, ImageSource]:
        """Build the losses and the examples.

        Raises:
            UserError: images have too few captions for `drop_worst` to drop one.

        """
        if config.drop_worst is not None:
            most = min(int(np.diff(texts.groups).max()), config.seq2seq.captions)
            if config.drop_worst.count(most) == 0:
                raise UserError(
                    f"drop_worst.share {config.drop_worst.share} of the captions of an image, at most {most} here, is "
                    "less than one, so nothing would be dropped; raise it, or remove drop_worst"
                )
        source = CaptionSource(texts, images, config.seq2seq, processor.tokenizer, config.seed, config.drop_worst)
        return CaptionModule(model, processor, config.smoothing), source

    def validator(self, config: CaptionConfig, module: TaskModule, store: RegionStore) -> Validator:
        """Validate by CIDEr-D or by the loss."""
        return caption_validator(config, module, store)

    def average_example(self, config: CaptionConfig, facts: DataFacts) -> AverageExample:
        """Count the captions of an image on one prefix."""
        return average_captions(config.seq2seq, facts)


class SelfCritical(Captioning):
    """Captioning by self-critical training."""

    title = "Self-critical training"
    draws_in_steps = True

    def build(
        self, config: CaptionConfig, model: DimvlModel, processor: Processor, texts: TextStore, images: ImageReader
    ) -> tuple[TaskModule, ImageSource]:
        """Build the losses and the examples.

        Raises:
            UserError: the judge of the captions cannot judge them, or there are too few images to choose from.

        """
        assert config.self_critical is not None
        samples, section = config.self_critical.samples, config.self_critical.retrieval
        longest, retrieval = processor.text_tokens + 1, None
        if section is not None:
            judge = load_judge(section.judge, processor, images.store, section.by)
            retrieval = RETRIEVALS[section.by](judge, texts, images.store, section.weight)
        source = SampleSource(texts, images, samples, longest, config.seed, 1 if section is None else section.among)
        reward = CiderD(token_references(texts, processor.tokenizer.sep)).scores
        return SelfCriticalModule(model, processor, reward, longest, retrieval), source

    def judges(self, config: CaptionConfig) -> dict[str, Path]:
        """Return the judge of self-retrieval, if there is one."""
        section = config.self_critical and config.self_critical.retrieval
        return {KEY: section.judge} if section else {}


def average_captions(seq2seq: Seq2seqConfig, facts: DataFacts) -> AverageExample:
    """Return the cost of the captions of an average image on one prefix."""
    texts, whole = facts.texts.drawn, facts.texts.words + 1
    words = whole if seq2seq.variant == "causal" else float(max(1, round(seq2seq.share * whole)))
    work = planned_work(facts, texts, True, word_head=texts * words)
    return AverageExample(work=work, cost=work.rows + facts.texts.drawn_rows - texts * whole)
