"""The sections that every run configuration has: each key with its type, its bounds and one line of explanation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dimvl.errors import UserError
from dimvl.files import local_path

Split = Literal["qkv", "out", "norm", "ffn"]
Missing = Literal["error", "skip"]
Variant = Literal["causal", "masked"]
Concepts = Literal["none", "text", "region", "both"]
Match = Literal["auto", "id", "file_name", "stem", "path_stem", "coco_number", "twelve_digits"]
List = TypeVar("List", bound=Sequence[Any])


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def distinct(values: List) -> List:
    """Return the list unchanged; raise a `ValueError` if a value is in it twice."""
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"{value} is named twice; name each one once")
    return values


Files = Annotated[list[Path], BeforeValidator(_as_list), AfterValidator(distinct), Field(min_length=1)]
FilesOrNone = Annotated[list[Path | None], BeforeValidator(_as_list)]
Names = Annotated[list[str], BeforeValidator(_as_list)]


class Section(BaseModel):
    """A part of the configuration: unknown keys, infinities and NaN are refused, and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="after")
    @classmethod
    def _paths_are_as_a_shell_reads_them(cls, value: Any) -> Any:
        """Replace `~` in paths."""
        try:
            if isinstance(value, list):
                return [local_path(item) if isinstance(item, Path) else item for item in value]
            return local_path(value) if isinstance(value, Path) else value
        except UserError as error:
            raise ValueError(str(error)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind), *map(type, get_args(kind))}:
            raise ValueError("give a number")
        if value == "" and Path in {kind, *get_args(kind)}:
            raise ValueError("give a path, or . for the current folder")
        return value


TAGS, REGION_WORDS = ("text", "both"), ("region", "both")
"""Values of `inputs.concepts` with tags, and with words in the rows of regions."""


def rename_tag_keys(values: Any) -> Any:
    """Rename the keys of version 0.1, `tag_tokens` (0 for no tags) and `tag_score`, unless a newer key is there too."""
    old = {"tag_tokens", "tag_score"}
    if not isinstance(values, Mapping) or not old & values.keys():
        return values
    if any(str(key).startswith("concept") for key in values):
        return values
    budget = values.get("tag_tokens", 20)
    renamed = {key: value for key, value in values.items() if key not in old}
    renamed |= {"concept_score": values["tag_score"]} if "tag_score" in values else {}
    if budget == 0 and not isinstance(budget, bool):
        return renamed | {"concepts": "none"}
    return renamed | {"concepts": "text", "concept_tokens": budget}


class InputsConfig(Section):
    """What the model sees of an example; fixed by pretraining and recorded in every checkpoint."""

    max_regions: int = Field(36, ge=0, le=1000, description="highest-scoring regions used of each image; 0 uses none")
    max_images: int = Field(4, ge=1, le=256, description="largest number of images in one record")
    times: bool = Field(False, description="embed the times of images, in seconds, as given by the annotations")
    concepts: Concepts = Field(
        "text",
        description="where the model sees the names of regions: as tags beside the text, in the rows of the regions, "
        "or both",
    )
    concept_score: float = Field(0.3, ge=0, le=1, description="classes and attributes below this score are left out")
    concept_tokens: int = Field(20, ge=1, le=400, description="budget of word pieces for the tags of an example")
    concept_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training examples whose tags are left out, and, drawn separately, of those whose "
        "regions lose their names",
    )
    text_tokens: int = Field(40, ge=1, le=400, description="maximum word pieces of a text; longer ones are truncated")
    tokenizer: Path | None = Field(None, description="a tokenizer.json; null trains a WordPiece tokenizer")
    vocabulary: int = Field(8000, ge=10, le=10**6, description="vocabulary size of a tokenizer that is trained")

    @model_validator(mode="before")
    @classmethod
    def _of_version_0_1(cls, values: Any) -> Any:
        renamed = rename_tag_keys(values)
        if isinstance(renamed, Mapping) and {"tag_tokens", "tag_score"} & renamed.keys():
            raise ValueError(
                "tag_tokens is now concept_tokens (for none, concepts: none) and tag_score concept_score; rename them"
            )
        return renamed

    @model_validator(mode="after")
    def _concepts_to_drop(self) -> "InputsConfig":
        if self.concept_dropout and self.concepts == "none":
            raise ValueError("concept_dropout has nothing to drop where concepts is none; remove it")
        return self

    @property
    def tag_tokens(self) -> int:
        """Budget of word pieces for tags; 0 where there are none."""
        return self.concept_tokens if self.concepts in TAGS else 0

    @property
    def region_words(self) -> bool:
        """Whether the row of a region has the words of its names."""
        return self.concepts in REGION_WORDS


