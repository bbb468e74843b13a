"""Paths that a user gives, on the command line or in a configuration: `~` is replaced, and what must exist is checked.

This is done before torch is imported, so that a mistake is told at once.
"""

import os
import re
import stat
from pathlib import Path

from dimvl.errors import UserError
from dimvl.files.reading import HUB_NAME, open_regular, reading

_VARIABLE = re.compile(r"(?:^|/)(\$(?:\w+|\{[^}]*\}))")
_CONTROL = re.compile(r"[\x00-\x1f]")


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
        raise UserError(f"{path} begins with no user's name; correct it, or write the path from / on")
    if _CONTROL.search(str(path)):
        raise UserError(f"{path} has a line break or another control character; remove it")
    return path


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
