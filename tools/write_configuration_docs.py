"""Write docs/configuration.md from the configuration classes, so that the page always agrees with them.

python tools/write_configuration_docs.py
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from dimvl.bootstrap.config import BootstrapConfig
from dimvl.concepts.config import ConceptConfig
from dimvl.config import RunConfig
from dimvl.study.config import StudyConfig
from dimvl.tasks import CONFIGS, all_tasks
from dimvl.training.run_folder import FREE

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

HEAD = """\
# Configuration of a run

> **Needs** a region store and captions of your own; [the tutorial](tutorial.md) makes them from scenes.

`tools/write_configuration_docs.py` writes this page from the configuration classes; after changing them, run it again.

`dimvl pretrain` and `dimvl finetune` take a YAML file, followed by overrides of the form `section.key=value`:

```
dimvl pretrain pretrain.yaml training.steps=2000 model.split=[qkv,ffn]
```

- `include: [other.yaml]` reads other files first, relative to the file itself. The file takes precedence over what it
  includes, and overrides take precedence over everything. `configs/models/` has four model sizes to include.
- All other paths are relative to the current folder. `~` at the start of a path is replaced by the home folder;
  `$HOME` and other variables are refused, as nothing replaces them.
- Values are YAML, read as written: dates, `1:30`, `yes` and `on` stay text unless the key wants `true` or `false`, and
  `1e-4` is a number. What YAML would drop or change needs quotes, and an error says so: ` #` begins a comment, `0123`
  is octal to some readers, `!`, `&`, `*`, `@` and `: ` have meanings of their own. In a shell:
  `'output="runs/a #1"'`.
- Every key is checked: an unknown key or a bad value ends in one sentence that names it, and exit code 2.
- `task` selects the kind of run: a file has the keys of every run and those of its task.
- The same command resumes a run. The folder of a run belongs to its configuration; only these keys may change when it
  resumes: {free}.
"""


def page() -> str:
    """Return the whole page."""
    free = ", ".join(f"`{name}`" for name in sorted(FREE))
    parts = [HEAD.format(free=free), _tables("Every run", "", RunConfig, {})]
    for name, task in all_tasks().items():
        parts.append(_tables(f"{task.title} (`task: {name}`)", "", CONFIGS[name], RunConfig.model_fields))
    parts.append(_tables("Concepts (`dimvl concepts`)", "", ConceptConfig, {}))
    parts.append(_tables("Bootstrapping (`dimvl bootstrap`)", "", BootstrapConfig, {}))
    parts.append(_tables("Studies (`dimvl study`)", "", StudyConfig, {}))
    return "\n".join(parts).rstrip() + "\n"


def _tables(heading: str, prefix: str, model: type[BaseModel], known: Mapping[str, FieldInfo], level: int = 2) -> str:
    """Return the table of a section and those of the sections inside it, without keys that are the same in `known`."""
    fields = {
        name: field
        for name, field in model.model_fields.items()
        if name != "task" and (name not in known or known[name].annotation != field.annotation)
    }
    sections = {name: section for name, field in fields.items() if (section := _section(field)) is not None}
    rows = [_row(prefix + name, field) for name, field in fields.items() if name not in sections]
    parts = [f"{'#' * level} {heading}", "", " ".join((model.__doc__ or "").split()), ""]
    if rows:
        parts += ["| key | value | default | meaning |", "|---|---|---|---|", *rows, ""]
    for name, section in sections.items():
        optional = "" if fields[name].default is not None else " (absent by default)"
        base = _section(known[name]) if name in known else None
        inner = {} if base is None else base.model_fields
        parts.append(_tables(f"`{prefix}{name}`{optional}", f"{prefix}{name}.", section, inner, level + 1))
    return "\n".join(parts)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section that a key holds, also an optional one; None for a plain value."""
    options = get_args(field.annotation) or (field.annotation,)
    found = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    return found[0] if found else None


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"`{_as_yaml(field.default)}`"
    return f"| `{name}` | {_values(field)} | {default} | {field.description or ''} |"


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _values(field: FieldInfo) -> str:
    return ", ".join(filter(None, [_kind(field.annotation, _takes_one(field.metadata)), _bounds(field)]))


def _takes_one(constraints: Sequence[Any]) -> bool:
    """Whether a single value is taken for a list of one."""
    return any(isinstance(constraint, BeforeValidator) for constraint in constraints)


def _kind(annotation: Any, takes_one: bool = False) -> str:
    """Describe the values that a key takes."""
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_kind(argument) for argument in arguments)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if get_origin(annotation) is Annotated:
        return _kind(arguments[0], _takes_one(arguments[1:]))
    if get_origin(annotation) is list:
        return f"{_kind(arguments[0])} or a list" if takes_one else f"list of {_kind(arguments[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    plain = {int: "integer", float: "number", bool: "`true`, `false`", str: "text", Path: "path"}
    return {**plain, NoneType: "`null`"}[annotation]


def _bounds(field: FieldInfo) -> str:
    limits = {
        name: limit
        for constraint in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if (limit := getattr(constraint, name, None)) is not None and limit != 2**63  # what a seed can be at all
    }
    if limits.keys() == {"ge", "le"}:
        return f"{limits['ge']} to {limits['le']}"
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    return " ".join(f"{words[name]} {limit}" for name, limit in limits.items())


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
