"""Typed run configuration: YAML files and `section.key=value` overrides, strictly checked.

A file may begin with `include: [other.yaml]`; its own values take precedence. Every key is checked: an unknown one is
an error that suggests the nearest valid name. The keys of a task, and `load_config`, are in `dimvl/tasks/`.
"""

from dimvl.config.reading import merge, parse_overrides, read_run, read_yaml, validate
from dimvl.config.run import RunConfig, ValidationConfig
from dimvl.config.sections import (
    DeepSpeedConfig,
    Files,
    FilesOrNone,
    FreezeConfig,
    InputsConfig,
    Match,
    Missing,
    ModelConfig,
    Names,
    Section,
    Split,
    TrainingConfig,
)

__all__ = [
    "DeepSpeedConfig",
    "Files",
    "FilesOrNone",
    "FreezeConfig",
    "InputsConfig",
    "Match",
    "Missing",
    "ModelConfig",
    "Names",
    "RunConfig",
    "Section",
    "Split",
    "TrainingConfig",
    "ValidationConfig",
    "merge",
    "parse_overrides",
    "read_run",
    "read_yaml",
    "validate",
]
