"""Typed run configuration: YAML files, `section.key=value` overrides, strict.

A file may begin with `include: [other.yaml]`; what it says itself wins. Every key is checked: an unknown one is an
error that shows the nearest valid name.
"""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dimvl.errors import UserError

Share = float
Split = Literal["qkv", "out", "norm", "ffn"]
Variant = Literal["causal", "masked"]
Missing = Literal["error", "skip"]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _number_or_file(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str | Path):
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


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class InputsConfig(Section):
    """What the model gets to see; fixed by pretraining and recorded in every checkpoint."""

    max_regions: int = Field(36, ge=0, le=1000, description="best regions used of each image; 0 for none")
    tag_tokens: int = Field(20, ge=0, le=400, description="budget of word pieces for visual-concept tags; 0 for none")
    tag_score: float = Field(0.3, ge=0, le=1, description="classes and attributes below this score give no tag")
    text_tokens: int = Field(40, ge=1, le=400, description="longer texts are cut")
    tokenizer: Path | None = Field(None, description="a tokenizer.json; without one a WordPiece is trained")
    vocabulary: int = Field(8000, ge=10, description="size of the WordPiece that is trained")


class ModelConfig(Section):
    """Size and shape of the network."""

    layers: int = Field(12, ge=1, description="Transformer blocks")
    width: int = Field(768, ge=8, description="of every row; a multiple of heads")
    heads: int = Field(12, ge=1, description="attention heads")
    inner_width: int = Field(3072, ge=8, description="inside the feed-forward sublayer")
    split: list[Split] = Field(["qkv"], description="sublayers with one set of weights per modality")
    dropout: float = Field(0.1, ge=0, lt=1, description="after embeddings and sublayers; none on attention")
    activation: Literal["gelu", "relu", "silu"] = Field(
        "gelu", description="inside feed-forward sublayers, word and object head"
    )
    bert: Path | None = Field(None, description="BERT checkpoint in the layout of transformers to start from")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; choose heads that divide it")
        return self


class Seq2seqConfig(Section):
    """The sequence-to-sequence language model."""

    variant: Variant = Field(
        "causal", description="causal: every position predicts the next word; masked: as VLP, UniLM"
    )
    share: Share = Field(0.5, gt=0, le=1, description="masked variant: share of tokens predicted")
    captions: int = Field(5, ge=1, description="captions of an image that share one prefix")


class SharesConfig(Section):
    """Share of documents of each pretraining objective."""

    masked_lm: float = Field(0.25, ge=0, description="words hidden, picture and text see each other")
    seq2seq_lm: float = Field(0.25, ge=0, description="captions predicted from the picture and their own past")
    masked_object: float = Field(0.25, ge=0, description="regions hidden")
    matching: float = Field(0.25, ge=0, description="whether the text belongs to the picture")

    @model_validator(mode="after")
    def _some_share(self) -> "SharesConfig":
        if not sum(self.model_dump().values()):
            raise ValueError("all shares are 0; give at least one objective a share")
        return self


class WeightsConfig(Section):
    """Weight of each loss."""

    masked_lm: float = Field(1.0, description="cross entropy of hidden words")
    seq2seq_lm: float = Field(1.0, description="cross entropy of caption words")
    object_class: float = Field(1.0, description="divergence from the detector's classes of hidden regions")
    object_feature: float = Field(1.0, description="squared error of the features of hidden regions")
    matching: float = Field(1.0, description="binary cross entropy of image-text matching")


class ObjectivesConfig(Section):
    """The four pretraining objectives."""

    shares: SharesConfig = SharesConfig()
    weights: WeightsConfig = WeightsConfig()
    text_share: Share = Field(0.15, gt=0, le=1, description="share of text tokens masked")
    whole_words: bool = Field(False, description="hide all pieces of a word together")
    region_share: Share = Field(0.15, gt=0, le=1, description="share of regions to predict")
    max_cover: float = Field(0.5, ge=0, le=1, description="most that a visible box may cover of a target's area")
    negative_share: Share = Field(0.5, ge=0, le=1, description="share of mismatched pairs in matching")
    word_change_share: Share = Field(0.0, ge=0, le=1, description="share of the negatives with one word changed")
    word_changes: Path | None = Field(None, description="JSON list of [old word, new word]")
    shared_prefix: bool = Field(
        False, description="matching: texts see the picture but it does not see them; it is computed once for them"
    )

    @model_validator(mode="after")
    def _word_changes_come_together(self) -> "ObjectivesConfig":
        if (self.word_changes is None) == (self.word_change_share > 0):
            raise ValueError("word_change_share and word_changes go together; give both or neither")
        return self


class FreezeConfig(Section):
    """Weights that stay as they are; the optimiser keeps no state of them."""

    embeddings: bool = Field(False, description="of regions and tokens; a word head shares the word embedding")
    layers: int = Field(0, ge=0, description="lowest Transformer blocks")


