"""The TensorBoard log of a run: event files in the folder `tensorboard` of the run, one for each start.

A resumed run repeats the steps after its checkpoint. Its file says from which step on those of earlier files no longer
count (`purge_step`), so that TensorBoard shows each step once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimvl.errors import UserError

FOLDER = "tensorboard"


class TensorBoardLog:
    """The numbers of each line of the log, by the names that wandb has them by.

    Args:
        run: folder of the run.
        step: optimiser steps done.

    Raises:
        UserError: tensorboard is not installed.

    """

    def __init__(self, run: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "training.tensorboard needs the package tensorboard; install it with pip install 'dimvl[tensorboard]'"
            ) from None
        self._writer: Any = SummaryWriter(run / FOLDER, purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers of a line, so that a kill leaves them."""
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()
