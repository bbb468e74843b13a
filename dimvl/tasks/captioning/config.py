"""Configuration of captioning and of the sequence-to-sequence language model, which pretraining also uses."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dimvl.config.decoding import DecodingOptions
from dimvl.config.run import EvaluationOptions, RunConfig, ValidationConfig
from dimvl.config.sections import Files, Names, Section, Variant


class Seq2seqConfig(Section):
    """The sequence-to-sequence language model."""

    variant: Variant = Field(
        "causal", description="causal: every position predicts the next word; masked: masked words as in VLP and UniLM"
    )
    share: float = Field(0.5, gt=0, le=1, description="masked variant: share of tokens predicted")
    captions: int = Field(
        5, ge=1, description="maximum number of captions of an image used at a time, here and in other objectives"
    )


class CaptionValidationConfig(ValidationConfig):
    """Validate on captions of other images."""

    captions: Path = Field(description="captions in any format of annotations.md")
    split: Names = Field([], description="splits of a file in Karpathy's format, such as [val]")
    metric: Literal["cider", "loss"] = Field(
        "cider",
        description="cider: CIDEr-D of greedy captions, on words split at spaces, not official tokens; loss: per word",
    )


class DropWorstConfig(Section):
    """Ignore the captions with the highest loss."""

    share: float = Field(0.2, gt=0, lt=1, description="share of the captions of each prefix, rounded down")
    after: int = Field(ge=0, description="number of epochs before captions are dropped")

    def count(self, captions: int) -> int:
        """Return how many captions of a prefix are dropped."""
        return int(self.share * captions + 1e-9)  # .29 * 100 is a little less than 29


JudgedBy = Literal["matching", "contrastive"]


class RetrievalReward(Section):
    """How much a drawn caption is rewarded for finding its own image among others."""

    weight: float = Field(gt=0, description="weight of this reward; that of CIDEr-D is 1")
    among: int = Field(
        4,
        ge=1,
        le=1000,
        description="number of images to choose from, including its own; 1: only how well the caption fits it",
    )
    by: JudgedBy = Field(
        "matching", description="matching: the matching head; contrastive: embeddings, for a judge that aligns"
    )

    @model_validator(mode="after")
    def _one_image_tells_nothing_by_embeddings(self) -> "RetrievalReward":
        if self.by == "contrastive" and self.among < 2:
            raise ValueError("by 'contrastive' compares an image with others, but among is 1; set among to 2 or more")
        return self


class RetrievalConfig(RetrievalReward):
    """Also reward a sampled caption for finding its own image among others, by the scores of a pretrained model."""

    judge: Path = Field(
        description="a run or an export with a trained matching head (by: matching) or trained alignment "
        "(by: contrastive); stays frozen"
    )


class SelfCriticalConfig(Section):
    """Self-critical training: sampled captions are rewarded by CIDEr-D, relative to the others of the image."""

    samples: int = Field(5, ge=2, description="captions sampled per image")
    retrieval: RetrievalConfig | None = None


class CaptionConfig(RunConfig):
    """Fine-tuning for captioning."""

    task_class = "dimvl.tasks.captioning.task:Captioning"
    task: Literal["caption"]
    captions: Files = Field(description="captions in any format of annotations.md")
    split: Names = Field([], description="splits of a file in Karpathy's format, such as [train, restval]")
    subset: int | None = Field(
        None, ge=1, description="number of images whose captions to train on, drawn by `seed`; null uses all"
    )
    seq2seq: Seq2seqConfig = Seq2seqConfig()
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    drop_worst: DropWorstConfig | None = None
    self_critical: SelfCriticalConfig | None = None
    validation: CaptionValidationConfig | None = None

    @model_validator(mode="after")
    def _options_fit(self) -> "CaptionConfig":
        if self.drop_worst is not None and self.drop_worst.count(self.seq2seq.captions) == 0:
            raise ValueError(
                f"drop_worst.share {self.drop_worst.share} of seq2seq.captions {self.seq2seq.captions} is less than "
                "one caption, so nothing would be dropped; raise one of them"
            )
        if self.self_critical is not None:
            if self.initial is None:
                raise ValueError("self_critical needs a model that captions; name its run as initial")
            if self.smoothing or self.drop_worst is not None:
                raise ValueError("self_critical has no target words; remove smoothing and drop_worst")
            if self.model.dropout:
                raise ValueError(
                    f"model.dropout is {self.model.dropout}, but self_critical must train the function that it draws "
                    "captions from; set model.dropout to 0"
                )
            if self.adapter is not None and self.adapter.lora is not None and self.adapter.lora.dropout:
                raise ValueError(
                    f"adapter.lora.dropout is {self.adapter.lora.dropout}, but self_critical must train the function "
                    "that it draws captions from; set it to 0"
                )
            if self.seq2seq.variant == "masked":
                raise ValueError("self_critical needs seq2seq.variant 'causal'; pretrain and fine-tune with it")
        return self


class CaptionEvaluation(EvaluationOptions, DecodingOptions):
    """A caption file whose images are captioned, and the decoding."""

    captions: Path
    split: Names = Field([])
    worlds: Path | None = None

    @property
    def decoding(self) -> DecodingOptions:
        """How captions are decoded."""
        return DecodingOptions(**self.model_dump(include=set(DecodingOptions.model_fields), exclude_unset=True))
