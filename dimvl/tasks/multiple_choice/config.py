"""Configuration of multiple choice."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from dimvl.config.run import EvaluationOptions, RunConfig, ValidationConfig
from dimvl.config.sections import Files


class ChooseValidationConfig(ValidationConfig):
    """Validate by accuracy on other questions."""

    choices: Path = Field(description="VCR, A-OKVQA or JSON lines, with the right candidates")


class ChooseConfig(RunConfig):
    """Fine-tuning for multiple choice: the matching head judges each candidate, and one of them is right."""

    task_class = "dimvl.tasks.multiple_choice.task:MultipleChoice"
    task: Literal["choose"]
    choices: Files = Field(description="questions with candidates: VCR, A-OKVQA or JSON lines")
    shared_prefix: bool = Field(
        True,
        description="candidates attend to the image but not vice versa, so an image is encoded once for all of them",
    )
    validation: ChooseValidationConfig | None = None


class ChooseEvaluation(EvaluationOptions):
    """The file of questions with candidates."""

    choices: Path
