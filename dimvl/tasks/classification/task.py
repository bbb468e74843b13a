"""Classification of images, and of texts about them: NLVR2, NLVR, SNLI-VE, GQA, or classes of images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dimvl.callbacks import Progress
from dimvl.checkpoints import MATCH, MODEL
from dimvl.data.annotations import LabelledItem, read_items
from dimvl.data.answers import read_answers
from dimvl.data.matching import match_files
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import FILE as PROCESSOR
from dimvl.data.processor import Processor
from dimvl.data.text_store import LabelledText, TextStore
from dimvl.data.tokenizer import FILE as TOKENIZER
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.files import RESTORE, read_json
from dimvl.model.model import DimvlModel, read_arguments
from dimvl.model.work import Work
from dimvl.regions.store import RegionStore
from dimvl.showing import short, some
from dimvl.tasks.answering.training import QuestionSource
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.classification.config import ClassifyConfig, ClassifyEvaluation
from dimvl.tasks.classification.prediction import CLASSIFY, LabelValidator, check_numbers, evaluate_items
from dimvl.tasks.classification.training import ClassifyModule, label_spec, name_batch
from dimvl.tasks.costs import AverageExample, DataFacts, TextFacts, average_text, planned_work
from dimvl.tasks.task import Evaluation, Task, Validator
from dimvl.trained_model import TrainedModel

DEFAULT_WIDTH = 256
"""Of the space of alignment, for a plan before there is a base."""


def read_labels(path: Path) -> list[str]:
    """Read the labels of a configuration: as `read_answers`."""
    return read_answers(path, "label")


class Classification(Task[ClassifyConfig]):
    """Classification over a list of labels."""

    name = "classify"
    title = "Fine-tuning for classification"
    evaluation = ClassifyEvaluation
    pipeline_tag = "image-classification"
    abilities = (CLASSIFY,)

    def annotation_files(self, config: ClassifyConfig) -> dict[str, list[Path]]:
        """Return the files of items."""
        files = {"items": config.items}
        return files | ({} if config.validation is None else {"validation items": [config.validation.items]})

    def read(self, config: ClassifyConfig, store: RegionStore) -> list[LabelledItem]:
        """Read the items that have labels, and match them with the store.

        Raises:
            UserError: as `read_items` and `match_files`; no item of a file has a label; a label that is not in the list
                of the configuration; not exactly one label without `several_labels`; or one id in two files.

        """
        listed = None if config.labels is None else set(read_labels(config.labels))
        files, unlabelled, seen = [], 0, set[str]()
        for path in config.items:
            every = read_items(path).items
            own = [str(item.item_id) for item in every if not item.numbered]
            if twice := [item_id for item_id in own if item_id in seen]:
                raise UserError(f"{path} and another file both have item {twice[0]}; renumber the items")
            seen.update(own)
            items = [item for item in every if item.labels is not None]
            if every and not items:
                raise UserError(f"{path}: no item has a label; give items with their labels")
            check_numbers(path, items, config.several_labels)
            if config.by_names and (texts := [item for item in items if item.text.strip()]):
                raise UserError(f"{path}: {texts[0].name} has a text, which by_names ignores; remove by_names")
            for item in items if listed is not None else []:
                if outside := [label for label in item.labels or () if label not in (listed or ())]:
                    raise UserError(
                        f"{path}: {item.name} has label {short(outside[0])}, which {config.labels} does not list; add "
                        "it, or correct the item"
                    )
            unlabelled += len(every) - len(items)
            files.append((path, items))
        skipped = {"item without a label": unlabelled}
        report = config.output / MATCH
        return match_files(files, store, config.inputs, config.missing, report, skipped, config.match)

    def labelled_texts(self, records: Sequence[LabelledItem], processor: Processor) -> list[LabelledText]:
        """Label each text with the numbers of its labels."""
        number = {label: place for place, label in enumerate(processor.labels)}
        return [
            LabelledText(
                item.item_id,
                item.image_ids,
                item.text,
                tuple((number[label], 1.0) for label in item.labels or ()),
                item.times,
            )
            for item in records
        ]

    def capabilities(
        self, config: ClassifyConfig, records: Sequence[LabelledItem], initial: Processor | None
    ) -> dict[str, Any]:
        """Return the labels: those of the list of the configuration, or those of the items, sorted.

        Raises:
            UserError: the items have fewer than two labels.

        """
        labels = sorted({label for item in records for label in item.labels or ()})
        if config.labels is not None:
            labels = read_labels(config.labels)
        if len(labels) < 2:
            files = some([str(path) for path in config.items])
            raise UserError(f"{files} has only the label {some(labels) or 'none'}; give items of at least two labels")
        return {
            "labels": tuple(labels),
            "several_labels": config.several_labels,
            "shared_prefix": config.shared_prefix or config.by_names,
            **({"class_prompt": config.adapter.prompt} if config.by_names and config.adapter else {}),
        }

    def heads(self, config: ClassifyConfig, classes: int, answers: int) -> dict[str, Any]:
        """Request a label head or, to compare by names, the alignment head of the base.

        Raises:
            UserError: the base has none.

        """
        if not config.by_names or config.initial is None:
            return {"labels": answers}
        file = config.initial / MODEL
        width = read_arguments(file, RESTORE).get("aligned", 0) if file.exists() else DEFAULT_WIDTH
        if not width:
            raise UserError(
                f"{config.initial} does not align images and texts, by which by_names compares; give a base that was "
                "pretrained with objectives.shares.contrastive, or remove by_names"
            )
        return {"aligned": width}

    def build(
        self, config: ClassifyConfig, model: DimvlModel, processor: Processor, texts: TextStore, images: ImageReader
    ) -> tuple[TaskModule, ImageSource]:
        """Build the losses and the examples.

        Raises:
            UserError: as `name_batch`.

        """
        if config.by_names:
            name_batch(processor)  # so that mistakes are told before the first step
        return ClassifyModule(model, processor), QuestionSource(texts, images, processor, label_spec(processor))

    def validator(self, config: ClassifyConfig, module: TaskModule, store: RegionStore) -> Validator:
        """Validate by accuracy, or by F1 with several labels."""
        return LabelValidator(config, module, store)

    def evaluate(
        self, trained: TrainedModel, store: RegionStore, options: ClassifyEvaluation, progress: Progress | None = None
    ) -> Evaluation:
        """Classify a file of items and score the labels."""
        return evaluate_items(trained, store, options, progress)

    def average_example(self, config: ClassifyConfig, facts: DataFacts) -> AverageExample:
        """Count one text, or all texts of an image on its shared prefix; by names, an image and its similarities."""
        if not config.by_names:
            return average_text(facts, config.shared_prefix, lambda texts: {"label_head": texts})
        textless, labels = replace(facts, texts=facts.texts._replace(words=0.0)), facts.answers
        image = average_text(textless, True, lambda items: _aligned_rows(images=items))
        similar = Work(similarities=facts.texts.number * labels)
        return replace(image, work=image.work + similar, per_micro_batch=_work_of_names(config, labels))

    def planned_answers(self, config: ClassifyConfig) -> tuple[int, str]:
        """Return the number of labels of the run or of the list, or assume two."""
        if labels := _known_labels(config):
            return len(labels), ""
        return 2, "the labels are not known yet: 2 labels (list them in a file, as labels=FILE)"


def _known_labels(config: ClassifyConfig) -> list[str]:
    """Return the labels of the run or of the list; none if there is neither yet."""
    if (config.output / PROCESSOR).exists():
        return list(read_json(config.output / PROCESSOR).get("labels", []))
    return read_labels(config.labels) if config.labels is not None and config.labels.exists() else []


def _work_of_names(config: ClassifyConfig, labels: int) -> Work:
    """Return the work of a sentence for each label (`name_batch`); unknown names are taken to be one word piece."""
    assert config.adapter is not None and config.adapter.prompt is not None and config.initial is not None
    names, pieces = _known_labels(config), 1.0
    if names and (config.initial / TOKENIZER).exists():
        pieces = sum(map(len, Tokenizer.load(config.initial).encode_all(names))) / len(names)
    sentences = DataFacts(context=0.0, texts=TextFacts(words=config.adapter.prompt + pieces))
    return planned_work(sentences, labels, False, True, **_aligned_rows(sentences=labels))


def _aligned_rows(images: float = 0, sentences: float = 0) -> dict[str, float]:
    """Return the rows of the alignment head and its four projections, of which `label_logits` uses two."""
    parts = {"image": images, "text": sentences, "region": 0.0, "word": 0.0}
    return {"align_head": images + sentences, **{f"align_head.{name}": rows for name, rows in parts.items()}}
