"""The kinds of runs: pretraining, visual question answering, captioning."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dimvl.config.sections import (
    DeepSpeedConfig,
    InputsConfig,
    ModelConfig,
    ObjectivesConfig,
    Section,
    Seq2seqConfig,
    Share,
    TrainingConfig,
)

Missing = Literal["error", "skip"]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _number_or_file(value: Any) -> Any:
    if not isinstance(value, int | str | Path):
        raise ValueError("give a number of answers or a JSON file of them")
    if isinstance(value, int) and value < 2:
        raise ValueError("keep at least 2 answers")
    return value


def _each_once(files: list[Path]) -> list[Path]:
    for place, file in enumerate(files):
        if file in files[:place]:
            raise ValueError(f"{file} is there twice; name each file once")
    return files


Files = Annotated[list[Path], BeforeValidator(_as_list), AfterValidator(_each_once), Field(min_length=1)]
FilesOrNone = Annotated[list[Path | None], BeforeValidator(_as_list)]
Names = Annotated[list[str], BeforeValidator(_as_list)]


class RunConfig(Section):
    """What every run has."""

    output: Path = Field(description="folder of the run")
    seed: int = Field(0, ge=0, lt=2**63, description="of everything that is drawn")
    regions: Files = Field(description="region store, or a list of stores of one detector to use as one")
    missing: Missing = Field(
        "error", description="where the store lacks an image: error, or skip its texts, counted and told"
    )
    cache: Path | None = Field(None, description="folder of tokenised texts; by default inside the run")
    inputs: InputsConfig = InputsConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig
    deepspeed: DeepSpeedConfig | None = None

    @model_validator(mode="after")
    def _muon_has_whole_matrices(self) -> "RunConfig":
        if self.deepspeed is not None and self.deepspeed.stage and self.training.muon_rate is not None:
            raise ValueError(
                f"training.muon_rate makes each update from a whole matrix and deepspeed.stage {self.deepspeed.stage} "
                "cuts matrices into parts; take muon_rate out, or set deepspeed.stage to 0"
            )
        return self

    @model_validator(mode="after")
    def _compiled_blocks_have_their_weights(self) -> "RunConfig":
        if self.deepspeed is not None and self.deepspeed.stage == 3 and self.training.compile:
            raise ValueError(
                "training.compile cannot see the weights that deepspeed.stage 3 gathers; take compile out, or set the "
                "stage to 2"
            )
        return self


class ValidationConfig(Section):
    """A score on other data now and then: the best checkpoint is kept, and training stops when it no longer rises."""

    every: int = Field(ge=1, description="steps between validations; the last step has one too")
    patience: int = Field(0, ge=0, description="validations without a better score after which to stop; 0: never")
    subset: int | None = Field(None, ge=1, description="so many questions, or images to caption; none: all")
    seed: int = Field(0, ge=0, lt=2**63, description="which ones")
    regions: Files | None = Field(None, description="region store of the images; none: that of the training")


class VqaValidationConfig(ValidationConfig):
    """Official accuracy on other questions: the best checkpoint is kept, and training stops when it no longer rises."""

    questions: Path = Field(description="VQA v2 questions, or lines of JSON with their answers")
    annotations: Path | None = Field(None, description="VQA v2 annotations; none for questions with their own answers")


class CaptionValidationConfig(ValidationConfig):
    """A score of captions of other images: the best checkpoint is kept, and training stops when it no longer rises."""

    captions: Path = Field(description="captions of any format in annotations.md")
    split: Names = Field([], description="splits of a file of Karpathy's splits, such as [val]")
    metric: Literal["cider", "loss"] = Field(
        "cider",
        description="cider: CIDEr-D of greedy captions, on plainly split words, not official tokens; loss: per word",
    )


class DropWorstConfig(Section):
    """Leave the captions with the highest loss out."""

    share: Share = Field(0.2, gt=0, lt=1, description="of the captions behind one prefix, rounded down")
    after: int = Field(ge=0, description="epochs before the first one that drops")

    def count(self, captions: int) -> int:
        """Captions dropped of so many."""
        return int(self.share * captions + 1e-9)  # .29 * 100 is a little less than 29


class SelfCriticalConfig(Section):
    """Self-critical training: drawn captions are rewarded by CIDEr-D over the other captions drawn of the image."""

    samples: int = Field(5, ge=2, description="captions drawn of each image")


class PretrainConfig(RunConfig):
    """Pretraining from captions."""

    task: Literal["pretrain"] = "pretrain"
    initial: Path | None = Field(None, description="an earlier pretraining run to go on from; none: from scratch")
    captions: Files = Field(description="captions of any format in annotations.md")
    split: Names = Field([], description="splits of a file of Karpathy's splits, such as [train, restval]")
    objectives: ObjectivesConfig = ObjectivesConfig()
    seq2seq: Seq2seqConfig = Seq2seqConfig()


class VqaConfig(RunConfig):
    """Fine-tuning for visual question answering."""

    task: Literal["vqa"]
    initial: Path | None = Field(None, description="a pretraining run or an export to start from; none: from scratch")
    questions: Files = Field(description="VQA v2 questions, or lines of JSON with their answers")
    annotations: FilesOrNone = Field(
        [], description="VQA v2 annotations of each question file, null for one with its own answers"
    )
    answers: Annotated[int | Path, BeforeValidator(_number_or_file)] = Field(
        3129, description="most frequent training answers kept, or a JSON file that lists the answers"
    )
    shared_prefix: bool = Field(
        False, description="questions see the picture but it does not see them, so it is computed once for all of them"
    )
    new_extractor: bool = Field(False, description="start the region projection afresh for another extractor")
    validation: VqaValidationConfig | None = None

    @model_validator(mode="after")
    def _annotations_fit(self) -> "VqaConfig":
        if self.annotations and len(self.annotations) != len(self.questions):
            raise ValueError(
                f"annotations names {len(self.annotations)} files but questions {len(self.questions)}; give one for "
                "each, null for one with its own answers"
            )
        return self

    @model_validator(mode="after")
    def _projection_learns(self) -> "VqaConfig":
        _check_projection_learns(self.new_extractor, self.training)
        return self


class CaptionConfig(RunConfig):
    """Fine-tuning for captioning."""

    task: Literal["caption"]
    initial: Path | None = Field(None, description="a pretraining run or an export to start from; none: from scratch")
    captions: Files = Field(description="captions of any format in annotations.md")
    split: Names = Field([], description="splits of a file of Karpathy's splits, such as [train, restval]")
    seq2seq: Seq2seqConfig = Seq2seqConfig()
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    new_extractor: bool = Field(False, description="start the region projection afresh for another extractor")
    drop_worst: DropWorstConfig | None = None
    self_critical: SelfCriticalConfig | None = None
    validation: CaptionValidationConfig | None = None

    @model_validator(mode="after")
    def _options_fit(self) -> "CaptionConfig":
        _check_projection_learns(self.new_extractor, self.training)
        if self.drop_worst is not None and self.drop_worst.count(self.seq2seq.captions) == 0:
            raise ValueError(
                f"drop_worst.share {self.drop_worst.share} of seq2seq.captions {self.seq2seq.captions} is no whole "
                "caption, so nothing would be dropped; raise one of them"
            )
        if self.self_critical is not None:
            if self.initial is None:
                raise ValueError("self_critical goes on with a model that captions; name its run as initial")
            if self.smoothing or self.drop_worst is not None:
                raise ValueError("self_critical has no words to predict; take smoothing and drop_worst out")
            if self.model.dropout:
                raise ValueError(
                    f"self_critical learns from the model that it draws captions with, and model.dropout "
                    f"{self.model.dropout} makes them two; set model.dropout to 0"
                )
            if self.seq2seq.variant == "masked":
                raise ValueError("self_critical takes seq2seq.variant 'causal' only; pretrain and fine-tune with it")
        return self


def _check_projection_learns(new_extractor: bool, training: TrainingConfig) -> None:
    if new_extractor and training.freeze.embeddings:
        raise ValueError(
            "new_extractor starts the region projection afresh and training.freeze.embeddings keeps it from learning; "
            "take one of them out"
        )


AnyConfig = PretrainConfig | VqaConfig | CaptionConfig
TASKS: dict[str, type[AnyConfig]] = {"pretrain": PretrainConfig, "vqa": VqaConfig, "caption": CaptionConfig}
