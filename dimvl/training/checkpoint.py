"""Checkpoints: written whole or not at all, checked by checksum, and found again after any kill.

    RUN/checkpoints/step-00000100/   model.safetensors, optimiser.safetensors, state.json (step, checksums)

A folder appears by one rename after everything in it is on disk, so every folder of that name is whole.
"""

import shutil
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.files import atomic_folder, read_json, sha256, write_json
from dimvl.training.engine import Engine

STATE = "state.json"


def checkpoint_folders(run: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-????????"))


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest whole checkpoint of a run."""
    folders = checkpoint_folders(run)
    return folders[-1] if folders else None


def save_checkpoint(run: Path, engine: Engine, step: int, keep: int) -> Path:
    """Write a checkpoint, then remove old ones.

    Args:
        run: folder of the run.
        engine: its state is written.
        step: optimiser steps done.
        keep: newest checkpoints kept.

    Raises:
        UserError: the disk is full; earlier checkpoints are untouched.

    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    with atomic_folder(folder) as temporary:
        try:
            engine.save(temporary)
        except OSError:
            raise
        except Exception as error:  # safetensors reports a full disk in its own type
            raise OSError(f"{error}") from error
        checksums = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / STATE, {"step": step, "checksums": checksums})
    for old in checkpoint_folders(run)[:-keep]:
        shutil.rmtree(old)
    for left in (run / "checkpoints").glob(".step-*"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    return folder


def check_checkpoint(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's `state.json` after comparing the checksums.

    Raises:
        UserError: a file is missing or damaged.

    """
    state = read_json(folder / STATE)
    for name, checksum in state["checksums"].items():
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}; remove this checkpoint to go on from an earlier one")
        if sha256(folder / name) != checksum:
            raise UserError(f"{folder / name} is damaged; remove this checkpoint to go on from an earlier one")
    return state
