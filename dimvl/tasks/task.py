"""The interface of a task, through which all other code uses pretraining, question answering and captioning.

A task defines how annotations are read and matched, heads, examples and losses, how a
trained model is applied and scored, and the cost of an average example. A new task is a subclass of `Task` in its own
module; the class of the keys of its runs names it, and is added to `dimvl.tasks.CONFIGS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.config import EvaluationOptions, RunConfig
from dimvl.data.annotations import Caption, Choice, LabelledItem, Phrase, Question
from dimvl.data.prefixes import ImageReader, Prefix
from dimvl.data.processor import Processor
from dimvl.data.text_store import LabelledText, TextStore
from dimvl.errors import UserError
from dimvl.model.model import DimvlModel
from dimvl.regions.store import RegionStore
from dimvl.tasks.base import ImageSource, TaskModule
from dimvl.tasks.costs import AverageExample, DataFacts
from dimvl.trained_model import TrainedModel

Config = TypeVar("Config", bound=RunConfig)
Record = Caption | Question | Choice | LabelledItem | Phrase


class Evidence(NamedTuple):
    """What a result rests on: how probable it is for a prefix, and for the prefix without each of its regions.

    Attributes:
        raw: the raw result for the whole prefix, as `Ability.apply` returns it.
        probabilities: (1 + R,) of what that result says: for the whole prefix, and without each region in order.
        logarithms: whether these are log-probabilities.
        words: W parts of the result with values of their own, as the words of a caption.
        of_words: (1 + R, W) of these, as `probabilities`.

    """

    raw: Any
    probabilities: Tensor
    logarithms: bool = False
    words: Sequence[str] = ()
    of_words: Tensor | None = None


class PairRows(NamedTuple):
    """Encoded rows of one prefix and one text.

    Attributes:
        regions: (R, D)
        start: (1, D) that of [CLS].
        text: (T, D), the special token included.
        judged: (1, D) the row that a match is judged from: [CLS] if it has seen the text, else the last of the text.

    """

    regions: Tensor
    start: Tensor
    text: Tensor
    judged: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Forward:
    """The numbers of an ability for one prefix and one text, as a program computes them (`dimvl/program.py`).

    Attributes:
        name: of the program.
        head: the attribute of the model that is applied to the rows.
        outputs: (head, `PairRows`) -> tensors.
        meanings: what each tensor is, by its name.
        eager: (trained model, prefix or None, token ids of words or None) -> the same tensors, by batches and plans.
        takes: whether it takes a prefix and a text, a prefix alone, or a text alone.
        next_word: whether the last row stands for the word that follows the text; else it is [SEP].
        labels: processor -> names of the logits, in order.
        available: processor -> whether models of this kind can be programs.

    """

    name: str
    head: str
    outputs: Callable[[Any, PairRows], tuple[Tensor, ...]]
    meanings: Mapping[str, str]
    eager: Callable[..., tuple[Tensor, ...]]
    takes: Literal["pair", "prefix", "text"] = "pair"
    next_word: bool = False
    labels: Callable[[Processor], Sequence[str]] = lambda processor: ()
    available: Callable[[Processor], bool] = lambda processor: True


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Something that a trained model can do with prefixes.

    Attributes:
        verb: name in the predictor, such as `answer` or `caption`.
        available: processor -> whether its model was trained for this.
        apply: (trained model, prefixes, token ids of a text for each, **options) -> a sequence or tensor with one raw
            result per prefix. The texts are None for an ability that takes none.
        result: (trained model, raw result, **options) -> what the predictor returns.
        takes_text: whether each prefix has a text.
        rows: (trained model, **options) -> rows per prefix that decoding adds, for an ability without texts.
        prepare: (trained model, texts, **options) -> what `apply` takes for each text; its length is about the rows
            that it adds to a prefix.
        settle: (trained model, **options) -> the options as the functions above take them, worked out once for all
            inputs.
        evidence: what a result rests on: (trained model, prefixes, the text as `prepare` returns it or None, **options)
            -> `Evidence`. Prefix 0 is that of the input, and prefix 1 + r lacks its region r. Use `by_probability` if
            `apply` returns probabilities of things that are the same for all prefixes; of a region that is chosen, take
            0 where the region itself is missing. None: the results have no probability.
        example: a line of Python for the model card that uses `predictor`.
        forward: what a program computes for this; abilities may share one. None: it follows from other programs, or
            there is none.

    """

    verb: str
    available: Callable[[Processor], bool]
    apply: Callable[..., Any]
    result: Callable[..., Any]
    takes_text: bool
    example: str
    rows: Callable[..., int] = lambda trained, **options: 0
    prepare: Callable[..., Sequence[Any]] = lambda trained, texts, **options: trained.tokenise(texts)
    settle: Callable[..., Mapping[str, Any]] = lambda trained, **options: options
    evidence: Callable[..., Evidence] | None = None
    forward: Forward | None = None

    def check(self, trained: TrainedModel) -> None:
        """Check that a model was trained for this.

        Raises:
            UserError: it was not.

        """
        if not self.available(trained.processor):
            raise UserError(f"the model {trained.weights.parent} cannot {self.verb}; give one trained to {self.verb}")


