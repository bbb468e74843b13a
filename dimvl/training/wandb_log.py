"""The wandb log of a run: online or offline, one wandb run whatever the number of starts, every step in it once.

A resumed run repeats the steps since its checkpoint, and wandb drops a step that is not above the last one online and
takes it twice offline; and what a killed process has logged last may not have come to disk. So it is asked first which
steps are there. These are not sent again, and those that are missing up to the checkpoint are sent from the run's own
files.
"""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dimvl.config import RunConfig
from dimvl.errors import UserError
from dimvl.files import git_revision
from dimvl.training.wandb_files import offline_rows

IDENTITY = "wandb_id"
START_SECONDS = 30
FINISH_SECONDS = 300


class WandbLog:
    """Rows by step; values of one step come together in one row.

    Args:
        run: folder of the run.
        config: of the run.

    Raises:
        UserError: wandb is not installed, or does not start: there is no login or no network.

    """

    def __init__(self, run: Path, config: RunConfig) -> None:
        self._run = _start(run, config)
        self._there = int(self._run.step) - 1  # of the server; below 0 for a new run, and offline
        rows = offline_rows(run, self._run.id)
        self._there = max([self._there, *(int(row["_step"]) for row in rows)])
        self._step, self._row = 0, dict[str, Any]()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Add values to the row of a step; steps rise."""
        if step <= self._there:
            return
        if step != self._step:
            self._send()
        self._step = step
        self._row |= values

    def log_predictions(self, step: int, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Add a table of predictions to the row of a step."""
        if step > self._there and predictions:
            import wandb

            rows = [[_text(value) for value in prediction.values()] for prediction in predictions]
            self.log(step, {"predictions": wandb.Table(columns=list(predictions[0]), data=rows)})

    def _send(self) -> None:
        if self._row:
            self._run.log(self._row, step=self._step, commit=True)
        self._row = {}

    def finish(self) -> None:
        """Send what is left and end; gives up after a while where the network is gone."""
        self._send()
        self._run.finish()


def _text(value: Any) -> Any:
    """Put a list into one cell."""
    return "\n".join(str(_text(part)) for part in value) if isinstance(value, list) else value


def _start(run: Path, config: RunConfig) -> Any:
    """Start or continue the wandb run that belongs to this folder.

    Raises:
        UserError: wandb is not installed, or does not start.

    """
    mode: Any = config.training.wandb
    values = config.model_dump(mode="json")
    record = run / IDENTITY
    identity = record.read_text().strip() if record.exists() else uuid.uuid4().hex[:12]
    try:
        import wandb

        limits = wandb.Settings(
            init_timeout=START_SECONDS, login_timeout=START_SECONDS, finish_timeout=FINISH_SECONDS, silent=True
        )
        started = wandb.init(
            project="dimvl",
            name=run.name,
            group=run.name,
            job_type=values["task"],
            id=identity,
            resume="allow",
            dir=run,
            mode=mode,
            settings=limits,
            config={**values, "git_revision": git_revision()},
        )
    except ImportError:
        raise UserError("training.wandb needs the package wandb; install it with pip install 'dimvl[wandb]'") from None
    except Exception as error:  # no key, no network, a setting in the environment: each has its own type
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"training.wandb is {mode!r} but wandb does not start ({reason}); run `wandb login` and check the network, "
            "or set training.wandb=offline and send the log later with `wandb sync`"
        ) from None
    record.write_text(identity)
    return started
