"""Typed run configuration: YAML files and `section.key=value` overrides, strictly checked.

A file may begin with `include: [other.yaml]`; its own values take precedence. Every key is checked: an unknown one is
an error that suggests the nearest valid name. The keys of each task are in a
module of their own. Nothing here imports torch, so that mistakes are told at once.
"""

from collections.abc import Sequence
from pathlib import Path

from dimvl.config.answering import VqaConfig
from dimvl.config.captioning import CaptionConfig
from dimvl.config.decoding import DecodingOptions
from dimvl.config.pretraining import PretrainConfig
from dimvl.config.reading import merge, parse_overrides, read_run, read_yaml, validate
from dimvl.config.run import EvaluationOptions, RunConfig, ValidationConfig
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
    Variant,
)

__all__ = [
    "CONFIGS",
    "DecodingOptions",
    "DeepSpeedConfig",
    "EvaluationOptions",
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
    "Variant",
    "load_config",
    "merge",
    "parse_overrides",
    "read_yaml",
    "validate",
]

CONFIGS: dict[str, type[RunConfig]] = {"pretrain": PretrainConfig, "vqa": VqaConfig, "caption": CaptionConfig}
"""Value of `task` in a configuration -> its class. The first is the default."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the configuration of a run.

    Args:
        path: a YAML file; its key `task` selects the configuration class.
        overrides: `section.key=value`; these take precedence.

    Raises:
        UserError: any mistake in it.

    """
    return read_run(path, CONFIGS, overrides)
