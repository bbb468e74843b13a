"""Configuration of grounding."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dimvl.config.run import EvaluationOptions, RunConfig, ValidationConfig
from dimvl.config.sections import Files, FilesOrNone, Names

IMAGES = "COCO's instances.json for RefCOCO; a list of image ids for Flickr30k Entities"


class GroundValidationConfig(ValidationConfig):
    """Validate by accuracy on other phrases."""

    phrases: Path = Field(description="phrases in any format of annotations.md")
    images: Path | None = Field(None, description=f"{IMAGES}; null if the phrases need none")
    split: Names = Field([], description="splits of a file that has some, such as [val]")


class GroundConfig(RunConfig):
    """Fine-tuning to find the region that a phrase refers to."""

    task_class = "dimvl.tasks.grounding.task:Grounding"
    task: Literal["ground"]
    phrases: Files = Field(description="phrases in any format of annotations.md")
    images: FilesOrNone = Field([], description=f"for each file of phrases: {IMAGES}; null for a file that needs none")
    split: Names = Field([], description="splits of files that have some, such as [train]")
    subset: int | None = Field(
        None, ge=1, description="number of phrases to train on, drawn by `seed`; null uses all that a region covers"
    )
    no_region: bool = Field(False, description="some phrases have no box: 'no region' becomes a class of its own")
    shared_prefix: bool = Field(
        False, description="phrases attend to the image but not vice versa, so an image is encoded once for its phrases"
    )
    validation: GroundValidationConfig | None = None

    @model_validator(mode="after")
    def _images_fit(self) -> "GroundConfig":
        if self.images and len(self.images) != len(self.phrases):
            raise ValueError(
                f"images names {len(self.images)} files and phrases {len(self.phrases)}; give one per file of phrases, "
                "or null where it needs none"
            )
        return self


class GroundEvaluation(EvaluationOptions):
    """The phrases to find, and what belongs to their file."""

    phrases: Path
    images: Path | None = None
    split: Names = Field([])
