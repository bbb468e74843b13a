"""Configuration of pretraining."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dimvl.config.run import RunConfig, ValidationConfig
from dimvl.config.sections import Files, Names, Section
from dimvl.tasks.captioning.config import Seq2seqConfig


class SharesConfig(Section):
    """Share of the images that each objective gets."""

    masked_lm: float = Field(0.25, ge=0, description="masked language modelling; image and text attend to each other")
    seq2seq_lm: float = Field(0.25, ge=0, description="captions predicted from the image and the words so far")
    masked_object: float = Field(0.25, ge=0, description="masked region prediction")
    matching: float = Field(0.25, ge=0, description="image-text matching")
    contrastive: float = Field(0.0, ge=0, description="contrastive alignment, in groups of images")

    @model_validator(mode="after")
    def _some_share(self) -> "SharesConfig":
        if not sum(self.model_dump().values()):
            raise ValueError("all shares are 0; give at least one objective a share")
        return self


class WeightsConfig(Section):
    """Weight of each loss."""

    masked_lm: float = Field(1.0, description="cross entropy of masked words")
    seq2seq_lm: float = Field(1.0, description="cross entropy of caption words")
    object_class: float = Field(1.0, description="KL divergence from the detector's classes of masked regions")
    object_feature: float = Field(1.0, description="squared error of the features of masked regions")
    matching: float = Field(1.0, description="binary cross entropy of image-text matching")


class ContrastiveConfig(Section):
    """Contrastive alignment: images and texts, each encoded alone, find each other within a group."""

    group: int = Field(32, ge=2, le=2**14, description="images in a group; the draw depends on seed, epoch and image")
    width: int = Field(256, ge=1, le=2**14, description="dimensions of the shared space")
    global_weight: float = Field(1.0, ge=0, description="weight of the loss of whole images and texts")
    tokens_weight: float = Field(1.0, ge=0, description="weight of the loss of regions and words")

    @model_validator(mode="after")
    def _some_weight(self) -> "ContrastiveConfig":
        if not self.global_weight and not self.tokens_weight:
            raise ValueError("global_weight and tokens_weight are both 0, so nothing is aligned; raise one of them")
        return self


class HardNegativesConfig(Section):
    """Draw negatives from the images whose captions fit best by the embeddings of another model, which stays frozen."""

    model: Path = Field(description="a run or an export that was trained with contrastive alignment")
    among: int = Field(20, ge=1, le=10**4, description="number of best-fitting images to draw from")
    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of hard negatives among the negatives of matching, and among the other images of a group",
    )

    def check_group(self, group: int) -> None:
        """Refuse a share of the other images of a group that is more than there are to draw."""
        if (drawn := round(self.share * (group - 1))) > self.among:
            raise ValueError(
                f"hard_negatives.share {self.share:g} of the {group - 1} other images of a group is {drawn}, and "
                f"hard_negatives.among {self.among} are fewer; raise among to {drawn}, or lower share or "
                "contrastive.group"
            )


class ObjectivesConfig(Section):
    """The pretraining objectives."""

    shares: SharesConfig = SharesConfig()
    weights: WeightsConfig = WeightsConfig()
    text_share: float = Field(0.15, gt=0, le=1, description="share of text tokens masked")
    whole_words: bool = Field(False, description="mask all pieces of a word together")
    region_share: float = Field(0.15, gt=0, le=1, description="share of regions to predict")
    max_cover: float = Field(
        0.5, ge=0, le=1, description="maximum share of a target's area that a visible box may cover"
    )
    negative_share: float = Field(0.5, ge=0, le=1, description="share of mismatched pairs in matching")
    word_change_share: float = Field(
        0.0, ge=0, le=1, description="share of the mismatched texts that differ in one word only"
    )
    word_changes: Path | None = Field(None, description="JSON list of [old word, new word]")
    shared_prefix: bool = Field(
        False,
        description="matching: texts attend to the image but not vice versa, so an image is encoded once for its texts",
    )
    contrastive: ContrastiveConfig = ContrastiveConfig()

    def shares_of_examples(self) -> dict[str, float]:
        """Return the share of the examples of each objective; they need not sum to 1. A group is one example."""
        shares = self.shares.model_dump()
        return {**shares, "contrastive": shares["contrastive"] / self.contrastive.group}

    @model_validator(mode="after")
    def _word_changes_come_together(self) -> "ObjectivesConfig":
        if (self.word_changes is None) == (self.word_change_share > 0):
            raise ValueError("word_change_share and word_changes belong together; give both or neither")
        return self


class PretrainValidationConfig(ValidationConfig):
    """Validate every objective whose share is above 0, on all images, with the same masks each time."""

    captions: Path = Field(description="held-out captions in any format of annotations.md")
    split: Names = Field([], description="splits of a file in Karpathy's format, such as [val]")
    metric: Literal["loss", "matching"] = Field(
        "loss", description="score of the best checkpoint: the weighted sum of losses, or matching accuracy"
    )


class PretrainConfig(RunConfig):
    """Pretraining from captions."""

    command = "pretrain"
    task_class = "dimvl.tasks.pretraining.task:Pretraining"
    task: Literal["pretrain"] = "pretrain"
    captions: Files = Field(description="captions in any format of annotations.md")
    split: Names = Field([], description="splits of a file in Karpathy's format, such as [train, restval]")
    subset: int | None = Field(
        None, ge=1, description="number of images whose captions to train on, drawn by `seed`; null uses all"
    )
    objectives: ObjectivesConfig = ObjectivesConfig()
    seq2seq: Seq2seqConfig = Seq2seqConfig()
    hard_negatives: HardNegativesConfig | None = None
    validation: PretrainValidationConfig | None = None

    @model_validator(mode="after")
    def _matching_is_trained(self) -> "PretrainConfig":
        section = self.validation
        if section is not None and section.metric == "matching" and not self.objectives.shares.matching:
            raise ValueError("validation.metric is 'matching' but objectives.shares.matching is 0; set it to 'loss'")
        return self

    @model_validator(mode="after")
    def _negatives_are_drawn(self) -> "PretrainConfig":
        shares = self.objectives.shares
        if self.hard_negatives is not None and not shares.matching + shares.contrastive:
            raise ValueError(
                "hard_negatives need matching or contrastive alignment, whose shares are 0; remove hard_negatives, or "
                "raise objectives.shares.matching or objectives.shares.contrastive"
            )
        if self.hard_negatives is not None and shares.contrastive:
            self.hard_negatives.check_group(self.objectives.contrastive.group)
        return self
