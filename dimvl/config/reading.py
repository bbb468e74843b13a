"""YAML files and `section.key=value` overrides to a checked configuration; each mistake is one sentence."""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dimvl.config.run import RunConfig
from dimvl.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys: of two sections of one name YAML silently drops the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping, refusing duplicate keys."""
        seen = set[Any]()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge" else None
            if name is not None and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name!r} appears twice; keep one of them", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, includers: Sequence[Path] = ()) -> dict[str, Any]:
    """Read a YAML file and the files it includes; its own values take precedence.

    Args:
        path: the file.
        includers: the files that led to it.

    Raises:
        UserError: the file is missing, is not YAML, has a key twice, is not a mapping, or includes itself.

    """
    if path.resolve() in includers:
        raise UserError(f"{path} includes itself; remove one include")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path of the configuration") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a readable YAML file ({reason}); correct it or give another") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must contain sections and keys, not one value or a list")
    merged: dict[str, Any] = {}
    others = content.pop("include", [])
    if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
        raise UserError(f"{path}: include is {others!r}; it must be a list of files, such as [other.yaml]")
    for other in others:
        merged = merge(merged, read_yaml(path.parent / other, [*includers, path.resolve()]))
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
        UserError: an override without `=`.

    """
    result: dict[str, Any] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise UserError(f"override {override!r} is not of the form section.key=value; write, say, seed=1")
        try:
            value: Any = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"override {override!r}: the value is not readable as YAML; put it in quotes") from None
        if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
            with suppress(ValueError):
                value = float(value)
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
    content = merge(read_yaml(path), parse_overrides(overrides))
    task = content.setdefault("task", next(iter(kinds)))
    if not isinstance(task, str) or task not in kinds:
        raise UserError(f"{path}: task is {task!r}; it must be one of {', '.join(kinds)}")
    return validate(kinds[task], content, str(path), kinds)


def validate(
    model: type[Model], content: Any, source: str, others: Mapping[str, type[BaseModel]] | None = None
) -> Model:
    """Check values against a configuration class.

    Args:
        model: the class.
        content: the values.
        source: where they come from, for messages.
        others: task -> its class, to recognise a key of another task.

    Raises:
        UserError: one sentence on the first mistake.

    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = _first_mistake(error)
        place = [str(part) for part in first["loc"]]
        name = ".".join(place)
        if first["type"] == "extra_forbidden":
            raise UserError(f"{source}: unknown key {name!r}; {_hint(model, place, others or {})}") from None
        if first["type"] == "missing":
            raise UserError(f"{source}: {name!r} is missing; give it in the file or as {name}=VALUE") from None
        message = "set keys inside it" if first["type"] == "model_type" else first["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(first["input"], dict) else f" is {first['input']!r}"
        where = f"{source}: {name}{shown}" if name else source  # a rule about several keys names them itself
        raise UserError(f"{where}: {message[0].lower()}{message[1:]}") from None


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
            return f"it belongs to task {task!r}, which this run is not"
    known = _known_keys(model, section)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean {'.'.join([*section, near[0]])!r}?" if near else f"valid keys: {', '.join(known)}"


def _known_keys(model: type[BaseModel], place: Sequence[str]) -> list[str]:
    for part in place:
        if part.isdigit():  # an item of a list
            continue
        annotation: Any = model.model_fields[part].annotation
        if get_origin(annotation) in (Union, UnionType):
            annotation = next(option for option in get_args(annotation) if option is not type(None))
        model = get_args(annotation)[0] if get_origin(annotation) is list else annotation
    return list(model.model_fields)
