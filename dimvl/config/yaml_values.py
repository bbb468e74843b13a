"""YAML to plain values, as written: what YAML would drop, or turn into another type than it seems, is an error.

Text is a number, true, false or null only by the core schema of YAML 1.2; `yes`, `1:30`, `1_000` and dates stay text,
and the types of the configuration decide. Refused, with quotes as the remedy: a number that YAML 1.1 or 1.2 reads as
octal, `#` that ends a value without a blank behind it, text over several lines without quotes, tags, and anchors that
nothing refers to. What a few bytes could make large, depth and references, is bounded.
"""

import re
from typing import Any

import yaml

from dimvl.errors import UserError
from dimvl.showing import short

DEEPEST = 20
"""Sections and lists inside each other; a configuration of DeepSpeed has 4."""
LONGEST = 2**16
"""Characters; the largest configuration that comes with dimvl has 5,000."""
MOST_VALUES = 20_000
"""Values and keys, each counted as often as it is referred to."""
QUOTE = "put it in quotes"
_BLANK = " \t\0\r\n"
_INTEGER = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+")
_OCTAL = re.compile(r"[-+]?0[0-9]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN)")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    text: value for value, name in ((True, "true"), (False, "false")) for text in (name, name.title(), name.upper())
}


class _Refused(yaml.MarkedYAMLError):
    """What YAML allows and a configuration does not; `problem` names the remedy."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Reader(yaml.BaseLoader):
    """Reads one document; every comment has to look like one."""

    def __init__(self, text: str, one_line: bool) -> None:
        super().__init__(text)
        self.one_line, self.text = one_line, text
        self.depth = self.count = 0
        self.unused = dict[str, Any]()

    def read(self) -> Any:
        """Return the document's values."""
        node = self.get_single_node()
        for anchor, mark in self.unused.items():
            raise _Refused(f"nothing refers to '&{anchor}'; {QUOTE} if it is text, or remove it", mark)
        if self.one_line:
            self.check_one_line(node)
        return None if node is None else self.value(node, 1)

    def scan_to_next_token(self) -> None:
        """Skip blanks and comments; the `#` of `a #1` may not have been meant as a comment."""
        while self.peek() == " ":
            self.forward()
        if self.peek() == "#" and self.peek(1) not in _BLANK + "#!":
            before = self.buffer[self.buffer.rfind("\n", 0, self.pointer) + 1 : self.pointer]
            if before.strip():
                comment = "" if self.one_line else ", or write '# ' before a comment"
                raise _Refused(f"'#{self.peek(1)}' begins a comment; {QUOTE}{comment}", self.get_mark())
        super().scan_to_next_token()

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self.unused.pop(str(event.anchor), None)
        elif event.anchor is not None:
            self.unused[event.anchor] = event.start_mark
        if getattr(event, "tag", None) is not None:
            raise _Refused(f"'!' begins a tag; {QUOTE} if it is text, or remove it", event.start_mark)
        self.depth += 1
        self.check_depth(self.depth, event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def check_depth(self, depth: int, mark: Any) -> None:
        """Refuse sections and lists that are too deep, or that contain themselves."""
        if depth > DEEPEST:
            raise _Refused(f"sections or lists are nested more than {DEEPEST} deep; nest them less", mark)

    def check_one_line(self, node: yaml.Node | None) -> None:
        """Check the value of an override: no comment, and lists and sections only in brackets and braces."""
        if node is None or (isinstance(node, yaml.ScalarNode) and node.style is None and not node.value):
            raise _Refused("it has no value; write null for none", None)
        if rest := self.text[node.end_mark.index :].strip():
            raise _Refused(f"{short(rest)} is not part of the value, since '#' begins a comment; {QUOTE}", None)
        if isinstance(node, yaml.CollectionNode) and not node.flow_style:
            raise _Refused(f"': ' or '- ' begins a section or a list; {QUOTE}, or use braces or brackets", None)

    def value(self, node: yaml.Node, depth: int) -> Any:
        """Return the value of a node at a depth."""
        self.check_depth(depth, node.start_mark)
        self.count += 1
        if self.count > MOST_VALUES:
            raise _Refused(f"there are more than {MOST_VALUES:,} values; use fewer references ('*')", None)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node) if node.style is None else node.value
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, depth + 1) for item in node.value]
        values, merged = dict[str, Any](), dict[str, Any]()
        for key, content in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused("a key is a list or a section; write a name", key.start_mark)
            value, is_merge = self.value(content, depth + 1), key.value == "<<" and key.style is None
            if key.value in values:
                raise _Refused(f"{short(key.value)} appears twice; keep one of them", key.start_mark)
            for section in (value if isinstance(value, list) else [value]) if is_merge else ():
                if not isinstance(section, dict):
                    raise _Refused("'<<' needs a reference to a section; write, say, '<<: *name'", key.start_mark)
                merged = section | merged
            if not is_merge:
                values[key.value] = value
        return merged | values


def parse_yaml(text: str, source: str, *, one_line: bool = False) -> Any:
    """Read a YAML document.

    Args:
        text: the document.
        source: where it comes from, for messages.
        one_line: it is one value on a command line: no comment, and lists and sections only in brackets and braces.

    Raises:
        UserError: it is not YAML, or something in it is refused.

    """
    if len(text) > LONGEST:
        raise UserError(f"{source} has {len(text):,} characters; give a configuration, of at most {LONGEST:,}")
    try:
        return _Reader(text, one_line).read()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None or one_line else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        if not isinstance(error, _Refused):
            problem = f"not readable as YAML ({problem}); {QUOTE} if it is text, or correct it"
        raise UserError(f"{source}{where}: {problem}") from None


def _scalar(node: yaml.ScalarNode) -> Any:
    """Return the value of text without quotes."""
    text = str(node.value)
    if node.start_mark.line != node.end_mark.line:
        raise _Refused(f"{short(text)} covers several lines; {QUOTE}, or correct the indentation", node.start_mark)
    if text in _WORDS:
        return _WORDS[text]
    if _OCTAL.fullmatch(text):
        raise _Refused(
            f"{short(text)} may be an octal number; {QUOTE} if it is text, or write it without the 0", node.start_mark
        )
    try:
        if _INTEGER.fullmatch(text):
            return int(text, 16 if text.startswith("0x") else 10)
    except ValueError:  # Python's limit, 4,300 digits
        raise _Refused(
            f"a number has {len(text):,} digits; {QUOTE} if it is text, or write fewer", node.start_mark
        ) from None
    if _FLOAT.fullmatch(text):
        return float(text.replace(".", "") if text[-1].isalpha() else text)  # .inf and .nan
    return text
