"""Print every message that ends a command with one sentence, by file, so that a person can read their remedies.

A remedy is what follows the last `;`. `tests/test_remedies.py` checks what can be checked without reading: that each
message has one, and that options, keys, commands and pages that it names exist.

    python tools/list_errors.py [PART OF A PATH]
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "dimvl"
RAISED = {"UserError": "", "_Refused": "", "ValueError": "config"}
"""Exception -> the part of a path where its message reaches the user: validators of a configuration."""


class Message(NamedTuple):
    """A message with `{...}` for each value in it."""

    place: str
    text: str


def messages() -> Iterator[Message]:
    """Yield the messages of all files, in order."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name, tree = str(path.relative_to(PACKAGE.parent)), ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Name):
                part, text = RAISED.get(node.func.id), _text(node.args[0], constants)
                if part is not None and part in name and text:
                    yield Message(f"{name}:{node.lineno}", text)


def _text(node: ast.expr, constants: Mapping[str, object]) -> str:
    """Return the text of a string, with `{...}` for values other than constants; empty for anything else."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.FormattedValue):
        name = ast.unparse(node.value)
        return str(constants.get(name, f"{{{name}}}"))
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, constants) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left, constants) + _text(node.right, constants)
    return ""


if __name__ == "__main__":
    for message in messages():
        if not sys.argv[1:] or sys.argv[1] in message.place:
            print(f"{message.place}\n    {message.text}")
