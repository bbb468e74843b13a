"""Checkpoints: written whole or not at all, checked by checksum, and found again after any kill.

    RUN/checkpoints/step-00000100/   model.safetensors, optimiser.safetensors, state.json (step, checksums)

A folder appears by one rename after everything in it is on disk, so every folder of that name is whole.
"""

import shutil
from pathlib import Path

from safetensors import SafetensorError

from dimvl.files import atomic_folder, sha256, write_json
from dimvl.pretrained import STATE, checkpoint_folders
from dimvl.training.engine import Engine


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
        except SafetensorError as error:  # its own type for a full disk
            raise OSError(f"{error}") from error
        checksums = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / STATE, {"step": step, "checksums": checksums})
    for old in checkpoint_folders(run)[:-keep]:
        shutil.rmtree(old)
    for left in (run / "checkpoints").glob(".step-*"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    return folder
