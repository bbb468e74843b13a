"""Checkpoints: written atomically, verified by checksums, and found again after any kill.

    RUN/checkpoints/step-00000100/   model.safetensors, optimiser.safetensors, state.json

`state.json` holds the step, the checksums (also its own), the number of ranks that wrote it and, in a run that
validates, the best score so far. A folder is renamed into place after everything in it is on disk, so every folder of
that name is complete. A thread of rank 0 writes it from a copy of the state while the next steps train.
"""

import logging
import shutil
from pathlib import Path
from threading import Thread
from types import TracebackType

from dimvl.checkpoints import STATE, checkpoint_folder, checkpoint_folders
from dimvl.files import atomic_folder, remove_unpinned, sha256, write_sealed
from dimvl.training.engine import Engine
from dimvl.training.ranks import fail_together
from dimvl.training.state import State, write_state
from dimvl.training.validation import Best

logger = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of a run, one at a time; leaving its block waits for the write in progress.

    Args:
        run: folder of the run.
        engine: engine whose state is saved; rank 0 writes.
        keep: number of newest checkpoints to keep.

    Attributes:
        failed: whether the last write failed, which `save` and `wait` raise on all ranks; False except on rank 0.

    """

    def __init__(self, run: Path, engine: Engine, keep: int) -> None:
        self._run, self._engine, self._keep = run, engine, keep
        self._thread: Thread | None = None
        self._failure: Exception | None = None

    @property
    def failed(self) -> bool:  # noqa: D102 - see the class
        return self._failure is not None

    def save(self, step: int, best: Best | None = None) -> None:
        """Wait for the previous write, then copy the state and start to write it; every rank calls this.

        Args:
            step: optimiser steps done.
            best: the best score so far; its checkpoint is kept besides the newest ones.

        Raises:
            UserError: the previous checkpoint could not be written because the disk is full; earlier ones are intact.
            OtherRankError: the same, on ranks other than rank 0.

        """
        self.wait()
        state = self._engine.state()
        if self._engine.ranks.rank == 0:
            # A daemon, so that Python does not wait for it at exit: a second signal stops a run at once.
            self._thread = Thread(target=self._write, args=(state, step, best), daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait on all ranks until the last checkpoint is on disk; raises like `save`."""
        with fail_together(self._engine.ranks):
            self._join()
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure

    def _write(self, state: State, step: int, best: Best | None) -> None:
        try:
            write_checkpoint(self._run, state, step, self._keep, best, self._engine.ranks.size)
        except Exception as error:
            self._failure = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Wait without the other ranks, which may be lost."""
        if kind is not KeyboardInterrupt:
            self._join()
        if self._failure is not None:  # another error has already ended the run
            logger.error("%s", self._failure)


def write_checkpoint(run: Path, state: State, step: int, keep: int, best: Best | None, ranks: int) -> None:
    """Write a checkpoint, then remove old ones except the best; `UserError` if the disk is full."""
    with atomic_folder(checkpoint_folder(run, step)) as temporary:
        write_state(temporary, state)
        checksums = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
        found = {} if best is None else {"best": best._asdict()}
        write_sealed(temporary / STATE, {"step": step, "ranks": ranks, "checksums": checksums, **found})
    for old in checkpoint_folders(run)[:-keep]:
        if best is None or old != checkpoint_folder(run, best.step):
            remove_unpinned(old)  # one that another process reads is removed after the next save
    for left in (run / "checkpoints").glob(".step-*"):  # left by a killed process
        shutil.rmtree(left, ignore_errors=True)
