"""Typed run configuration: YAML files, `section.key=value` overrides, strict.

A file may begin with `include: [other.yaml]`; what it says itself wins. Every key is checked: an unknown one is an
error that shows the nearest valid name.
"""

from dimvl.config.reading import load_config, merge, parse_overrides, read_yaml, validate
from dimvl.config.runs import (
    TASKS,
    AnyConfig,
    CaptionConfig,
    CaptionValidationConfig,
    DropWorstConfig,
    Files,
    FilesOrNone,
    Missing,
    Names,
    PretrainConfig,
    RunConfig,
    SelfCriticalConfig,
    ValidationConfig,
    VqaConfig,
    VqaValidationConfig,
)
from dimvl.config.sections import (
    FreezeConfig,
    InputsConfig,
    ModelConfig,
    ObjectivesConfig,
    Section,
    Seq2seqConfig,
    Share,
    SharesConfig,
    Split,
    TrainingConfig,
    Variant,
    WeightsConfig,
)

__all__ = [
    "TASKS",
    "AnyConfig",
    "CaptionConfig",
    "CaptionValidationConfig",
    "DropWorstConfig",
    "Files",
    "FilesOrNone",
    "FreezeConfig",
    "InputsConfig",
    "Missing",
    "ModelConfig",
    "Names",
    "ObjectivesConfig",
    "PretrainConfig",
    "RunConfig",
    "Section",
    "SelfCriticalConfig",
    "Seq2seqConfig",
    "Share",
    "SharesConfig",
    "Split",
    "TrainingConfig",
    "ValidationConfig",
    "Variant",
    "VqaConfig",
    "VqaValidationConfig",
    "WeightsConfig",
    "load_config",
    "merge",
    "parse_overrides",
    "read_yaml",
    "validate",
]
