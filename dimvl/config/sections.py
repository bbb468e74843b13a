"""The sections of a run configuration: each key with its type, its bounds and one line of explanation."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Share = float
Split = Literal["qkv", "out", "norm", "ffn"]
Variant = Literal["causal", "masked"]


class Section(BaseModel):
    """A part of the configuration: unknown keys and numbers without end are refused, and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind), *map(type, get_args(kind))}:
            raise ValueError("give a number")
        return value


def _each_once(names: list[Split]) -> list[Split]:
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ValueError(f"{name} is there twice; name each sublayer once")
    return names


class InputsConfig(Section):
    """What the model gets to see; fixed by pretraining and recorded in every checkpoint."""

    max_regions: int = Field(36, ge=0, le=1000, description="best regions used of each image; 0 for none")
    max_images: int = Field(4, ge=1, le=256, description="largest number of images in one record")
    times: bool = Field(False, description="embed the times of images that the annotations give, in seconds")
    tag_tokens: int = Field(20, ge=0, le=400, description="budget of word pieces for visual-concept tags; 0 for none")
    tag_score: float = Field(0.3, ge=0, le=1, description="classes and attributes below this score give no tag")
    text_tokens: int = Field(40, ge=1, le=400, description="longer texts are cut")
    tokenizer: Path | None = Field(None, description="a tokenizer.json; without one a WordPiece is trained")
    vocabulary: int = Field(8000, ge=10, le=10**6, description="size of the WordPiece that is trained")


class ModelConfig(Section):
    """Size and shape of the network."""

    layers: int = Field(12, ge=1, le=1000, description="Transformer blocks")
    width: int = Field(768, ge=8, le=10**5, description="of every row; a multiple of heads")
    heads: int = Field(12, ge=1, description="attention heads")
    inner_width: int = Field(3072, ge=8, le=10**6, description="inside the feed-forward sublayer")
    split: Annotated[list[Split], AfterValidator(_each_once)] = Field(
        ["qkv"], description="sublayers with one set of weights per modality"
    )
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
    """Share of examples of each pretraining objective."""

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


class DeepSpeedConfig(Section):
    """Training by DeepSpeed, on one device or many; without this section plain torch trains in one process."""

    stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="ZeRO: what is split over ranks. 1: optimiser state, 2: gradients too, 3: weights too, 0: nothing",
    )
    offload_optimizer: bool = Field(
        False, description="keep and update the optimiser state in CPU memory; from stage 1"
    )
    offload_parameters: bool = Field(
        False, description="keep weights in CPU memory too; stage 3 with offload_optimizer"
    )
    timeout: float = Field(1800, ge=1, description="seconds that ranks wait for one that does not answer")
    options: dict[str, Any] = Field(
        {}, description="more of DeepSpeed's own keys, such as {zero_optimization: {overlap_comm: false}}"
    )

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> "DeepSpeedConfig":
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer needs a split optimiser state; set stage 1, 2 or 3, or take it out")
        if self.offload_parameters and (self.stage < 3 or not self.offload_optimizer):
            raise ValueError("offload_parameters needs stage 3 and offload_optimizer; set both, or take it out")
        return self


class TrainingConfig(Section):
    """Optimisation, hardware and bookkeeping."""

    steps: int = Field(ge=1, le=10**9, description="optimiser steps")
    rows_per_step: int = Field(4096, ge=1, le=10**9, description="row budget of an optimiser step over all ranks")
    rows_per_micro_batch: int = Field(4096, ge=1, le=10**9, description="row budget of one forward")
    learning_rate: float = Field(1e-4, gt=0, description="highest, at the end of the warmup")
    muon_rate: float | None = Field(
        None, gt=0, description="highest rate of the encoder's matrices, which then go by Muon; none: AdamW for all"
    )
    head_multiplier: float = Field(1.0, gt=0, description="learning rate of heads over that of the rest")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="each block below the heads, and last the embeddings, learns so much slower"
    )
    freeze: FreezeConfig = FreezeConfig()
    warmup_steps: int = Field(0, ge=0, le=10**9, description="steps of linear rise to the learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="fall to 0 after the warmup, or none"
    )
    weight_decay: float = Field(0.01, ge=0, description="of matrices; biases, norms and vectors have none")
    beta2: float = Field(0.999, gt=0, lt=1, description="decay of AdamW's second moment")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: autocast over fp32 weights; with ZeRO 1 to 3 bf16 weights under fp32 masters"
    )
    checkpoint_activations: bool = Field(
        False, description="keep only the input of each block and compute the block again for its gradient"
    )
    compile: bool = Field(
        False, description="fuse what follows attention in each block by torch.compile; up to minutes at the start"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is one")
    threads: int = Field(0, ge=0, le=1024, description="torch threads; 0 leaves torch's own choice")
    workers: int = Field(0, ge=0, le=256, description="processes that build batches")
    check_reads: bool = Field(False, description="compare the regions of every image read with their checksum")
    deterministic: bool = Field(False, description="bit-equal runs on CUDA, at some cost")
    save_every: int = Field(1000, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="newest checkpoints kept, so that one may be damaged")
    log_every: int = Field(10, ge=1, description="steps between lines of log.jsonl")
    wandb: Literal["disabled", "offline", "online"] = Field("disabled", description="needs the wandb extra")