class TrainingConfig(Section):
    """Optimisation, hardware and bookkeeping."""

    steps: int = Field(ge=1, description="optimiser steps")
    rows_per_step: int = Field(4096, ge=1, description="row budget of an optimiser step over all ranks")
    rows_per_micro_batch: int = Field(4096, ge=1, description="row budget of one forward")
    learning_rate: float = Field(1e-4, gt=0, description="highest, at the end of the warmup")
    muon_rate: float | None = Field(
        None, gt=0, description="highest rate of the encoder's matrices, which then go by Muon; none: AdamW for all"
    )
    head_multiplier: float = Field(1.0, gt=0, description="learning rate of heads over that of the rest")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="each block below the heads, and last the embeddings, learns so much slower"
    )
    freeze: FreezeConfig = FreezeConfig()
    warmup_steps: int = Field(0, ge=0, description="steps of linear rise to the learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="fall to 0 after the warmup, or none"
    )
    weight_decay: float = Field(0.01, ge=0, description="of matrices; biases, norms and vectors have none")
    beta2: float = Field(0.999, gt=0, lt=1, description="decay of AdamW's second moment")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 is autocast over fp32 weights")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is one")
    threads: int = Field(0, ge=0, description="torch threads; 0 leaves torch's own choice")
    workers: int = Field(0, ge=0, description="processes that build batches")
    check_reads: bool = Field(False, description="compare the regions of every image read with their checksum")
    deterministic: bool = Field(False, description="bit-equal runs on CUDA, at some cost")
    save_every: int = Field(1000, ge=1, description="steps between checkpoints")
    keep: int = Field(1, ge=1, description="checkpoints kept")
    log_every: int = Field(10, ge=1, description="steps between lines of log.jsonl")
    wandb: Literal["disabled", "offline", "online"] = Field("disabled", description="needs the wandb extra")


class RunConfig(Section):
    """What every run has."""

    output: Path = Field(description="folder of the run")
    seed: int = Field(0, ge=0, description="of everything that is drawn")
    regions: Files = Field(description="region store, or a list of stores of one detector to use as one")
    missing: Missing = Field(
        "error", description="where the store lacks an image: error, or skip its texts, counted and told"
    )
    cache: Path | None = Field(None, description="folder of tokenised texts; by default inside the run")
    inputs: InputsConfig = InputsConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig


class ValidationConfig(Section):
    """A score on other data now and then: the best checkpoint is kept, and training stops when it no longer rises."""

    every: int = Field(ge=1, description="steps between validations; the last step has one too")
    patience: int = Field(0, ge=0, description="validations without a better score after which to stop; 0: never")
    subset: int | None = Field(None, ge=1, description="so many questions, or images to caption; none: all")
    seed: int = Field(0, ge=0, description="which ones")
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
Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path, includers: Sequence[Path] = ()) -> dict[str, Any]:
    """Read a YAML file and the files it includes, its own values over theirs.

    Args:
        path: the file.
        includers: the files that led to it.

    Raises:
        UserError: missing, no YAML, not a mapping, or including itself.

    """
    if path.resolve() in includers:
        raise UserError(f"{path} includes itself; take one include out")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path of the configuration") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a readable YAML file ({reason}); mend it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold sections and keys, not a {type(content).__name__}")
    merged: dict[str, Any] = {}
    others = content.pop("include", [])
    if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
        raise UserError(f"{path}: include is {others!r}; it must be a list of files, such as [other.yaml]")
    for other in others:
        merged = merge(merged, read_yaml(path.parent / other, [*includers, path.resolve()]))
    return merge(merged, content)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested mappings over each other; `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Turn `section.key=value` into nested mappings; values are read as YAML.

    Raises:
        UserError: an override without `=`.

    """
    result: dict[str, Any] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise UserError(f"override {override!r} is not of the form section.key=value")
        try:
            value: Any = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"override {override!r}: the value is not readable as YAML; put it in quotes") from None
        if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
            with suppress(ValueError):
                value = float(value)
        for key in reversed(name.split(".")):
            value = {key: value}
        result = merge(result, value)
    return result


def load_config(path: Path, overrides: Sequence[str] = ()) -> AnyConfig:
    """Read a run configuration; its `task` tells which kind it is.

    Raises:
        UserError: any mistake in it, with the nearest valid name.

    """
    content = merge(read_yaml(path), parse_overrides(overrides))
    task = content.setdefault("task", "pretrain")
    if not isinstance(task, str) or task not in TASKS:
        raise UserError(f"{path}: task is {task!r}; it must be one of {', '.join(TASKS)}")
    return validate(TASKS[task], content, str(path))


def validate(model: type[Model], content: Any, source: str) -> Model:
    """Check values against a configuration class.

    Raises:
        UserError: one sentence on the first mistake.

    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = _first_mistake(error)
        place = [str(part) for part in first["loc"]]
        name = ".".join(place) or "the file"
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, place[:-1])
            near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.4)
            hint = f"did you mean {'.'.join([*place[:-1], near[0]])!r}?" if near else f"valid keys: {', '.join(known)}"
            raise UserError(f"{source}: unknown key {name!r}; {hint}") from None
        if first["type"] == "missing":
            raise UserError(f"{source}: {name!r} is missing; give it in the file or as {name}=VALUE") from None
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(first["input"], dict) else f" is {first['input']!r}"
        raise UserError(f"{source}: {name}{shown}: {message[0].lower()}{message[1:]}") from None


def _first_mistake(error: ValidationError) -> Any:
    """Choose the mistake to tell: a missing key that is there misspelt is told as the unknown key that it is."""
    first, *others = error.errors()
    if first["type"] != "missing":
        return first
    *section, missing = map(str, first["loc"])
    for other in others:
        *place, unknown = map(str, other["loc"])
        beside = other["type"] == "extra_forbidden" and place == section
        if beside and difflib.get_close_matches(unknown, [missing], cutoff=0.7):
            return other
    return first


def _known_keys(model: type[BaseModel], place: Sequence[str]) -> list[str]:
    for part in place:
        if part.isdigit():  # an item of a list
            continue
        annotation: Any = model.model_fields[part].annotation
        if get_origin(annotation) in (Union, UnionType):
            annotation = next(option for option in get_args(annotation) if option is not type(None))
        model = get_args(annotation)[0] if get_origin(annotation) is list else annotation
    return list(model.model_fields)
