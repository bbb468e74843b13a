"""Configuration of classification."""

from pathlib import Path
from typing import Literal

from pydantic import Field

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
        False, description="any number of labels fit an item (sigmoid); otherwise exactly one does (softmax)"
    )
    shared_prefix: bool = Field(
        False, description="texts see the image but not the reverse, so an image is computed once for its texts"
    )
    validation: ClassifyValidationConfig | None = None


class ClassifyEvaluation(EvaluationOptions):
    """The items to classify, and the choices of GQA for its scores `validity` and `plausibility`."""

    items: Path
    choices: Path | None = None
