"""Configuration of visual question answering."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dimvl.config.run import EvaluationOptions, RunConfig, ValidationConfig
from dimvl.config.sections import Files, FilesOrNone
from dimvl.tasks.answering.statements import read_statements


def _number_or_file(value: Any) -> Any:
    if not isinstance(value, int | str | Path):
        raise ValueError("give a number of answers or a JSON file that lists them")
    if isinstance(value, int) and value < 2:
        raise ValueError("keep at least 2 answers")
    return value


class VqaValidationConfig(ValidationConfig):
    """Validate by the official accuracy on other questions."""

    questions: Path = Field(description="VQA v2 questions, or JSON lines with their answers")
    annotations: Path | None = Field(None, description="VQA v2 annotations; null if the questions have their answers")


class VqaConfig(RunConfig):
    """Fine-tuning for visual question answering."""

    task_class = "dimvl.tasks.answering.task:Answering"
    task: Literal["vqa"]
    questions: Files = Field(description="VQA v2 questions, or JSON lines with their answers")
    annotations: FilesOrNone = Field(
        [], description="VQA v2 annotations of each question file; null for a file with its own answers"
    )
    answers: Annotated[int | Path, BeforeValidator(_number_or_file)] = Field(
        3129, description="number of most frequent training answers to keep, or a JSON file that lists the answers"
    )
    subset: int | None = Field(
        None, ge=1, description="number of questions to train on, drawn by `seed`; null uses all"
    )
    shared_prefix: bool = Field(
        False,
        description="questions attend to the image but not vice versa, so an image is encoded once for its questions",
    )
    validation: VqaValidationConfig | None = None

    @model_validator(mode="after")
    def _annotations_fit(self) -> "VqaConfig":
        if self.annotations and len(self.annotations) != len(self.questions):
            raise ValueError(
                f"annotations names {len(self.annotations)} files and questions {len(self.questions)}; give one per "
                "question file, or null where it has its own answers"
            )
        return self


class VqaEvaluation(EvaluationOptions):
    """The question file to answer, its annotations if they are published, and the rules of a zero-shot evaluation."""

    questions: Path
    annotations: Path | None = None
    statements: Path | None = None

    def settings(self) -> dict[str, Any]:
        """Return the options other than files, and the rules of a zero-shot evaluation."""
        rules = {} if self.statements is None else {"zero_shot": read_statements(self.statements).values}
        return super().settings() | rules
