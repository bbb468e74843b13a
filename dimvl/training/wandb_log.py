"""The wandb log of a run, online or offline: one wandb run over any number of starts, with each step in it once.

A resumed run repeats the steps after its checkpoint. Online, wandb drops a step that is not above the last one; offline
it keeps both, because `resume` has no effect there. A killed process also loses rows that wandb had not written yet. So
the steps that wandb has are looked up first: online in `run.step`, offline in its files. They are not sent again, and
missing steps up to the checkpoint are sent from the run's own log.
"""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dimvl.config import RunConfig
from dimvl.errors import UserError
from dimvl.files import atomic_path, git_revision, read_text
from dimvl.training.wandb_files import offline_rows

IDENTITY = "wandb_id"
START_SECONDS = 30
FINISH_SECONDS = 300


class WandbLog:
    """Rows by step; all values of one step are sent together.

    Args:
        run: folder of the run.
        config: configuration of the run.

    Raises:
        UserError: wandb is not installed, or it does not start for lack of a login or a network.

    """

    def __init__(self, run: Path, config: RunConfig) -> None:
        self._run = _start(run, config)
        server = int(self._run.step) - 1  # below 0 for a new run, and offline
        self._stored = max([server, *(int(row["_step"]) for row in offline_rows(run, self._run.id))])
        self._step, self._row = 0, dict[str, Any]()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Add values to the row of a step; steps never decrease."""
        if step <= self._stored:
            return
        if step != self._step:
            self._send()
        self._step = step
        self._row |= values

    def log_predictions(self, step: int, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Add a table of predictions to the row of a step."""
        if step > self._stored and predictions:
            import wandb

            rows = [[_text(value) for value in prediction.values()] for prediction in predictions]
            self.log(step, {"predictions": wandb.Table(columns=list(predictions[0]), data=rows)})

    def _send(self) -> None:
        if self._row:
            self._run.log(self._row, step=self._step, commit=True)
        self._row = {}

    def finish(self) -> None:
        """Send the last row and end, or give up after `FINISH_SECONDS` without a network."""
        self._send()
        self._run.finish()


def _text(value: Any) -> Any:
    """Join a list into the text of one cell."""
    return "\n".join(str(_text(part)) for part in value) if isinstance(value, list) else value


def _start(run: Path, config: RunConfig) -> Any:
    """Start or continue the wandb run that belongs to this folder."""
    mode: Any = config.training.wandb
    values = config.model_dump(mode="json")
    record = run / IDENTITY
    identity = read_text(record).strip() if record.exists() else uuid.uuid4().hex[:12]
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
    except Exception as error:  # no key, no network, a setting in the environment: each raises its own type
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"training.wandb is {mode!r} but wandb does not start ({reason}); run `wandb login` and check the network, "
            "or set training.wandb=offline and send the log later with `wandb sync`"
        ) from None
    with atomic_path(record) as temporary:
        temporary.write_text(identity)
    return started
