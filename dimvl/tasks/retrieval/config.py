"""Configuration of retrieval."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dimvl.config.run import EvaluationOptions, RunConfig, ValidationConfig
from dimvl.config.sections import Files, Names
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.pretraining.config import ContrastiveConfig, HardNegativesConfig, ObjectivesConfig, SharesConfig

Score = Literal["global", "tokens"]


class RetrieveValidationConfig(ValidationConfig):
    """Validate by recall on other images, by embeddings alone."""

    captions: Path = Field(description="captions in any format of annotations.md")
    split: Names = Field([], description="splits of a file in Karpathy's format, such as [val]")
    score: Score = Field("global", description="global: whole images and texts; tokens: regions and words")


class RetrieveConfig(RunConfig):
    """Fine-tuning for retrieval: contrastive alignment, and matching for a second stage that re-ranks."""

    task_class = "dimvl.tasks.retrieval.task:Retrieval"
    task: Literal["retrieve"]
    captions: Files = Field(description="captions in any format of annotations.md")
    split: Names = Field([], description="splits of a file in Karpathy's format, such as [train, restval]")
    subset: int | None = Field(
        None, ge=1, description="number of images whose captions to train on, drawn by `seed`; null uses all"
    )
    matching_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the images on which matching is trained; the others are in contrastive groups",
    )
    negative_share: float = Field(0.5, ge=0, le=1, description="share of mismatched pairs in matching")
    shared_prefix: bool = Field(
        True,
        description="matching: texts attend to the image but not vice versa, so an image is encoded once for its texts",
    )
    captions_per_image: int = Field(5, ge=1, description="maximum number of captions of an image used at a time")
    contrastive: ContrastiveConfig = ContrastiveConfig()
    hard_negatives: HardNegativesConfig | None = None
    validation: RetrieveValidationConfig | None = None

    @model_validator(mode="after")
    def _validated_by_what_is_trained(self) -> "RetrieveConfig":
        if self.validation is not None and not getattr(self.contrastive, f"{self.validation.score}_weight"):
            raise ValueError(
                f"validation.score is {self.validation.score}, but contrastive.{self.validation.score}_weight is 0, so "
                "it is not trained; set validation.score to the other one"
            )
        return self

    @model_validator(mode="after")
    def _negatives_are_drawn(self) -> "RetrieveConfig":
        if self.hard_negatives is not None:
            self.hard_negatives.check_group(self.contrastive.group)
        return self

    @property
    def objectives(self) -> ObjectivesConfig:
        """The objectives of pretraining that this is."""
        shares = dict.fromkeys(SharesConfig.model_fields, 0.0)
        shares |= {"matching": self.matching_share, "contrastive": 1 - self.matching_share}
        return ObjectivesConfig(
            shares=SharesConfig(**shares),
            negative_share=self.negative_share,
            shared_prefix=self.shared_prefix,
            contrastive=self.contrastive,
        )

    @property
    def seq2seq(self) -> Seq2seqConfig:
        """How many captions of an image are used at a time, as in pretraining."""
        return Seq2seqConfig(captions=self.captions_per_image)


class RetrievalEvaluation(EvaluationOptions):
    """The caption file to search in, and how.

    Attributes:
        captions: the images to search and the texts of each.
        split: splits of a file in Karpathy's format.
        together: all texts of an image are one query, as the sentences of a description; their scores are added.
        score: of the embeddings.
        candidates: how many of the best by embedding the matching head ranks again; 0 for none.
        extra_positives: also score with the further right answers that people found among COCO's test images.

    """

    captions: Path
    split: Names = Field([])
    together: bool = False
    score: Score = "global"
    candidates: int = Field(16, ge=0, le=10**6)
    extra_positives: bool = False

    @model_validator(mode="after")
    def _positives_are_single(self) -> "RetrievalEvaluation":
        if self.together and self.extra_positives:
            raise ValueError("extra_positives works for single captions only, not for together; omit one of them")
        return self
