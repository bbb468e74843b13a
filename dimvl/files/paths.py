"""Paths that a user gives, on the command line or in a configuration: `~` is replaced, and what must exist is checked.

This is done before torch is imported, so that a mistake is told at once.
"""

import glob
import os
import re
import stat
from pathlib import Path

from dimvl.errors import UserError
from dimvl.files.reading import HUB_NAME, open_regular, reading

_URL = re.compile(r"https?://", re.IGNORECASE)
_VARIABLE = re.compile(r"(?:^|/)(\$(?:\w+|\{[^}]*\}))")
_CONTROL = re.compile(r"[\x00-\x1f]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")
_WILDCARD = re.compile(r"[*?\[]")
_PATTERN = re.compile(r"[*?\[{]")
MOST_PATHS = 1_000_000
"""That a pattern may stand for."""


def local_path(text: str | Path) -> Path:
    """Replace `~` and `~user` at the start of a path, as a shell does; an existing `~name` without such a user stays.

    Raises:
        UserError: the path is empty, or it does not exist and has a control character, a part such as `$HOME` or
            `${HOME}`, or the `~name` of no user.

    """
    if not str(text):
        raise UserError("a path is empty; give a path, or . for the current folder")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        path = Path(text)
    if os.path.lexists(path):
        return path
    if found := _VARIABLE.search(str(path)):
        raise UserError(f"{path} contains {found[1]}, which is not replaced here; write out its value, or begin with ~")
    if str(path).startswith("~"):
        raise UserError(f"{path} begins with ~ but names no user; correct it, or write an absolute path")
    if _CONTROL.search(str(path)):
        raise UserError(f"{path} has a line break or another control character; remove it")
    return path


def is_url(name: object) -> bool:
    """Return whether a name is an address of the web, http or https."""
    return isinstance(name, str) and _URL.match(name) is not None


def existing(path: Path) -> Path:
    """Return a path that exists.

    Raises:
        UserError: it does not, or cannot be looked up.

    """
    with reading(path):
        path.stat()
    return path


def existing_file(path: Path) -> Path:
    """Return a path that is a readable file; raises like `open_regular`."""
    open_regular(path).close()
    return path


def existing_folder(path: Path) -> Path:
    """Return a path that is a folder whose files can be looked at.

    Raises:
        UserError: it is not.

    """
    if not stat.S_ISDIR(existing(path).stat().st_mode):
        raise UserError(f"{path} is a file; give a folder")
    with reading(path):
        os.scandir(path).close()
        os.stat(f"{path}/.")
    return path


def matching(path: Path) -> list[Path]:
    """Return the existing paths that a pattern stands for, or one existing path itself.

    `{000..099}` and `{a,b}` are expanded in the order written, as a shell does, and each result must exist; `*`, `?`
    and `[...]` then match names, sorted.

    Raises:
        UserError: nothing matches, or a path does not exist.

    """
    if os.path.lexists(path) or not _PATTERN.search(str(path)):
        return [existing(path)]
    found: list[Path] = []
    for text in _expanded(str(path)):
        matches = sorted(glob.glob(text)) if _WILDCARD.search(text) else [text]
        if not matches:
            raise UserError(f"nothing matches {text}; check the pattern")
        found += [existing(Path(match)) for match in matches]
    if len({*found}) < len(found):
        raise UserError(f"{path} names {next(one for one in found if found.count(one) > 1)} twice; name each file once")
    return found


def _expanded(text: str) -> list[str]:
    """Expand the braces of a pattern from left to right."""
    texts = [""]
    for number, part in enumerate(_BRACES.split(text)):
        options = [part]
        if number % 2:
            ends = _RANGE.fullmatch(part)
            if not ends and "," not in part:
                raise UserError(f"{{{part}}} in {text} is neither {{000..099}} nor {{a,b}}; correct the pattern")
            options = part.split(",")
            if ends:
                numbers = range(int(ends[1]), int(ends[2]) + 1)
                _check_number(len(texts) * len(numbers), text)
                options = [f"{number:0{len(ends[1])}}" for number in numbers]
        _check_number(len(texts) * len(options), text)
        texts = [before + option for before in texts for option in options]
    return texts


def _check_number(number: int, pattern: str) -> None:
    if not 1 <= number <= MOST_PATHS:
        raise UserError(f"{pattern} stands for {number:,} paths; give a pattern of 1 to {MOST_PATHS:,}")


def folder_or_hub_name(name: str, what: str) -> Path | None:
    """Return a folder, or None for a name on the Hugging Face hub.

    Args:
        name: what the user gave; `exports/vqa` is a name on the hub only where no folder `exports` exists.
        what: what the folder is, for the message.

    Raises:
        UserError: it is neither.

    """
    folder = local_path(name)
    if folder.is_dir():
        return folder
    if HUB_NAME.fullmatch(name) and not folder.parent.is_dir():
        return None
    raise UserError(f"{name} does not exist; give the folder of {what} or a model's name on the hub")
