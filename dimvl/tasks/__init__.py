"""Tasks: pretraining, question answering and captioning, each a package behind the interface `Task`."""

from typing import Any

from dimvl.config import RunConfig
from dimvl.data.processor import Processor
from dimvl.errors import UserError
from dimvl.tasks.answering import Answering
from dimvl.tasks.captioning import Captioning
from dimvl.tasks.pretraining import Pretraining
from dimvl.tasks.task import Ability, Task

__all__ = ["TASKS", "Ability", "Task", "abilities_of", "task_of", "task_of_model"]

TASKS: dict[str, Task[Any]] = {task.name: task for task in (Pretraining(), Answering(), Captioning())}
"""Value of `task` in a configuration -> task; the keys of its runs are in `dimvl.config.CONFIGS`."""


def task_of(config: RunConfig) -> Task[Any]:
    """Return the task of a configuration."""
    return TASKS[config.task].variant(config)


def task_of_model(processor: Processor) -> Task[Any]:
    """Return the task that a model was trained on; models saved before version 0.2 do not name it.

    Raises:
        UserError: the task is not defined.

    """
    if processor.task and processor.task not in TASKS:
        raise UserError(f"the model's task {processor.task!r} is not defined; import the module that adds it to TASKS")
    if processor.task:
        return TASKS[processor.task]
    return TASKS["vqa" if processor.answers else "pretrain" if processor.matches else "caption"]


def abilities_of(processor: Processor) -> dict[str, Ability]:
    """Return the abilities that a model was trained for, by verb."""
    every = {ability.verb: ability for task in TASKS.values() for ability in task.abilities}
    return {verb: ability for verb, ability in sorted(every.items()) if ability.available(processor)}
