"""Which part of an extraction a process does where a launcher started several: torchrun, or SLURM.

The processes do not talk to each other. Each writes a store of its own, `STORE.part-K-of-N`, and `dimvl join STORE`
makes one store of them.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dimvl.errors import UserError
from dimvl.regions.sources.base import Part
from dimvl.showing import some

NAME = re.compile(r"(.+)\.part-([0-9]{1,9})-of-([0-9]{1,9})")


class Launched(NamedTuple):
    """What a launcher says of this process.

    Attributes:
        part: which of all processes it is.
        launcher: what started them.
        local: its number on its node, from 0.
        on_node: processes on its node, as far as known; else 1.

    """

    part: Part
    launcher: str
    local: int
    on_node: int


def launched() -> Launched | None:
    """Return which of several processes this is; None if it is the only one.

    A SLURM array counts its tasks, and torchrun or else srun the processes of each.

    Raises:
        UserError: a variable of a launcher is not a whole number, or an array has gaps.

    """
    if (size := launcher_number("WORLD_SIZE", "1")) > 1:
        name, rank = "torchrun", launcher_number("RANK", "0")
    else:
        size, rank = launcher_number("SLURM_STEP_NUM_TASKS", "1"), launcher_number("SLURM_PROCID", "0")
        name = "srun"
    array, task = _array()
    if array * size == 1:
        return None
    names = [*(["SLURM array"] if array > 1 else []), *([name] if size > 1 else [])]
    local = launcher_number("LOCAL_RANK", os.environ.get("SLURM_LOCALID") or "0")
    number = task * size + rank + 1
    if number > array * size:
        raise UserError(f"{name} says process {rank} of {size}; number processes from 0 to {size - 1}")
    return Launched(Part(number, array * size), " and ".join(names), local, launcher_number("LOCAL_WORLD_SIZE", "1"))


def _array() -> tuple[int, int]:
    """Return how many tasks a SLURM array has, and the place of this one, from 0."""
    count = launcher_number("SLURM_ARRAY_TASK_COUNT", "1")
    if count == 1:
        return 1, 0
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP")
    own, first, last, step = (launcher_number(name, default) for name, default in zip(names, "0001", strict=True))
    if not step or (last - first) // step + 1 != count or (own - first) % step:
        raise UserError(
            f"the SLURM array has {count} tasks from {first} to {last}, with gaps, so task {own} cannot tell its part; "
            "submit an array without gaps (`dimvl extract` also takes --part K/N, with a folder for that part)"
        )
    return count, (own - first) // step


def launcher_number(name: str, default: str) -> int:
    """Read a whole number that a launcher sets in the environment.

    Raises:
        UserError: it is something else.

    """
    value = os.environ.get(name) or default
    if not (value.isascii() and value.isdecimal()):
        raise UserError(f"{name} is {value!r} and must be a whole number; unset it, or use a launcher that sets it")
    return int(value)


def folder_of_part(store: Path, part: Part) -> Path:
    """Return the folder of one of several parts of a store.

    Raises:
        UserError: the store itself exists, or parts of another number do.

    """
    if store.exists():
        raise UserError(
            f"{store} exists already, so parts of it would be a second store; choose another folder, or give --part "
            "1/1 to one process"
        )
    for folder, (_, of) in _parts(store):
        if of != part.of:
            raise UserError(
                f"{folder} is one of {of} parts, and there are {part.of} processes; start {of}, remove it, or choose "
                "another folder"
            )
    return store.with_name(f"{store.name}.part-{part.number}-of-{part.of}")


def check_no_parts(store: Path) -> None:
    """Refuse to begin a store that several processes have begun."""
    if not store.exists() and (found := _parts(store)):
        folder, part = found[0]
        raise UserError(
            f"{store} was begun by {part.of} processes, in {folder} and others; join them with `dimvl join`, continue "
            f"one part in its folder with --part {part}, or choose another folder"
        )


def parts_of(store: Path) -> list[Path]:
    """Return the folders of all parts of a store, in order.

    Raises:
        UserError: there are none, or one is missing.

    """
    folders = [folder for folder, _ in _parts(store)]
    if not folders:
        raise UserError(f"{store} has no parts ({store.name}.part-1-of-N ...); name the stores to be joined after it")
    check_complete(folders)
    return folders


def check_complete(folders: Sequence[Path]) -> None:
    """Refuse folders that are parts of a store, but not all of them."""
    found: dict[tuple[Path, str, int], set[int]] = {}
    for folder in folders:
        if name := NAME.fullmatch(folder.name):
            found.setdefault((folder.parent, name[1], int(name[3])), set()).add(int(name[2]))
    for (parent, stem, of), numbers in found.items():
        if missing := [number for number in range(1, of + 1) if number not in numbers][:1000]:
            named = some([f"part-{number}-of-{of}" for number in missing])
            raise UserError(
                f"{parent / stem} lacks {named}; extract with --part {missing[0]}/{of} into "
                f"{parent / stem}.part-{missing[0]}-of-{of}, and so on"
            )


def _parts(store: Path) -> list[tuple[Path, Part]]:
    """Return the parts of a store that exist, in order."""
    found = []
    for folder in store.parent.iterdir() if store.parent.is_dir() else ():
        name = NAME.fullmatch(folder.name)
        if name and name[1] == store.name and folder.is_dir():
            found.append((folder, Part(int(name[2]), int(name[3]))))
    return sorted(found, key=lambda one: (one[1].of, one[1].number))