class ModelConfig(Section):
    """Size and shape of the network."""

    layers: int = Field(12, ge=1, le=1000, description="number of Transformer blocks")
    width: int = Field(768, ge=8, le=10**5, description="hidden size; a multiple of heads")
    heads: int = Field(12, ge=1, description="number of attention heads")
    inner_width: int = Field(3072, ge=8, le=10**6, description="hidden size inside the feed-forward sublayer")
    split: Annotated[list[Split], AfterValidator(distinct)] = Field(
        ["qkv"], description="sublayers with separate weights for vision and language"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout after embeddings and sublayers; none in attention")
    activation: Literal["gelu", "relu", "silu"] = Field(
        "gelu", description="in feed-forward sublayers, word head and object head"
    )
    bert: Path | None = Field(
        None,
        description="BERT checkpoint in the layout of transformers to start from, of these sizes; of more layers, the "
        "lowest are used",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; choose heads that divide it")
        return self


class FreezeConfig(Section):
    """Weights that are not trained; the optimiser keeps no state for them."""

    embeddings: bool = Field(False, description="region and token embeddings; a word head shares the word embedding")
    words: bool = Field(False, description="token embeddings alone, for example if the region embeddings are new")
    layers: int = Field(0, ge=0, description="number of Transformer blocks, from the lowest")


class DeepSpeedConfig(Section):
    """Training with DeepSpeed on one or more devices; without this section plain PyTorch trains in one process."""

    stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="what ZeRO splits over ranks: 0 nothing, 1 optimiser state, 2 also gradients, 3 also weights",
    )
    offload_optimizer: bool = Field(
        False, description="keep and update the optimiser state in CPU memory; needs stage 1 or higher"
    )
    offload_parameters: bool = Field(
        False, description="keep weights in CPU memory too; needs stage 3 and offload_optimizer"
    )
    timeout: float = Field(1800, ge=1, description="seconds after which a rank that does not respond ends the run")
    options: dict[str, Any] = Field(
        {}, description="further DeepSpeed keys, such as {zero_optimization: {overlap_comm: false}}"
    )

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> "DeepSpeedConfig":
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer needs a split optimiser state; set stage to 1, 2 or 3, or remove it")
        if self.offload_parameters and (self.stage < 3 or not self.offload_optimizer):
            raise ValueError("offload_parameters needs stage 3 and offload_optimizer; set both, or remove it")
        return self


class TrainingConfig(Section):
    """Optimisation, hardware and bookkeeping."""

    steps: int = Field(ge=1, le=10**9, description="number of optimiser steps")
    rows_per_step: int = Field(
        4096, ge=1, le=10**9, description="maximum rows (regions, tags, words) in an optimiser step, over all ranks"
    )
    rows_per_micro_batch: int = Field(4096, ge=1, le=10**9, description="maximum rows in one forward pass")
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate, reached after the warmup")
    muon_rate: float | None = Field(
        None, gt=0, description="peak learning rate of Muon for the encoder's matrices; null uses AdamW for everything"
    )
    head_multiplier: float = Field(1.0, gt=0, description="learning rate of the heads as a multiple of learning_rate")
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="learning rate of each block as a multiple of that of the block above it",
    )
    freeze: FreezeConfig = FreezeConfig()
    warmup_steps: int = Field(0, ge=0, le=10**9, description="steps over which the learning rate rises linearly")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="how the learning rate falls to 0 after the warmup; constant: not at all"
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of matrices; biases, norms and vectors have none")
    beta2: float = Field(0.999, gt=0, lt=1, description="AdamW's decay of the second moment")
    clip: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: autocast over fp32 weights; with ZeRO 1 to 3, bf16 weights with fp32 master weights"
    )
    checkpoint_activations: bool = Field(
        False, description="activation checkpointing: recompute each block in the backward pass to save memory"
    )
    compile: bool = Field(
        False, description="torch.compile what follows attention in each block; the first step may take minutes"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if available, else the CPU")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of torch; 0 leaves torch's default")
    workers: int = Field(0, ge=0, le=256, description="data-loader processes; 0 builds batches in the training process")
    check_reads: bool = Field(False, description="verify the checksum of every image read from the region store")
    deterministic: bool = Field(False, description="bit-identical runs on CUDA, at some cost in speed")
    save_every: int = Field(1000, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="number of newest checkpoints to keep; with 2, one may be damaged")
    log_every: int = Field(10, ge=1, description="steps between log lines")
    wandb: Literal["disabled", "offline", "online"] = Field(
        "disabled", description="log to Weights & Biases; needs the wandb extra"
    )
    tensorboard: bool = Field(
        False, description="log to the folder `tensorboard` of the run too; needs the tensorboard extra"
    )
