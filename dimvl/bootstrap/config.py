"""Configuration of `dimvl bootstrap`. Imports no torch, so that mistakes are told at once."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dimvl.config import Files, Match, Missing, Names, Section, check_exist
from dimvl.files import existing_folder


class SamplingConfig(Section):
    """How synthetic captions are written: by nucleus sampling, with random numbers set by seed and image."""

    captions: int = Field(1, ge=1, le=100, description="captions written for each image; duplicates count once")
    nucleus: float = Field(
        0.9,
        gt=0,
        le=1,
        description="top-p: each word is drawn from the fewest most probable words whose probabilities reach this sum",
    )
    max_tokens: int | None = Field(
        None, ge=1, description="longest caption with its final [SEP]; null: as long as the captioner was trained for"
    )


class KeepConfig(Section):
    """Keep fewer or more texts than the filter calls a match, by another threshold on its score."""

    precision: float = Field(gt=0, le=1, description="minimum share of matches among the kept texts of the sample")
    sample: Path = Field(
        description="JSON lines of `image`, `caption` and `label`: true if the caption fits the image; web texts "
        "judged by people, their images named as in `captions`"
    )


class BootstrapConfig(Section):
    """What `dimvl bootstrap` does."""

    output: Path = Field(description="folder to write or to continue")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the synthetic captions")
    regions: Files = Field(description="region store, or a list of stores of one extractor to use as one")
    captions: Files = Field(description="captions to filter in any format of annotations.md, each about one image")
    split: Names = Field([], description="splits of a file in Karpathy's format, such as [train, restval]")
    missing: Missing = Field(
        "error",
        description="images missing from the store: error stops; skip drops their captions and reports how many",
    )
    match: Match = Field(
        "auto", description="rule by which images are found in the store, see annotations.md; auto: the one that fits"
    )
    captioner: Path | None = Field(
        None, description="a run or an export of a captioning model; null writes no captions and only filters"
    )
    filter: Path = Field(description="a run or an export with a matching head, or with alignment for that score")
    score: Literal["matching", "alignment"] = Field(
        "matching",
        description="matching: probability of the filter's matching head; alignment: (1 + cosine) / 2 of the image and "
        "the text, which has no decision of its own, so it needs keep",
    )
    allow_trained: bool = Field(False, description="accept a filter that was trained on these captions or images")
    sampling: SamplingConfig = SamplingConfig()
    keep: KeepConfig | None = Field(
        None, description="how many texts are kept; null: those that the filter calls a match, probability 0.5 or more"
    )
    images: Path | None = Field(None, description="folder of the images, to be shown on the page; null shows none")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if available, else the CPU")

    @model_validator(mode="after")
    def _sampling_has_a_captioner(self) -> "BootstrapConfig":
        if self.captioner is None and "sampling" in self.model_fields_set:
            raise ValueError("sampling is of the captioner, and there is none; give captioner, or remove sampling")
        return self

    @model_validator(mode="after")
    def _alignment_has_a_threshold(self) -> "BootstrapConfig":
        if self.score == "alignment" and self.keep is None:
            raise ValueError(
                "score is alignment, which has no threshold of its own; give keep.precision and keep.sample, or "
                "score=matching"
            )
        return self

    def check_inputs(self) -> None:
        """Check that the files and folders to read exist.

        Raises:
            UserError: one or more do not, or `images` is not a folder.

        """
        named = [("regions", self.regions), ("captions", self.captions), ("filter", [self.filter])]
        optional = {"captioner": self.captioner, "images": self.images}
        optional |= {"keep.sample": None if self.keep is None else self.keep.sample}
        named += [(key, [path]) for key, path in optional.items() if path is not None]
        check_exist((key, file) for key, files in named for file in files)
        if self.images is not None:
            existing_folder(self.images)