def by_probability(
    apply: Callable[..., Any], table: Callable[[Any], Tensor] = lambda found: found
) -> Callable[..., Evidence]:
    """Return the evidence of an ability whose result is the most probable of several things, or one probability.

    Args:
        apply: as in `Ability`.
        table: raw results of P prefixes -> probabilities (P, C) of the C things, or (P,) of the only one.

    """

    def evidence(trained: TrainedModel, prefixes: Sequence[Prefix], text: Any, **options: Any) -> Evidence:
        if text is None:
            found = apply(trained, prefixes, None, **options)
        else:
            found = apply(trained, prefixes, [text] * len(prefixes))
        values = table(found)
        return Evidence(found[0], values if values.ndim == 1 else values[:, int(values[0].argmax())])

    return evidence


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's predictions for an annotation file.

    Attributes:
        predictions: records in the official submission format.
        items: a readable record per prediction: input, references, prediction, score.
        scores: overall scores; empty without references.
        files: further files that the scores depend on, by name.
        left_out: reason -> number of texts or images without a prediction or without a score.
        submissions: content of files that the data set's authors want, by name, `submission.` and an ending.

    """

    predictions: list[dict[str, Any]]
    items: list[dict[str, Any]]
    scores: dict[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    submissions: Mapping[str, str] = field(default_factory=dict)


class ValidationScore(NamedTuple):
    """The result of one validation.

    Attributes:
        score: score of the checkpoint; higher is better.
        parts: further numbers to log, by name.
        predictions: predictions for a fixed sample.

    """

    score: float
    parts: Mapping[str, float] = {}
    predictions: Sequence[Mapping[str, Any]] = ()


class Validator(ABC):
    """Scores the model on held-out data, batch by batch, so that ranks can share the work.

    Attributes:
        costs: (I,) rows of each item (question, image) to score.

    """

    costs: np.ndarray

    @abstractmethod
    def run(self, items: np.ndarray) -> Any:
        """Apply the model to a batch of items (B,), which may be empty; return a small plain value."""

    @abstractmethod
    def result(self, parts: Sequence[tuple[np.ndarray, Any]]) -> ValidationScore:
        """Combine the (items, value) pairs of all batches, in order."""


class Task(ABC, Generic[Config]):
    """A kind of run.

    Attributes:
        name: value of `task` in a configuration.
        title: heading in the documentation of the configuration.
        evaluation: class of the options of `evaluate`.
        abilities: abilities of a model trained on it.
        pipeline_tag: kind of model on the Hugging Face hub.
        texts_per_image: what `dimvl plan` assumes if no texts exist yet.
        draws_in_steps: whether training steps decode captions, which plan and profile do not cover.

    """

    name: ClassVar[str]
    title: ClassVar[str]
    evaluation: ClassVar[type[EvaluationOptions]]
    abilities: ClassVar[Sequence[Ability]]
    pipeline_tag: ClassVar[str]
    texts_per_image: ClassVar[float] = 1.0
    draws_in_steps: ClassVar[bool] = False

    def __init_subclass__(cls, abstract: bool = False, **arguments: Any) -> None:
        """Refuse the definition of a task that lacks a part of the interface.

        Args:
            abstract: the class is a base of several tasks and may be incomplete.
            arguments: arguments of other base classes.

        Raises:
            TypeError: a part is missing.

        """
        super().__init_subclass__(**arguments)
        if abstract:
            return
        attributes = ("name", "title", "evaluation", "abilities", "pipeline_tag")
        missing = [name for name in attributes if not hasattr(cls, name)]
        missing += [name for name in dir(cls) if getattr(getattr(cls, name, None), "__isabstractmethod__", False)]
        if missing:
            raise TypeError(f"task {cls.__name__} lacks {', '.join(missing)}")

    def variant(self, config: Config) -> "Task[Any]":
        """Return the task of a configuration: this one, or one that trains the same model differently."""
        return self

    @abstractmethod
    def annotation_files(self, config: Config) -> dict[str, list[Path]]:
        """Return the annotation files of a run by name; those for validation are named `validation NAME`."""

    def judges(self, config: Config) -> dict[str, Path]:
        """Return the models that a run's losses depend on but do not train, by the key that names them."""
        return {}

    @abstractmethod
    def read(self, config: Config, store: RegionStore) -> Sequence[Record]:
        """Read the training texts and match them with the images of the store.

        Raises:
            UserError: a file is missing or wrong, or does not belong to the store.

        """

    @abstractmethod
    def labelled_texts(self, records: Sequence[Any], processor: Processor) -> list[LabelledText]:
        """Convert the result of `read` to texts to tokenise, with their labels."""

    @abstractmethod
    def capabilities(self, config: Config, records: Sequence[Any], initial: Processor | None) -> dict[str, Any]:
        """Return the task's fields of the run's `Processor`; `initial` is that of the model that it starts from."""

    @abstractmethod
    def heads(self, config: Config, classes: int, answers: int) -> dict[str, Any]:
        """Return the arguments of the heads that the task needs, as in `dimvl.model.heads.HEADS`.

        `classes` is the number K of the extractor's classes, `answers` the number A of answers or labels.
        """

    @abstractmethod
    def build(
        self, config: Config, model: DimvlModel, processor: Processor, texts: TextStore, images: ImageReader
    ) -> tuple[TaskModule, ImageSource]:
        """Build the losses and the source of training examples.

        Raises:
            UserError: a file of the configuration is wrong.

        """

    @abstractmethod
    def validator(self, config: Config, module: TaskModule, store: RegionStore) -> Validator:
        """Prepare the validation of `config.validation`, which is not None, with the store of its images.

        Raises:
            UserError: the annotations do not fit the store.

        """

    @abstractmethod
    def evaluate(
        self, trained: TrainedModel, store: RegionStore, options: Any, progress: Progress | None = None
    ) -> Evaluation:
        """Predict for annotation files and score the predictions, except for scores of other programs.

        Args:
            trained: a model of this task.
            store: regions of the images.
            options: an instance of the class `evaluation`.
            progress: called with (predictions made, predictions in total).

        Raises:
            UserError: the annotations, store and model do not fit together.

        """

    def with_official_scores(self, evaluation: Evaluation) -> Evaluation:
        """Add scores of other programs, after the predictions are written."""
        return evaluation

    @abstractmethod
    def average_example(self, config: Config, facts: DataFacts) -> AverageExample:
        """Return the cost of an average example of a run, for `dimvl plan`."""

    def texts_per_prefix(self, config: Config) -> int:
        """Return the maximum number of texts of an example, for `dimvl plan`."""
        return 10**6

    def planned_answers(self, config: Config) -> tuple[int, str]:
        """Return the number of answers or labels for `dimvl plan`, and the assumption about it, if any."""
        return 0, ""
