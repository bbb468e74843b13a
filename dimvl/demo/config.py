"""The demo's configuration: scenes, model, runs and time budget; and the paths of its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dimvl.config import DecodingOptions, InputsConfig, ModelConfig, Section, TrainingConfig, read_yaml, validate
from dimvl.data.scenes import SceneOptions
from dimvl.errors import UserError
from dimvl.tasks.captioning.config import RetrievalReward, Seq2seqConfig
from dimvl.tasks.pretraining.config import ObjectivesConfig


class ScenesConfig(Section):
    """Number and difficulty of the images; see `SceneOptions`."""

    image_size: int = 160
    min_objects: int = 2
    max_objects: int = 5
    noise: float = 5.0
    clutter: int = 8
    max_overlap: float = 0.3
    train: int
    heldout: int
    compositional: int
    captions_per_image: int = 5
    questions_per_image: int = 10
    statements_per_image: int = 0
    phrases_per_image: int = 0
    images_per_story: int = 0


class PhaseConfig(Section):
    """One phase of pretraining; each starts from the weights of the one before."""

    objectives: ObjectivesConfig = ObjectivesConfig()
    training: TrainingConfig


class LabelsConfig(Section):
    """One point of the curve over labels: question answering learned from some of the questions."""

    questions: int = Field(ge=1, description="number of labelled questions, drawn at random")
    steps: int = Field(ge=1, description="optimiser steps after pretraining")
    steps_from_scratch: int = Field(ge=1, description="optimiser steps without pretraining, as many as work best")


FEW_LABELS = 3000
"""Labelled questions of the point of the curve that the goals are about."""


Further = Literal["statements", "grounding", "stories"]
"""Tasks beside questions and captions; see `dimvl.demo.further`."""
FURTHER_DATA: Mapping[Further, str] = {
    "statements": "statements_per_image",
    "grounding": "phrases_per_image",
    "stories": "images_per_story",
}
"""The key of `scenes` that each of them needs."""


class DemoConfig(Section):
    """A whole demo on synthetic scenes.

    `seconds`, `minutes` and `note` change no result: they give the estimate of the time left, a goal and a remark.
    """

    seed: int = Field(0, ge=0)
    lanes: int = Field(2, ge=1, description="number of stages that run at the same time, each on one thread")
    scenes: ScenesConfig
    inputs: InputsConfig
    model: ModelConfig
    seq2seq: Seq2seqConfig = Seq2seqConfig()
    pretraining: list[PhaseConfig] = Field(min_length=1)
    shared_prefix: bool = Field(
        False, description="share one prefix among the texts of an image, in question answering and in matching"
    )
    labels: list[LabelsConfig] = Field(min_length=1, description="the curve over labels, from few to many questions")
    vqa: TrainingConfig = Field(description="question answering; `labels` sets its steps")
    question_only: int = Field(ge=1, description="optimiser steps of the baseline without images, as many as work best")
    answer_dropout: float = Field(0.0, ge=0, lt=1, description="dropout of question answering")
    caption: TrainingConfig
    self_critical: TrainingConfig | None = Field(
        None, description="self-critical training after captioning; null: captioning is the last run"
    )
    retrieval: RetrievalReward | None = Field(
        None, description="its second reward, by the last run of pretraining; null: CIDEr-D alone"
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of captioning")
    decoding: DecodingOptions = DecodingOptions()
    further: dict[Further, TrainingConfig] = Field(
        {}, description="training of further tasks, from the last pretraining"
    )
    seconds: dict[str, float] = Field(description="expected seconds of each stage")
    minutes: float = Field(12, gt=0, description="goal for the wall-clock time of the whole demo on 2 cores")
    note: str = Field("", description="remark printed beside the scores")

    @model_validator(mode="after")
    def _retrieval_has_a_run(self) -> "DemoConfig":
        if self.retrieval is not None and self.self_critical is None:
            raise ValueError("retrieval is a reward of self_critical, which is null; add self_critical or remove it")
        return self

    @model_validator(mode="after")
    def _one_prefix_and_tokenizer(self) -> "DemoConfig":
        if not self.shared_prefix and any(phase.objectives.shared_prefix for phase in self.pretraining):
            raise ValueError("shared_prefix holds for the whole demo; give it at the top, not in objectives")
        if self.inputs.tokenizer is not None:
            raise ValueError("a demo trains its own tokenizer; remove inputs.tokenizer")
        return self

    @model_validator(mode="after")
    def _further_tasks_have_data(self) -> "DemoConfig":
        for task in self.further:
            if not getattr(self.scenes, FURTHER_DATA[task]):
                key = f"scenes.{FURTHER_DATA[task]}"
                raise ValueError(f"further has {task}, but {key} is 0; set {key}, or remove further.{task}")
        return self

    @model_validator(mode="after")
    def _labels_rise(self) -> "DemoConfig":
        numbers = [entry.questions for entry in self.labels]
        most = self.scenes.train * self.scenes.questions_per_image
        if sorted(set(numbers)) != numbers or numbers[-1] > most:
            raise ValueError(
                f"labels has {', '.join(map(str, numbers))} questions; they must rise, up to the {most} of the scenes"
            )
        if FEW_LABELS not in numbers:
            raise ValueError(f"labels lacks {FEW_LABELS} questions, which the goals are about; add them")
        return self

    @property
    def options(self) -> SceneOptions:
        """Options of the scene generator."""
        return SceneOptions(seed=self.seed, **self.scenes.model_dump())

    @property
    def answerer(self) -> str:
        """Name of the run with the most labelled questions, whose answers are scored in full and exported."""
        return f"vqa-{self.labels[-1].questions}"

    @property
    def captioner(self) -> str:
        """Name of the run whose captions are scored and exported."""
        return "caption" if self.self_critical is None else "self_critical"

    @property
    def searches(self) -> bool:
        """Whether the last phase of pretraining aligns images and texts, and judges them together."""
        shares = self.pretraining[-1].objectives.shares
        return bool(shares.contrastive and shares.matching)

    @property
    def last_pretraining(self) -> str:
        """Name of the run of the last phase of pretraining."""
        return f"pretraining-{len(self.pretraining)}"


def shipped_config(name: str) -> Path:
    """Path of a file of the demo that comes with dimvl: the configurations demo, full and quick, or statements."""
    package = Path(__file__).parents[1]
    installed, checkout = package / "configs", package.parent / "configs"
    return (installed if installed.is_dir() else checkout) / "scenes" / f"{name}.yaml"


def load_demo_config(path: Path) -> DemoConfig:
    """Read a demo configuration.

    Raises:
        UserError: a mistake in the file.

    """
    config = validate(DemoConfig, read_yaml(path), str(path))
    try:
        _ = config.options
    except UserError as error:
        raise UserError(f"{path}: scenes: {error}") from None
    return config


class DemoPaths:
    """Paths of the files of one demo.

    Args:
        out: folder of the demo.

    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.record = out / "demo.json"
        self.scenes = out / "scenes"
        self.stages = out / "stages"
        self.tokenizer = out / "tokenizer"
        self.scores = out / "scores"
        self.results = out / "results.json"
        self.report = out / "report.html"
        self.wall = out / "wall.json"
        self.exports = out / "exports"

    def regions(self, part: str) -> Path:
        """Region store of a part of the scenes, such as `train` or `train/stories`."""
        return self.out / "regions" / part.replace("/", "-")

    def run(self, name: str) -> Path:
        """Folder of a training run."""
        return self.out / "train" / name
