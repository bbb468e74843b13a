"""YAML files and `section.key=value` overrides to a checked configuration; each mistake is one sentence."""

import difflib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dimvl.config.run import RunConfig
from dimvl.config.yaml_values import DEEPEST, LONGEST, QUOTE, parse_yaml
from dimvl.errors import UserError
from dimvl.files import local_path, read_text
from dimvl.showing import short

Model = TypeVar("Model", bound=BaseModel)
MOST_FILES = 32
"""Files that one configuration may consist of."""
LARGEST = 4 * LONGEST
"""Bytes of a configuration file, with up to 4 per character."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file and the files it includes; its own values take precedence.

    Args:
        path: the file.

    Raises:
        UserError: a file is missing, is not such YAML as `parse_yaml` accepts, or is not a mapping; a file includes
            itself; or there are too many.

    """
    return _read(path, [], iter(range(MOST_FILES)))


def _read(path: Path, includers: Sequence[Path], left: Iterator[int]) -> dict[str, Any]:
    if path.resolve() in includers:
        raise UserError(f"{path} includes itself; remove one include")
    if next(left, None) is None:
        raise UserError(f"{path} is included after {MOST_FILES} other files; include fewer")
    content = parse_yaml(read_text(path, LARGEST), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} must contain sections and keys, not one value or a list; write, say, seed: 1")
    merged: dict[str, Any] = {}
    others = content.pop("include", [])
    if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
        raise UserError(f"{path}: include is {short(others)}; it must be a list of files, such as [other.yaml]")
    for other in others:
        merged = merge(merged, _read(path.parent / local_path(other), [*includers, path.resolve()], left))
    return merge(merged, content)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; values of `over` take precedence."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Turn `section.key=value` into nested mappings; values are read as YAML.

    Raises:
        UserError: an override without `=`, or a value that `parse_yaml` refuses.

    """
    result: dict[str, Any] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not all(name.split(".")) or name.count(".") > DEEPEST:
            raise UserError(f"override {short(override)} is not of the form section.key=value; write, say, seed=1")
        try:
            value = parse_yaml(text, f"override {short(override)}", one_line=True)
        except UserError as error:
            quoted = shlex.quote(f"{name}={json.dumps(text, ensure_ascii=False)}")
            whole = len(text) < 100 and text[:1] not in ("[", "{")
            raise UserError(str(error).replace(QUOTE, f"{QUOTE}: {quoted}") if whole else str(error)) from None
        for key in reversed(name.split(".")):
            value = {key: value}
        result = merge(result, value)
    return result


def read_run(path: Path, kinds: Mapping[str, type[RunConfig]], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run configuration.

    Args:
        path: a YAML file.
        kinds: value of its key `task` -> configuration class; the first is the default.
        overrides: `section.key=value`, which take precedence.

    Raises:
        UserError: any mistake in it, with the nearest valid name.

    """
    given = parse_overrides(overrides)
    if "include" in given:
        raise UserError("include works in files only; write it into the file, or give the values as overrides")
    content = merge(read_yaml(path), given)
    task = content.setdefault("task", next(iter(kinds)))
    if not isinstance(task, str) or task not in kinds:
        raise UserError(f"{path}: task is {short(task)}; it must be one of {', '.join(kinds)}")
    return validate(kinds[task], content, str(path), others=kinds, overridable=True)


def read_keys(kind: type[Model], path: Path, overrides: Sequence[str] = ()) -> Model:
    """Read a file of keys that is no run, such as that of a study.

    Args:
        kind: the class of its keys.
        path: a YAML file.
        overrides: `section.key=value`, which take precedence.

    Raises:
        UserError: any mistake in it.

    """
    given = parse_overrides(overrides)
    if "include" in given:
        raise UserError("include works in files only; write it into the file, or give the values as overrides")
    return validate(kind, merge(read_yaml(path), given), str(path), overridable=True)


