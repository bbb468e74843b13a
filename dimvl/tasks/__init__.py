"""Tasks: pretraining, question answering, captioning and others, each a package behind the interface `Task`.

The configuration of a run is read and checked without torch; what trains and applies a task is imported on use.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dimvl.config import RunConfig, read_run
from dimvl.errors import UserError
from dimvl.tasks.answering.config import VqaConfig
from dimvl.tasks.captioning.config import CaptionConfig
from dimvl.tasks.classification.config import ClassifyConfig
from dimvl.tasks.grounding.config import GroundConfig
from dimvl.tasks.multiple_choice.config import ChooseConfig
from dimvl.tasks.pretraining.config import PretrainConfig
from dimvl.tasks.retrieval.config import RetrieveConfig

if TYPE_CHECKING:
    from dimvl.data.processor import Processor
    from dimvl.tasks.task import Ability, Task

__all__ = ["CONFIGS", "abilities_of", "all_tasks", "load_config", "task_of", "task_of_model"]

CONFIGS: dict[str, type[RunConfig]] = {
    "pretrain": PretrainConfig,
    "vqa": VqaConfig,
    "caption": CaptionConfig,
    "retrieve": RetrieveConfig,
    "choose": ChooseConfig,
    "ground": GroundConfig,
    "classify": ClassifyConfig,
}
"""The table of tasks: value of `task` in a configuration -> its class, which names that of the task (`task_class`).

The first is the default.
"""


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the configuration of a run.

    Args:
        path: a YAML file; its key `task` selects the configuration class.
        overrides: `section.key=value`; these take precedence.

    Raises:
        UserError: any mistake in it.

    """
    return read_run(path, CONFIGS, overrides)


def all_tasks() -> dict[str, "Task[Any]"]:
    """Return the tasks by name."""
    return {name: _task(kind) for name, kind in CONFIGS.items()}


def task_of(config: RunConfig) -> "Task[Any]":
    """Return the task of a configuration."""
    return _task(type(config)).variant(config)


def task_of_model(processor: "Processor") -> "Task[Any]":
    """Return the task that a model was trained on; models saved before version 0.2 do not name it.

    Raises:
        UserError: the task is not defined.

    """
    name = processor.task or ("vqa" if processor.answers else "pretrain" if processor.matches else "caption")
    if name not in CONFIGS:
        raise UserError(f"the model's task {name!r} is not defined; import the module that adds it to CONFIGS")
    return _task(CONFIGS[name])


def abilities_of(processor: "Processor") -> dict[str, "Ability"]:
    """Return the abilities that a model was trained for, by verb."""
    every = {ability.verb: ability for task in all_tasks().values() for ability in task.abilities}
    return {verb: ability for verb, ability in sorted(every.items()) if ability.available(processor)}


def _task(kind: type[RunConfig]) -> "Task[Any]":
    """Return the task of a configuration class."""
    module, _, name = kind.task_class.partition(":")
    task: Task[Any] = getattr(import_module(module), name)()
    return task
