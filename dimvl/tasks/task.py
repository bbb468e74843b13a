"""The interface of a task: all that the rest of dimvl knows of pretraining, question answering or captioning.

A task is one room: its configuration section, how its annotations are read and matched, the heads it needs, its
examples and losses, how a trained model is applied and scored, and what an average example costs. The training loop,
engines, validation, evaluation, planning, profiling, export and predictor use this interface only. A new task is a
subclass of `Task` in a module of its own, added to `dimvl.tasks.TASKS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from dimvl.callbacks import Progress
from dimvl.config import Missing, RunConfig, Section
from dimvl.data.annotations import Caption, Question
from dimvl.data.prefixes import ImageReader
from dimvl.data.processor import Processor
from dimvl.data.text_store import LabelledText, TextStore
from dimvl.errors import UserError
from dimvl.model.model import DimvlModel
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.costs import AverageExample, DataFacts
from dimvl.trained_model import TrainedModel

Config = TypeVar("Config", bound=RunConfig)
Record = Caption | Question


@dataclass(frozen=True, kw_only=True)
class Ability:
    """What a trained model can do with prefixes.

    Attributes:
        verb: its name in the predictor, such as `answer` or `caption`.
        available: whether a model with this processor was trained for it.
        apply: (trained model, prefixes, token ids of a text for each, **options) -> a sequence or tensor with one raw
            result for each prefix. The texts are None for an ability that takes none.
        result: (trained model, raw result, **options) -> what the user gets.
        takes_text: whether each prefix comes with a text.
        rows: (trained model, **options) -> rows per prefix that decoding adds, for an ability without texts.
        example: a line of Python for the model card, with `predictor` and an image.

    """

    verb: str
    available: Callable[[Processor], bool]
    apply: Callable[..., Any]
    result: Callable[..., Any]
    takes_text: bool
    example: str
    rows: Callable[..., int] = lambda trained, **options: 0

    def check(self, trained: TrainedModel) -> None:
        """Check that a model was trained for this.

        Raises:
            UserError: it was not.

        """
        if not self.available(trained.processor):
            raise UserError(f"the model {trained.weights.parent} cannot {self.verb}; give one that was trained to")


class EvaluationOptions(Section):
    """What an evaluation is given; a task adds its annotation files and settings."""

    missing: Missing = "error"

    def files(self) -> dict[str, Path]:
        """Return the annotation files that are given, by name."""
        return {name: value for name, value in self if isinstance(value, Path)}

    def settings(self) -> dict[str, Any]:
        """Return everything else that the predictions depend on."""
        return {name: value for name, value in self if not isinstance(value, Path | None)}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model predicted for an annotation file.

    Attributes:
        predictions: records in the official submission format.
        items: one for each prediction, to read: the input, the references, the prediction, its score.
        scores: overall scores; empty where there are no references.
        files: further files that the scores depend on, by name.

    """

    predictions: list[dict[str, Any]]
    items: list[dict[str, Any]]
    scores: dict[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)


class ValidationScore(NamedTuple):
    """The result of one validation.

    Attributes:
        score: what the best checkpoint is chosen by; higher is better.
        parts: further figures to log, by name.
        predictions: what the model predicts for a fixed sample.

    """

    score: float
    parts: Mapping[str, float] = {}
    predictions: Sequence[Mapping[str, Any]] = ()


class Validator(ABC):
    """Scores the weights of a task's model on held-out data, batch by batch, so that ranks can share the work.

    Attributes:
        costs: (I,) rows of each item (question, image) to score.

    """

    costs: np.ndarray

    @abstractmethod
    def run(self, items: np.ndarray) -> Any:
        """Apply the model to a batch of items (B,), none at all included; return a small plain value."""

    @abstractmethod
    def result(self, parts: Sequence[tuple[np.ndarray, Any]]) -> ValidationScore:
        """Combine the (items, value) of all batches, in the order of the batches."""


