"""The keys of a study.

A stage is one command with placeholders, such as `finetune vqa.yaml seed={seed} output={out}/{setting}/{seed}`. A
placeholder is `{seed}`, `{setting}`, `{out}` (the study's folder), `{here}` (the folder of its file), a key of the
point, or a value of the setting or of the study, which may have placeholders too.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from dimvl.config import Names, Section
from dimvl.config.sections import distinct

Value = str | int | float
Values = dict[str, Value]
BUILT_IN = ("seed", "setting", "out", "here")
NAME = re.compile(r"[\w.-]+")


class SettingConfig(Section):
    """A mapping of names to settings: the stages of each, one after the other, and values of its own."""

    stages: list[str] = Field(min_length=1, description="names of stages; those that evaluate give its scores")
    values: Values = Field({}, description="values for placeholders")


class StudyConfig(Section):
    """What `dimvl study` runs and compares."""

    output: Path = Field(description="folder to write; `{out}` in stages")
    seeds: Annotated[list[int], AfterValidator(distinct), Field(min_length=1)] = Field(
        description="each setting is run once with each; three or more give intervals over seeds"
    )
    threads: int = Field(1, ge=1, le=1024, description="CPU threads of each stage")
    baseline: str = Field(description="name of the setting that the others are compared with")
    scores: Names = Field(
        [], description="names of scores in the table, the first of which is drawn; default: the first available"
    )
    x: str = Field("x", description="what the `x` of the points is, as the label of the axis")
    points: list[Values] = Field(
        [],
        description="each setting is run at each point: a mapping with a number `x`, and values for placeholders",
    )
    values: Values = Field({}, description="values for placeholders")
    stages: dict[str, str] = Field(
        min_length=1, description="name -> a command, `pretrain`, `finetune` or `evaluate`, with its arguments"
    )
    settings: dict[str, SettingConfig] = Field(min_length=1, description="name -> setting")
    only: Names = Field([], description="names of the settings to run and compare; default: all")

    @property
    def chosen(self) -> dict[str, SettingConfig]:
        """The settings to run and compare."""
        return {name: setting for name, setting in self.settings.items() if not self.only or name in self.only}

    @model_validator(mode="after")
    def _names_fit_together(self) -> "StudyConfig":
        for name in (*self.settings, *self.stages):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} names files; write it with letters, digits and . _ - only")
        if self.baseline not in self.settings:
            raise ValueError(f"baseline {self.baseline!r} is not a setting; name one of {', '.join(self.settings)}")
        if unknown := [name for name in self.only if name not in self.settings]:
            known = ", ".join(self.settings)
            raise ValueError(f"only has {unknown[0]!r}, which is not a setting; name some of {known}")
        if self.baseline not in self.chosen:
            raise ValueError(
                f"only leaves out the baseline {self.baseline!r}, which the others are compared with; name it too, or "
                "choose another baseline"
            )
        for name, setting in self.settings.items():
            if unknown := [stage for stage in setting.stages if stage not in self.stages]:
                raise ValueError(
                    f"setting {name!r} has stage {unknown[0]!r}, which is not in stages; name one of "
                    f"{', '.join(self.stages)}"
                )
        taken = [key for values in self._all_values() for key in values if key in BUILT_IN]
        if taken:
            raise ValueError(f"{taken[0]!r} has a meaning of its own in stages; give the value another name")
        return self

    @model_validator(mode="after")
    def _values_are_used(self) -> "StudyConfig":
        for name, setting in self.settings.items():
            if both := sorted({key for point in self.points for key in point} & setting.values.keys()):
                raise ValueError(f"{both[0]!r} is a value of setting {name!r} and of a point; give it in one of them")
        texts = [*self.stages.values(), *(str(value) for values in self._all_values() for value in values.values())]
        for key in dict.fromkeys(key for values in self._all_values() for key in values):
            if key != "x" and not any(f"{{{key}}}" in text for text in texts):
                raise ValueError(f"no stage uses the value {key!r}; correct its name, or remove it")
        return self

    @model_validator(mode="after")
    def _points_have_numbers(self) -> "StudyConfig":
        places = [point.get("x") for point in self.points]
        if wrong := [x for x in places if not isinstance(x, int | float)]:
            raise ValueError(f"a point has x {wrong[0]!r}; give each a number, such as {{x: 1000}}")
        if len(set(places)) < len(places):
            raise ValueError("two points have the same x; give each its own")
        return self

    def _all_values(self) -> Sequence[Values]:
        return [self.values, *self.points, *(setting.values for setting in self.settings.values())]
