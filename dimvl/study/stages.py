"""The grid of a study as stages: one command each, with those that must end before it.

A stage is known by the folder that it writes. Settings with the same command share the stage, which runs once: a
pretraining that names only `{seed}` is one for all settings.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from dimvl.config.run import check_exist
from dimvl.errors import UserError
from dimvl.metrics.evaluations import SCORES
from dimvl.study.config import StudyConfig, Value, Values
from dimvl.tasks import load_config

COMMANDS = ("pretrain", "finetune", "evaluate")
READ = ("--regions", "--questions", "--annotations", "--statements", "--captions", "--worlds")
"""Options of an evaluation that are files or folders."""
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_DEEPEST = 20


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command.

    Attributes:
        name: the folder that it writes, inside that of the study.
        template: its name in the configuration.
        words: arguments of `dimvl`.
        after: names of the stages that must end before it.
        output: folder that it writes.
        steps: optimiser steps; 0 for an evaluation.
        rows: rows of all its steps.
        settings: the whole configuration of a training, as JSON.
        inputs: key or option, and path, of what it reads.

    """

    name: str
    template: str
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    output: Path
    steps: int = 0
    rows: int = 0
    settings: str = ""
    inputs: tuple[tuple[str, Path], ...] = ()

    @property
    def work(self) -> int:
        """What its time is proportional to, among stages of its template."""
        return self.rows or 1

    @property
    def result(self) -> Path:
        """What is there once it has ended."""
        return self.output if self.steps else self.output / SCORES

    @property
    def command(self) -> str:
        """As it is typed."""
        return shlex.join(["dimvl", *self.words])


class Cell(NamedTuple):
    """One setting at one point with one seed; `evaluations` are its stages with scores, by the name of the template."""

    setting: str
    x: Value | None
    seed: int
    evaluations: Mapping[str, str]


class Grid(NamedTuple):
    """All of a study; a stage comes after those that it needs."""

    stages: Mapping[str, Stage]
    cells: Sequence[Cell]

    def check_inputs(self, ended: Collection[str] = ()) -> None:
        """Check that what stages read and no other stage writes exists; those that have ended need it no more.

        Raises:
            UserError: a file or folder does not.

        """
        made = [stage.output for stage in self.stages.values()]
        for name, stage in self.stages.items():
            if name not in ended:
                check_exist(stage.inputs, made, f"stage {stage.template!r}: ")

    def fingerprint(self, name: str) -> str:
        """Digest of a stage's words and configuration, and of those of all stages that it needs."""
        stage = self.stages[name]
        content = [stage.words, stage.settings, *map(self.fingerprint, sorted(stage.after))]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def make_grid(config: StudyConfig, here: Path) -> Grid:
    """Make the stages, and read the configuration of each training.

    Args:
        config: the study.
        here: folder of its file.

    Raises:
        UserError: a placeholder without a value, a command that a study does not run, a mistake in the configuration of
            a training, or two stages that write one folder or need each other.

    """
    stages, cells = dict[str, Stage](), list[Cell]()
    for seed in config.seeds:
        for point in config.points or [{}]:
            for name, setting in config.chosen.items():
                known = {**config.values, **setting.values, **point, "seed": seed, "setting": name}
                known |= {"out": str(config.output), "here": str(here)}
                before, evaluations = "", {}
                for template in setting.stages:
                    stage = _stage(template, config, known)
                    old = stages.get(stage.name, stage)
                    _check_same(old, stage)
                    stages[stage.name] = replace(old, after=tuple(dict.fromkeys([*old.after, *filter(None, [before])])))
                    before = stage.name
                    if not stage.steps:
                        evaluations[template] = stage.name
                if not evaluations:
                    raise UserError(f"setting {name!r} has no stage that evaluates; add one to get its scores")
                cells.append(Cell(name, point.get("x"), seed, evaluations))
    _check_cells(cells)
    try:
        TopologicalSorter({stage.name: stage.after for stage in stages.values()}).prepare()
    except CycleError as error:
        one, other = error.args[1][:2]
        raise UserError(
            f"{one} and {other} each come after the other; name stages in one order in all settings"
        ) from None
    return Grid(stages, cells)


