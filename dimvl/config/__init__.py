"""Typed run configuration: YAML files and `section.key=value` overrides, strictly checked.

A file may begin with `include: [other.yaml]`; its own values take precedence. Every key is checked: an unknown one is
an error that suggests the nearest valid name. The keys of each task are in its package (`dimvl.tasks`). None of these
modules imports torch, so that mistakes are told at once.
"""

from dimvl.config.adapter import AdapterConfig, LoraConfig, PrefixConfig
from dimvl.config.decoding import DecodingOptions
from dimvl.config.reading import merge, parse_overrides, read_keys, read_run, read_yaml, validate
from dimvl.config.run import EvaluationOptions, RunConfig, ValidationConfig, check_exist
from dimvl.config.sections import (
    REGION_WORDS,
    TAGS,
    Concepts,
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
    Variant,
    rename_tag_keys,
)

__all__ = [
    "REGION_WORDS",
    "TAGS",
    "AdapterConfig",
    "Concepts",
    "DecodingOptions",
    "DeepSpeedConfig",
    "EvaluationOptions",
    "Files",
    "FilesOrNone",
    "FreezeConfig",
    "InputsConfig",
    "LoraConfig",
    "Match",
    "Missing",
    "ModelConfig",
    "Names",
    "PrefixConfig",
    "RunConfig",
    "Section",
    "Split",
    "TrainingConfig",
    "ValidationConfig",
    "Variant",
    "check_exist",
    "merge",
    "parse_overrides",
    "read_keys",
    "read_run",
    "read_yaml",
    "rename_tag_keys",
    "validate",
]
