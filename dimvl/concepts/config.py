"""Configuration of `dimvl concepts`. Imports no torch, so that mistakes are told at once."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from dimvl.config import Files, Match, Missing, Names, Section, check_exist
from dimvl.regions.naming.settings import Pooling


class ConceptTrainingConfig(Section):
    """Optimisation."""

    pooling: Pooling = Field(
        "log_mean_exp",
        description="how the scores of the regions give an image's probability of a word: noisy_or: that some region "
        "shows it; mean: their mean logit; attention: the same, weighted by learned attention; max: the best region; "
        "log_mean_exp: a soft maximum",
    )
    hidden: int = Field(512, ge=0, lt=2**16, description="width of the hidden layer; 0 for none")
    epochs: int = Field(6, ge=1, le=10_000, description="times that each image is seen")
    images_per_step: int = Field(64, ge=1, le=10**6, description="images in an optimiser step")
    learning_rate: float = Field(1e-3, gt=0, description="initial learning rate of AdamW, then cosine decay")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of matrices")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout on the features")
    folds: int = Field(
        0,
        ge=0,
        le=100,
        description="additional models, each trained without one fold of the images, to name that fold; 0: none",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if available, else the CPU")

    @field_validator("folds")
    @classmethod
    def _several_folds(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one fold leaves no image to train on; give 0 or at least 2")
        return value


class ConceptValidationConfig(Section):
    """Measure average precision on captions of other images."""

    captions: Files = Field(description="captions in any format of annotations.md")
    split: Names = Field([], description="splits of a file in Karpathy's format, such as [val]")
    regions: Files | None = Field(None, description="region store of these images; null uses that of training")
    replicates: int = Field(300, ge=0, le=10**6, description="bootstrap samples of images for the intervals")


class ConceptConfig(Section):
    """What `dimvl concepts` does."""

    output: Path = Field(description="folder to write")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of everything random")
    regions: Files = Field(description="region store, or a list of stores of one extractor to use as one")
    captions: Files = Field(description="captions in any format of annotations.md")
    split: Names = Field([], description="splits of a file in Karpathy's format, such as [train, restval]")
    missing: Missing = Field(
        "error",
        description="images missing from the store: error stops; skip drops their captions and logs how many",
    )
    match: Match = Field(
        "auto", description="rule by which images are found in the store, see annotations.md; auto: the one that fits"
    )
    words: int = Field(1000, ge=1, le=20_000, description="number of the most frequent content words to learn")
    training: ConceptTrainingConfig = ConceptTrainingConfig()
    validation: ConceptValidationConfig | None = None

    def check_inputs(self) -> None:
        """Check that the files and folders to read exist.

        Raises:
            UserError: one or more do not.

        """
        named = [("regions", self.regions), ("captions", self.captions)]
        if self.validation is not None:
            named += [("validation.captions", self.validation.captions)]
            named += [("validation.regions", self.validation.regions or [])]
        check_exist((key, file) for key, files in named for file in files)
