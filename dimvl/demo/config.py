"""Configuration of the demo: the whole way on scenes, from pictures to scores."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from dimvl.config import (
    CaptionConfig,
    InputsConfig,
    ModelConfig,
    ObjectivesConfig,
    PretrainConfig,
    Section,
    SelfCriticalConfig,
    Seq2seqConfig,
    TrainingConfig,
    VqaConfig,
    read_yaml,
    validate,
)
from dimvl.data.scenes import SceneOptions
from dimvl.errors import UserError


class ScenesConfig(Section):
    """Number and difficulty of the pictures; see `SceneOptions`."""

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


class DecodingConfig(Section):
    """How captions are decoded; see `DecodingOptions`."""

    beams: int = Field(3, ge=1)
    length_penalty: float = 1.0
    block_ngrams: int = Field(0, ge=0)


class PhaseConfig(Section):
    """One phase of pretraining; each goes on with the weights of the one before."""

    objectives: ObjectivesConfig = ObjectivesConfig()
    word_change_share: float = Field(0.0, ge=0, le=1, description="of the negatives of matching")
    training: TrainingConfig

    @model_validator(mode="after")
    def _words_change_in_matching(self) -> "PhaseConfig":
        if self.word_change_share and not self.objectives.shares.matching:
            raise ValueError("word_change_share is of the negatives of matching, which has no share; take it out")
        return self


class DemoConfig(Section):
    """The whole way on scenes.

    `seconds` is the budget: what each stage is expected to take on the machine named in the file. It is shown at the
    start and gives the time left; it never changes what a stage does. Neither do `minutes` and `note`.
    """

    seed: int = Field(0, ge=0)
    lanes: int = Field(2, ge=1, description="stages that run at the same time, each on one thread")
    scenes: ScenesConfig
    inputs: InputsConfig
    model: ModelConfig
    seq2seq: Seq2seqConfig = Seq2seqConfig()
    pretraining: list[PhaseConfig] = Field(min_length=1)
    shared_prefix: bool = Field(
        False, description="of questions and of matching, of the model and of its baselines alike"
    )
    vqa: TrainingConfig
    caption: TrainingConfig
    self_critical: TrainingConfig | None = Field(None, description="goes on with the captions; none: it ends there")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of captioning")
    decoding: DecodingConfig = DecodingConfig()
    seconds: dict[str, float] = Field(description="budget: expected seconds of each stage")
    minutes: float = Field(12, gt=0, description="goal for the wall clock of the whole way on 2 cores")
    note: str = Field("", description="what is to be said beside the scores")

    @property
    def options(self) -> SceneOptions:
        """Options of the generator."""
        return SceneOptions(seed=self.seed, **self.scenes.model_dump())

    @property
    def captioner(self) -> str:
        """Name of the run whose captions are scored and exported."""
        return "caption" if self.self_critical is None else "self_critical"


def configs_folder() -> Path:
    """Folder of the configurations that come with a checkout of dimvl."""
    return Path(__file__).parents[2] / "configs"


def load_demo_config(path: Path) -> DemoConfig:
    """Read a demo configuration.

    Raises:
        UserError: any mistake in it.

    """
    config = validate(DemoConfig, read_yaml(path), str(path))
    try:
        _ = config.options
    except UserError as error:
        raise UserError(f"{path}: scenes: {error}") from None
    return config


class Places:
    """Where everything of one demo lies.

    Args:
        out: folder of the demo.

    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.scenes = out / "scenes"
        self.stages = out / "stages"
        self.tokenizer = out / "tokenizer"
        self.word_changes = out / "word_changes.json"
        self.scores = out / "scores"
        self.results = out / "results.json"
        self.report = out / "report.html"
        self.wall = out / "wall.json"
        self.exports = out / "exports"

    def regions(self, split: str) -> Path:
        """Region store of a split."""
        return self.out / "regions" / split

    def run(self, name: str) -> Path:
        """Folder of a training run."""
        return self.out / "train" / name


def run_config(config: DemoConfig, places: Places, name: str) -> PretrainConfig | VqaConfig | CaptionConfig:
    """Configuration of one training run of the demo.

    The baselines differ in one thing each: `question_only` sees no regions and no tags, `no_pretraining` starts from
    scratch, `pretraining_without_word_change-*` has no negatives with one word changed.

    Args:
        config: of the demo.
        places: its folders.
        name: `pretraining-1`, ..., `vqa`, `caption`, `self_critical` or a baseline.

    """
    common: dict[str, Any] = {
        "output": places.run(name),
        "seed": config.seed,
        "regions": places.regions("train"),
        "cache": places.out / "texts",
        "model": config.model,
        "inputs": config.inputs.model_copy(update={"tokenizer": places.tokenizer}),
    }
    if name.startswith("pretraining"):
        return _pretraining(config, places, name, common)
    if name in ("caption", "self_critical"):
        return _captioning(config, places, name, common)
    train, last = places.scenes / "train", places.run(f"pretraining-{len(config.pretraining)}")
    if name == "question_only":
        common["inputs"] = common["inputs"].model_copy(update={"max_regions": 0, "tag_tokens": 0})
    return VqaConfig(
        **common,
        task="vqa",
        training=config.vqa,
        initial=last if name == "vqa" else None,
        questions=[train / "questions.json"],
        annotations=[train / "annotations.json"],
        shared_prefix=config.shared_prefix,
    )


def _pretraining(config: DemoConfig, places: Places, name: str, common: dict[str, Any]) -> PretrainConfig:
    series, _, number = name.rpartition("-")
    phase = config.pretraining[int(number) - 1]
    changes: dict[str, Any] = {"shared_prefix": config.shared_prefix}
    if series == "pretraining" and phase.word_change_share:
        changes |= {"word_change_share": phase.word_change_share, "word_changes": places.word_changes}
    return PretrainConfig(
        **common,
        objectives=phase.objectives.model_copy(update=changes),
        training=phase.training,
        seq2seq=config.seq2seq,
        captions=[places.scenes / "train" / "captions.json"],
        initial=places.run(previous_phase(config, series, int(number))) if int(number) > 1 else None,
    )


def _captioning(config: DemoConfig, places: Places, name: str, common: dict[str, Any]) -> CaptionConfig:
    common |= {"task": "caption", "captions": [places.scenes / "train" / "captions.json"], "seq2seq": config.seq2seq}
    if name == "caption":
        last = places.run(f"pretraining-{len(config.pretraining)}")
        return CaptionConfig(**common, training=config.caption, initial=last, smoothing=config.smoothing)
    assert config.self_critical is not None
    initial = places.run("caption")
    return CaptionConfig(**common, training=config.self_critical, initial=initial, self_critical=SelfCriticalConfig())


def previous_phase(config: DemoConfig, series: str, number: int) -> str:
    """Name of the run that phase `number` of a series goes on from; phases that are alike in both series are shared."""
    return f"{series if changes_words(config, number - 1) else 'pretraining'}-{number - 1}"


def changes_words(config: DemoConfig, number: int) -> bool:
    """Whether any of the first `number` phases of pretraining has negatives with one word changed."""
    return any(phase.word_change_share for phase in config.pretraining[:number])
