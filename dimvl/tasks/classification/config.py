"""Configuration of classification."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dimvl.config.run import EvaluationOptions, RunConfig, ValidationConfig
from dimvl.config.sections import Files


class ClassifyValidationConfig(ValidationConfig):
    """Validate by the accuracy on other items, or by F1 with `several_labels`."""

    items: Path = Field(description="labelled items in any format of annotations.md")


class ClassifyConfig(RunConfig):
    """Fine-tuning for classification: visual reasoning over several images, entailment, classes of images."""

    task_class = "dimvl.tasks.classification.task:Classification"
    task: Literal["classify"]
    items: Files = Field(description="labelled items in any format of annotations.md")
    labels: Path | None = Field(
        None, description="JSON file that lists the labels in their order; null takes those of the items, sorted"
    )
    several_labels: bool = Field(
        False, description="any number of labels may fit an item (sigmoid); otherwise exactly one does (softmax)"
    )
    shared_prefix: bool = Field(
        False, description="texts attend to the image but not vice versa, so an image is encoded once for its texts"
    )
    by_names: bool = Field(
        False,
        description="compare images with the names of the labels behind the soft rows of adapter.prompt (CoOp), by the "
        "alignment of the base; for items without texts",
    )
    validation: ClassifyValidationConfig | None = None

    @property
    def soft_rows(self) -> int:
        """None by names, before which the soft rows are."""
        return 0 if self.by_names else super().soft_rows

    @model_validator(mode="after")
    def _names_have_a_prompt(self) -> "ClassifyConfig":
        if self.by_names and (self.adapter is None or self.adapter.prompt is None):
            raise ValueError("by_names trains soft rows before the names of labels; set adapter.prompt, such as 16")
        if self.by_names and self.several_labels:
            raise ValueError("by_names chooses one label by softmax and several_labels any number; remove one of them")
        return self


class ClassifyEvaluation(EvaluationOptions):
    """The items to classify, and the choices of GQA for its scores `validity` and `plausibility`."""

    items: Path
    choices: Path | None = None