class Task(ABC, Generic[Config]):
    """A kind of run.

    Attributes:
        name: value of `task` in a configuration.
        title: heading in the documentation of the configuration.
        command: the command of `dimvl` that trains it.
        config: the class of its configuration.
        evaluation: what `evaluate` is given.
        abilities: what a model trained on it can do.
        pipeline_tag: kind of model on the Hugging Face hub.
        texts_per_image: assumed by `dimvl plan` where there are no texts yet.
        draws_in_steps: whether a step decodes before it learns, which plan and profile do not count.

    """

    name: ClassVar[str]
    title: ClassVar[str]
    config: ClassVar[type[RunConfig]]
    evaluation: ClassVar[type[EvaluationOptions]]
    abilities: ClassVar[Sequence[Ability]]
    pipeline_tag: ClassVar[str]
    command: ClassVar[str] = "finetune"
    texts_per_image: ClassVar[float] = 1.0
    draws_in_steps: ClassVar[bool] = False

    def __init_subclass__(cls, abstract: bool = False, **arguments: Any) -> None:
        """Refuse a task that lacks a part of the interface, where it is defined.

        Args:
            abstract: the class is a base of several tasks and need not be complete.
            arguments: of other base classes.

        Raises:
            TypeError: something is missing.

        """
        super().__init_subclass__(**arguments)
        if abstract:
            return
        attributes = ("name", "title", "config", "evaluation", "abilities", "pipeline_tag")
        missing = [name for name in attributes if not hasattr(cls, name)]
        missing += [name for name in dir(cls) if getattr(getattr(cls, name, None), "__isabstractmethod__", False)]
        if missing:
            raise TypeError(f"task {cls.__name__} lacks {', '.join(missing)}")

    def variant(self, config: Config) -> "Task[Any]":
        """Return the task that a configuration asks for: this one, or one that trains the same model otherwise."""
        return self

    @abstractmethod
    def annotation_files(self, config: Config) -> dict[str, list[Path]]:
        """Return the annotation files of a run by name, those of its validation as `validation NAME`."""

    @abstractmethod
    def read(self, config: Config, store: RegionStore) -> Sequence[Record]:
        """Read the texts to train on and match them with the images of the store.

        Raises:
            UserError: a file is missing or wrong, or does not belong to the store.

        """

    @abstractmethod
    def labelled_texts(self, records: Sequence[Any], processor: Processor) -> list[LabelledText]:
        """Turn what `read` returned into texts to tokenise, with their labels."""

    @abstractmethod
    def capabilities(self, config: Config, records: Sequence[Any]) -> dict[str, Any]:
        """Return the fields of `Processor` that a model of this run has for the task."""

    @abstractmethod
    def heads(self, config: Config, classes: int, answers: int) -> dict[str, Any]:
        """Return the arguments of the heads in `dimvl.model.heads.HEADS` that the task needs.

        Args:
            config: of the run.
            classes: K of the extractor.
            answers: A of the answer vocabulary.

        """

    @abstractmethod
    def build(
        self, config: Config, model: DimvlModel, processor: Processor, texts: TextStore, images: ImageReader
    ) -> tuple[TaskModule, ImageSource]:
        """Build the losses over the model, and the examples to train on.

        Raises:
            UserError: a file that the configuration names is wrong.

        """

    @abstractmethod
    def validator(self, config: Config, module: TaskModule, store: RegionStore) -> Validator:
        """Prepare the validation that `config.validation` asks for.

        Args:
            config: of the run; its section `validation` is there.
            module: of the run, whose model is scored.
            store: regions of the validation images.

        Raises:
            UserError: annotations that do not fit.

        """

    @abstractmethod
    def evaluate(
        self, trained: TrainedModel, store: RegionStore, options: Any, progress: Progress | None = None
    ) -> Evaluation:
        """Predict for annotation files and score the predictions as far as dimvl does so itself.

        Args:
            trained: a model of this task.
            store: regions of the images.
            options: of the class `evaluation`.
            progress: called with (predictions made, predictions in total).

        Raises:
            UserError: annotations, store and model do not fit together.

        """

    def with_official_scores(self, evaluation: Evaluation) -> Evaluation:
        """Add scores that take other programs, after the predictions are written."""
        return evaluation

    @abstractmethod
    def average_example(self, config: Config, facts: DataFacts) -> AverageExample:
        """Return what an average example of a run costs, for `dimvl plan`."""

    def texts_per_prefix(self, config: Config) -> int:
        """Return the most texts that an example has; for `dimvl plan`."""
        return 10**6

    def planned_answers(self, config: Config) -> tuple[int, str]:
        """Return the size of the answer vocabulary for `dimvl plan`, and what was assumed about it if anything."""
        return 0, ""