def validate(
    model: type[Model],
    content: Any,
    source: str,
    *,
    others: Mapping[str, type[BaseModel]] | None = None,
    overridable: bool = False,
) -> Model:
    """Check values against a configuration class.

    Args:
        model: the class.
        content: the values.
        source: where they come from, for messages.
        others: task -> its class, to recognise a key of another task.
        overridable: the command takes `section.key=value`.

    Raises:
        UserError: one sentence on the first mistake, or on all missing keys.

    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = _first_mistake(error)
        place = [str(part) for part in first["loc"]]
        name = ".".join(place)
        if first["type"] == "extra_forbidden":
            raise UserError(f"{source}: unknown key {short(name)}; {_hint(model, place, others or {})}") from None
        if first["type"] == "missing":
            lacking = [map(str, each["loc"]) for each in error.errors() if each["type"] == "missing"]
            names = [key for place in lacking for key in _required_keys(model, ".".join(place))]
            verb, pronoun = ("is", "it") if len(names) == 1 else ("are", "them")
            remedy = f" or as {' '.join(f'{name}=VALUE' for name in names)}" if overridable else ""
            raise UserError(
                f"{source}: {', '.join(map(repr, names))} {verb} missing; give {pronoun} in the file{remedy}"
            ) from None
        shown = f" is {_as_written(first['input'])}"
        if isinstance(first["input"], dict):  # a rule about the keys of a section names them itself
            shown = "" if first["type"] == "value_error" else " is a section"
        where = f"{source}: {name}{shown}" if name else source  # a rule about several keys names them itself
        raise UserError(f"{where}{_rule(first)}") from None


def _required_keys(model: type[BaseModel], name: str) -> list[str]:
    """Return the required keys of a section that is missing, or the key that is missing itself."""
    field = model.model_fields.get(name)
    section = field.annotation if field else None
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return [name]
    return [f"{name}.{key}" for key, inner in section.model_fields.items() if inner.is_required()] or [name]


def _as_written(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else short(value)


RULES = {
    "greater_than_equal": "it must be at least {ge}",
    "greater_than": "it must be above {gt}",
    "less_than_equal": "it must be at most {le}",
    "less_than": "it must be below {lt}",
    "finite_number": "it must be a finite number",
    "literal_error": "it must be {expected}",
    "too_short": "give at least {min_length}",
    "model_type": "set keys inside it",
    "dict_type": "it must be a mapping, such as {{key: value}}",
    "list_type": "it must be a list, such as [a, b]",
    "string_type": "it must be text; put a number in quotes",
    "path_type": "it must be the path of a file or folder; put a number in quotes",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "it must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "it must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "it must be true or false"),
}
"""Kind of a mistake in pydantic -> the rule in plain words."""


def _rule(mistake: Any) -> str:
    """Return the end of a message: the rule that a value breaks."""
    if mistake["type"] == "value_error":
        return f": {mistake['ctx']['error']}"
    rule = RULES.get(mistake["type"])
    return f"; {mistake['msg'].lower() if rule is None else rule.format(**mistake.get('ctx', {}))}"


def _first_mistake(error: ValidationError) -> Any:
    """Choose the mistake to report: a required key that is misspelt is reported as the unknown key that it is."""
    first, *others = error.errors()
    if first["type"] != "missing":
        return first
    *section, missing = map(str, first["loc"])
    for other in others:
        *place, unknown = map(str, other["loc"])
        beside = other["type"] == "extra_forbidden" and place == section
        if beside and difflib.get_close_matches(unknown, [missing], cutoff=0.7):
            return other
    return first


def _hint(model: type[BaseModel], place: Sequence[str], others: Mapping[str, type[BaseModel]]) -> str:
    """Say what an unknown key may have been meant to be."""
    *section, key = place
    for task, other in others.items():
        if (not section or section[0] in other.model_fields) and key in _known_keys(other, section):
            return f"it belongs to task {task!r}, not to the task of this run"
    known = _known_keys(model, section)
    if near := difflib.get_close_matches(key, known, n=1, cutoff=0.6):
        return f"did you mean {'.'.join([*section, near[0]])!r}?"
    if elsewhere := [name for name in all_keys(model) if name.rpartition(".")[2] == key]:
        return f"did you mean {elsewhere[0]!r}?"
    return f"valid keys: {', '.join(known)}"


def all_keys(model: type[BaseModel], place: str = "", around: tuple[type[BaseModel], ...] = ()) -> Iterator[str]:
    """Yield the names of all keys of a section, such as `training.steps`; a section within itself is left out."""
    for name, field in model.model_fields.items():
        yield f"{place}{name}"
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in around:
                yield from all_keys(kind, f"{place}{name}.", (*around, kind))


def _known_keys(model: type[BaseModel], place: Sequence[str]) -> list[str]:
    for part in place:
        if part.isdigit():  # an item of a list
            continue
        annotation: Any = model.model_fields[part].annotation
        if get_origin(annotation) in (Union, UnionType):
            annotation = next(option for option in get_args(annotation) if option is not type(None))
        model = get_args(annotation)[0] if get_origin(annotation) is list else annotation
    return list(model.model_fields)