def _stage(template: str, config: StudyConfig, known: Values) -> Stage:
    """Make a stage from its template, with the values of all placeholders."""
    place = f"stage {template!r}"
    try:
        words = [part for word in shlex.split(config.stages[template]) for part in _parts(_filled(word, known, place))]
    except ValueError as error:
        raise UserError(f"{place} is not a command line ({error}); close its quotes") from None
    if not words or words[0] not in COMMANDS:
        raise UserError(
            f"{place} begins with {words[0]!r}; begin with one of {', '.join(COMMANDS)}, and prepare data before"
            if words
            else f"{place} is empty; give a command, such as finetune vqa.yaml"
        )
    if len(words) < 2:
        raise UserError(f"{place} is only {words[0]!r}; give its configuration or model after it")
    if "--threads" not in words:
        words += ["--threads", str(config.threads)]
    if words[0] == "evaluate":
        folder = Path(words[words.index("--out") + 1]) if "--out" in words[:-1] else Path(words[1]) / "evaluation"
        read = [(option, Path(value)) for option, value in pairwise(words) if option in READ]
        return Stage(
            name=_name(folder, config.output),
            template=template,
            words=tuple(words),
            output=folder,
            inputs=(("the model", Path(words[1])), *read),
        )
    run = load_config(Path(words[1]), _overrides(words[2:]))
    if run.command != words[0]:
        raise UserError(f"{place}: task of {words[1]} is {run.task!r}, which is for {run.command}; begin with that")
    return Stage(
        name=_name(run.output, config.output),
        template=template,
        words=tuple(words),
        output=run.output,
        steps=run.training.steps,
        rows=run.training.steps * run.training.rows_per_step,
        settings=json.dumps(run.model_dump(mode="json"), sort_keys=True),
        inputs=tuple(run.inputs_read),
    )


def _name(folder: Path, out: Path) -> str:
    """Name a stage by its folder; one outside of that of the study by its whole path, as one word."""
    inside = folder.is_relative_to(out) and ".." not in folder.parts and folder != out
    return str(folder.relative_to(out)) if inside else quote(str(folder), safe="")


def _filled(text: str, known: Values, place: str, depth: int = 0) -> str:
    """Replace placeholders by their values, and those in the values."""

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name not in known:
            raise UserError(
                f"{place} has {{{name}}}, which has no value; add {name} to values, or use one of {', '.join(known)}"
            )
        if depth == _DEEPEST:
            raise UserError(f"{place}: the value of {name} refers to itself; write it without {{{name}}}")
        return _filled(str(known[name]), known, place, depth + 1)

    return _PLACEHOLDER.sub(value, text)


def _parts(word: str) -> list[str]:
    """Split `--option=value` into its two words."""
    return word.split("=", 1) if word.startswith("--") else [word]


def _overrides(words: Sequence[str]) -> list[str]:
    """Return the arguments of a training without its options."""
    left = iter(words)
    found = []
    for word in left:
        if word == "--threads":
            next(left, None)
        elif not word.startswith("--"):
            found.append(word)
    return found


def _check_same(stage: Stage, other: Stage) -> None:
    """Check that two stages that write one folder are the same."""
    if stage.words != other.words:
        raise UserError(
            f"stages {stage.template!r} and {other.template!r} both write {stage.output} and differ; name what differs "
            "in the folder, such as {setting} or {seed}"
        )


def _check_cells(cells: Sequence[Cell]) -> None:
    """Check that a setting has an evaluation of its own for each seed and point."""
    owners: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        for stage in cell.evaluations.values():
            other = owners.setdefault((cell.setting, stage), cell)
            if other is not cell:
                what, values = ("seed", (other.seed, cell.seed)) if other.x == cell.x else ("x", (other.x, cell.x))
                raise UserError(
                    f"setting {cell.setting!r} has one evaluation for {what} {values[0]} and {values[1]}; name "
                    f"{{{what}}} in its stages"
                )
