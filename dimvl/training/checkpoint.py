"""Checkpoints: written whole or not at all, checked by checksum, and found again after any kill.

    RUN/checkpoints/step-00000100/   model.safetensors, optimiser.safetensors, state.json

`state.json` has the step, the checksums and, where the run validates, the best score so far. A folder appears by one
rename after everything in it is on disk, so every folder of that name is whole.
"""

import shutil
from pathlib import Path

from safetensors import SafetensorError

from dimvl.files import atomic_folder, sha256, write_json
from dimvl.pretrained import STATE, checkpoint_folder, checkpoint_folders
from dimvl.training.early_stopping import Best
from dimvl.training.engine import Engine


def save_checkpoint(run: Path, engine: Engine, step: int, keep: int, best: Best | None = None) -> Path:
    """Write a checkpoint, then remove old ones but the best.

    Args:
        run: folder of the run.
        engine: its state is written.
        step: optimiser steps done.
        keep: newest checkpoints kept.
        best: the best score so far; its checkpoint is kept too.

    Raises:
        UserError: the disk is full; earlier checkpoints are untouched.

    """
    folder = checkpoint_folder(run, step)
    with atomic_folder(folder) as temporary:
        try:
            engine.save(temporary)
        except SafetensorError as error:  # its own type for a full disk
            raise OSError(f"{error}") from error
        checksums = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
        found = {} if best is None else {"best": best._asdict()}
        write_json(temporary / STATE, {"step": step, "checksums": checksums, **found})
    for old in checkpoint_folders(run)[:-keep]:
        if best is None or old != checkpoint_folder(run, best.step):
            shutil.rmtree(old)
    for left in (run / "checkpoints").glob(".step-*"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    return folder
