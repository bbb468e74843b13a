"""Checkpoints: written whole or not at all, checked by checksum, and found again after any kill.

    RUN/checkpoints/step-00000100/   model.safetensors, optimiser.safetensors, state.json

`state.json` has the step, the checksums, how many ranks wrote it and, where the run validates, the best score so far.
A folder appears by one rename after everything in it is on disk, so every folder of that name is whole.
"""

import shutil
from pathlib import Path

from dimvl.files import atomic_folder, sha256, write_json
from dimvl.pretrained import STATE, checkpoint_folder, checkpoint_folders
from dimvl.training.early_stopping import Best
from dimvl.training.engine import Engine
from dimvl.training.ranks import together
from dimvl.training.state import State, write_state


def save_checkpoint(run: Path, engine: Engine, step: int, keep: int, best: Best | None = None) -> Path:
    """Write a checkpoint, then remove old ones but the best. Rank 0 writes, and the others wait for it.

    Args:
        run: folder of the run.
        engine: its state is written.
        step: optimiser steps done.
        keep: newest checkpoints kept.
        best: the best score so far; its checkpoint is kept too.

    Raises:
        UserError: the disk is full; earlier checkpoints are untouched.
        OtherRankError: it is full, on another rank than rank 0.

    """
    state = engine.state()
    with together(engine.ranks):
        if engine.ranks.rank == 0:
            _write(run, state, step, keep, best, engine.ranks.size)
    return checkpoint_folder(run, step)


def _write(run: Path, state: State, step: int, keep: int, best: Best | None, ranks: int) -> None:
    with atomic_folder(checkpoint_folder(run, step)) as temporary:
        write_state(temporary, state)
        checksums = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
        found = {} if best is None else {"best": best._asdict()}
        write_json(temporary / STATE, {"step": step, "ranks": ranks, "checksums": checksums, **found})
    for old in checkpoint_folders(run)[:-keep]:
        if best is None or old != checkpoint_folder(run, best.step):
            shutil.rmtree(old)
    for left in (run / "checkpoints").glob(".step-*"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
