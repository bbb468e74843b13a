"""Runs the stages of a study that have not ended, several at a time, each in its own process.

`OUT/done` has a mark for each stage: its words when it begins, and its seconds when it has ended. A stage is skipped if
it has ended with the same words and those of the stages before it are the same. One that was interrupted runs again,
and a training then resumes. Where words have changed, the folder of the earlier training is kept in `OUT/replaced`.
"""

import itertools
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM

from dimvl.errors import Interrupted
from dimvl.files import Strict, locked, read_json_as, write_json
from dimvl.showing import counted, format_seconds
from dimvl.stopping import stop_signals
from dimvl.study.stages import Grid, Stage

logger = logging.getLogger(__name__)
PROGRAM = (sys.executable, "-m", "dimvl")
POLL = 0.1  # seconds between two looks at the running stages
PATIENCE = 60  # seconds that a stage has to save a checkpoint
Show = Callable[[str, bool], None]
"""Shows a line of progress, and whether it must be shown."""


class Mark(Strict):
    """The form of a mark."""

    words: list[str]
    fingerprint: str
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Running:
    """A stage and the process that runs it."""

    stage: Stage
    process: subprocess.Popen[bytes]
    start: float


class Runner:
    """The stages of a study in its folder.

    Args:
        grid: the stages.
        out: folder of the study.
        threads: CPU threads of each stage.

    """

    def __init__(self, grid: Grid, out: Path, threads: int = 1) -> None:
        self.grid, self.out, self.threads = grid, out, threads
        self.marks = {name: self._read_mark(name) for name in grid.stages}
        self.ended = {name for name in grid.stages if self._has_ended(name)}
        self.failed: dict[str, int] = {}

    def mark(self, name: str) -> Path:
        """Path of the mark of a stage."""
        return self.out / "done" / f"{name}.json"

    def log(self, name: str) -> Path:
        """Path of what a stage prints."""
        return self.out / "logs" / f"{name}.txt"

    def seconds_left(self, running: Sequence[Running] = ()) -> tuple[float, bool]:
        """Estimate the seconds of work that is left, by the stages that have ended.

        Returns:
            The seconds, and whether there was a stage of each kind to go by; of other kinds they count as 0.

        """
        spent = {running.stage.name: time.monotonic() - running.start for running in running}
        paces = self._paces()
        left, complete = 0.0, True
        for name, stage in self.grid.stages.items():
            if name not in self.ended and name not in self.failed:
                pace = paces.get(stage.template)
                complete = complete and pace is not None
                left += max((pace or 0.0) * stage.work - spent.get(name, 0.0), 0.0)
        return left, complete

    def run(self, jobs: int, show: Show = lambda line, must: None) -> None:
        """Run what has not ended, `jobs` stages at a time; afterwards `ended` and `failed` say how it went.

        A stage that fails is told in the log, and those that need it do not run.

        Raises:
            UserError: another process runs a study in the folder.
            Interrupted: SIGINT or SIGTERM came; the stages that ran were asked to save and stop.

        """
        running: list[Running] = []
        busy = f"another study runs in {self.out}; wait for it or stop it"
        with locked(self.out, busy), stop_signals() as signals:
            try:
                while True:
                    for stage in self._ready(running)[: jobs - len(running)]:
                        running.append(self._start(stage))
                        show(self._line(running, jobs), True)
                    if not running:
                        return
                    time.sleep(POLL)
                    if signals:
                        raise Interrupted("the study was stopped; run the same command to resume it", signals[0])
                    for item in [item for item in running if item.process.poll() is not None]:
                        running.remove(item)
                        self._end(item)
                    show(self._line(running, jobs), False)
            finally:
                _stop(running)

    def _ready(self, running: Sequence[Running]) -> list[Stage]:
        busy = {item.stage.name for item in running}
        return [
            stage
            for name, stage in self.grid.stages.items()
            if name not in self.ended | busy | self.failed.keys() and self.ended.issuperset(stage.after)
        ]

    def _start(self, stage: Stage) -> Running:
        mark = self.marks[stage.name]
        if mark is not None and mark.fingerprint != self.grid.fingerprint(stage.name):
            self._put_aside(stage)
        self._write_mark(stage)
        self.log(stage.name).parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        command = [*PROGRAM, *stage.words]
        with self.log(stage.name).open("ab") as log:
            log.write(f"$ {stage.command}\n".encode())
            log.flush()
            # In a session of its own, so that Ctrl-C reaches only the study, which then stops each stage once.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        return Running(stage=stage, process=process, start=time.monotonic())

    def _put_aside(self, stage: Stage) -> None:
        """Keep what an earlier training with other words has written, if it is in the study's folder."""
        inside = stage.output.resolve().is_relative_to(self.out.resolve())
        if not stage.steps or not inside or not stage.output.exists():
            return
        folder = self.out / "replaced"
        folder.mkdir(exist_ok=True)
        names = (folder / f"{stage.name.replace('/', '-')}-{number}" for number in itertools.count(1))
        kept = next(name for name in names if not name.exists())
        stage.output.rename(kept)
        logger.warning("%s runs again, since it was another command; its earlier folder is now %s", stage.name, kept)

    def _end(self, item: Running) -> None:
        stage, code = item.stage, item.process.returncode
        if code == 0:
            self.ended.add(stage.name)
            seconds = round(time.monotonic() - item.start, 1)
            self._write_mark(stage, seconds)
            return
        self.failed[stage.name] = code
        last = self.log(stage.name).read_text(errors="replace").strip().splitlines()[-1]
        logger.error("%s failed with exit code %d: %s; the command was: %s", stage.name, code, last, stage.command)

    def _read_mark(self, name: str) -> Mark | None:
        path = self.mark(name)
        return read_json_as(path, Mark, "remove it, and the stage runs again") if path.exists() else None

    def _has_ended(self, name: str) -> bool:
        mark = self.marks[name]
        return (
            mark is not None
            and mark.seconds is not None
            and mark.fingerprint == self.grid.fingerprint(name)
            and self.grid.stages[name].result.exists()
        )

    def _write_mark(self, stage: Stage, seconds: float | None = None) -> None:
        fingerprint = self.grid.fingerprint(stage.name)
        mark = self.marks[stage.name] = Mark(words=[*stage.words], fingerprint=fingerprint, seconds=seconds)
        write_json(self.mark(stage.name), mark.model_dump(exclude_none=True))

    def _paces(self) -> dict[str, float]:
        """Seconds of a row of training, or of an evaluation, by template."""
        spent: dict[str, list[tuple[float, float]]] = {}
        for name in self.ended:
            mark, stage = self.marks[name], self.grid.stages[name]
            if mark is not None and mark.seconds is not None:
                spent.setdefault(stage.template, []).append((mark.seconds, stage.work))
        return {name: sum(one for one, _ in pairs) / sum(work for _, work in pairs) for name, pairs in spent.items()}

    def _line(self, running: Sequence[Running], jobs: int) -> str:
        seconds, complete = self.seconds_left(running)
        left = f"{'about' if complete else 'more than'} {format_seconds(seconds / jobs)} left"
        now = ", ".join(f"{item.stage.name} ({format_seconds(time.monotonic() - item.start)})" for item in running)
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{len(self.ended)} of {counted(len(self.grid.stages), 'stage')}{failed}, now {now or 'none'}, {left}"


def _stop(running: Sequence[Running]) -> None:
    """Ask stages to save and stop, and end those that do not."""
    for item in running:
        item.process.send_signal(SIGTERM)
    for item in running:
        try:
            item.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(item.process.pid, SIGKILL)
            item.process.wait()
