"""What the configuration of every run has, whatever its task; a task adds its own keys in its package."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from dimvl.config.adapter import AdapterConfig
from dimvl.config.sections import (
    DeepSpeedConfig,
    Files,
    FreezeConfig,
    InputsConfig,
    Match,
    Missing,
    ModelConfig,
    Section,
    TrainingConfig,
)
from dimvl.errors import UserError


class ValidationConfig(Section):
    """Validate on other data during training: the best checkpoint is kept, and training may stop early."""

    every: int = Field(ge=1, description="steps between validations; the last step is always validated")
    patience: int = Field(0, ge=0, description="stop after this many validations without improvement; 0 never stops")
    subset: int | None = Field(None, ge=1, description="number of questions or images to draw; null uses all")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of that draw")
    regions: Files | None = Field(None, description="region store of these images; null uses that of training")


WRITTEN = {"output", "cache"}
"""Keys of paths that a run writes; it reads all others."""


class RunConfig(Section):
    """Keys that every run has."""

    command: ClassVar[str] = "finetune"  # of `dimvl`, which trains it
    task_class: ClassVar[str]  # module:class of its `Task`, imported on use since it needs torch
    task: str
    output: Path = Field(description="folder of the run")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of everything random")
    regions: Files = Field(description="region store, or a list of stores of one detector to use as one")
    missing: Missing = Field(
        "error",
        description="images missing from the store: error stops; skip drops their texts and logs how many",
    )
    match: Match = Field(
        "auto", description="rule by which images are found in the store, see annotations.md; auto: the one that fits"
    )
    cache: Path | None = Field(None, description="folder of tokenised texts; null puts it inside the run")
    initial: Path | None = Field(None, description="a run or an export to start from; null starts from scratch")
    new_extractor: bool = Field(
        False,
        description="accept regions of another extractor than initial's; the region projection is newly initialised",
    )
    inputs: InputsConfig = InputsConfig()
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig | None = None
    training: TrainingConfig
    deepspeed: DeepSpeedConfig | None = None
    validation: ValidationConfig | None = None

    @property
    def soft_rows(self) -> int:
        """Soft rows at the end of each context, by `adapter.prompt`."""
        return 0 if self.adapter is None else self.adapter.prompt or 0

    @property
    def texts_folder(self) -> Path:
        """Folder of the tokenised texts."""
        return self.cache or self.output / "texts"

    @property
    def inputs_read(self) -> list[tuple[str, Path]]:
        """Keys and paths of the files and folders to read; a run that resumes needs fewer, and none are returned."""
        if (self.output / "run.json").exists():
            return []
        return self.paths()

    def paths(self) -> list[tuple[str, Path]]:
        """Return keys and paths of all files and folders to read."""
        return [(key, path) for key, path in _paths(self) if key not in WRITTEN]

    def check_inputs(self) -> None:
        """Check that the files and folders to read exist, as `check_exist`."""
        check_exist(self.inputs_read)

    @model_validator(mode="after")
    def _muon_has_whole_matrices(self) -> "RunConfig":
        if self.deepspeed is not None and self.deepspeed.stage and self.training.muon_rate is not None:
            raise ValueError(
                f"training.muon_rate needs whole matrices, and deepspeed.stage {self.deepspeed.stage} splits them; "
                "remove muon_rate, or set deepspeed.stage to 0"
            )
        return self

    @model_validator(mode="after")
    def _compiled_blocks_have_their_weights(self) -> "RunConfig":
        if self.deepspeed is not None and self.deepspeed.stage == 3 and self.training.compile:
            raise ValueError(
                "training.compile does not work with the weights that deepspeed.stage 3 gathers; remove "
                "training.compile, or set deepspeed.stage to 2"
            )
        return self

    @model_validator(mode="after")
    def _one_start(self) -> "RunConfig":
        if self.initial is not None and self.model.bert is not None:
            raise ValueError(
                "initial and model.bert both give the first weights; set model.bert=null to start from initial, or "
                "initial=null to start from BERT"
            )
        if self.new_extractor and self.initial is None:
            raise ValueError("new_extractor is about the extractor of initial; name that model, or remove it")
        return self

    @model_validator(mode="after")
    def _new_projection_is_trained(self) -> "RunConfig":
        if self.training.freeze.embeddings and (self.new_extractor or self.initial is None):
            new = "new_extractor" if self.new_extractor else "a run without `initial`"
            raise ValueError(
                f"{new} initialises the region projection, and training.freeze.embeddings keeps it from learning; "
                "freeze.words freezes the words alone"
            )
        return self

    @model_validator(mode="after")
    def _adapter_leaves_the_base_as_it_is(self) -> "RunConfig":
        if self.adapter is None:
            return self
        if self.initial is None:
            raise ValueError("adapter needs a base; set initial to a run or an export, or remove adapter")
        if self.new_extractor:
            raise ValueError(
                "new_extractor initialises the region projection again and adapter keeps it from learning; remove one "
                "of them"
            )
        if self.training.freeze != FreezeConfig():
            raise ValueError("adapter says what is trained, so training.freeze has no effect; remove one of them")
        if not self.adapter.head and self.training.head_multiplier != 1:
            raise ValueError(
                "training.head_multiplier is for heads, which adapter.head=false keeps as they are; remove one of them"
            )
        if self.training.muon_rate is not None and self.adapter.layers is None:
            raise ValueError(
                f"training.muon_rate is for the encoder's own matrices, of which adapter.{self.adapter.kind} trains "
                "none; remove muon_rate"
            )
        if self.training.layer_decay != 1 and self.adapter.lora is None and self.adapter.layers is None:
            raise ValueError(
                f"training.layer_decay is for blocks, of which adapter.{self.adapter.kind} trains none; remove it"
            )
        if self.adapter.lora is not None:
            self.adapter.lora.check_split(self.model.split)
        return self


class EvaluationOptions(Section):
    """Options of an evaluation; a task adds its annotation files and settings."""

    missing: Missing = "error"
    match: Match = "auto"

    def files(self) -> dict[str, Path]:
        """Return the annotation files, by name."""
        return {name: value for name, value in self if isinstance(value, Path)}

    def settings(self) -> dict[str, Any]:
        """Return the options other than files, which the predictions depend on."""
        return {name: value for name, value in self if not isinstance(value, Path | None)}


def check_exist(paths: Iterable[tuple[str, Path]], made: Iterable[Path] = (), place: str = "") -> None:
    """Check that files and folders, with their keys, exist, but for those in folders that will be `made` first.

    Raises:
        UserError: one or more do not; it begins with `place`.

    """
    folders = [Path(os.path.abspath(folder)) for folder in made]
    absent = [
        f"{path} does not exist ({key})"
        for key, path in paths
        if not path.exists() and not any(Path(os.path.abspath(path)).is_relative_to(folder) for folder in folders)
    ]
    if absent:
        raise UserError(f"{place}{', '.join(absent)}; correct the path, relative to the current folder {Path.cwd()}")


def _paths(section: Section, place: str = "") -> Iterator[tuple[str, Path]]:
    for name, value in section:
        if isinstance(value, Section):
            yield from _paths(value, f"{place}{name}.")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Path):
                yield f"{place}{name}", item
