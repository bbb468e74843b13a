"""Progress on stderr: a line updated in place on a terminal, elsewhere a plain line every few seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from dimvl.callbacks import NamedProgress, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from dimvl.training.report import StepReport

LINE_EVERY = 5.0  # seconds between lines where there is no terminal
_shown = True


def show_progress(wanted: bool) -> None:
    """Choose whether this process shows progress."""
    global _shown
    _shown = wanted


def progress_is_shown() -> bool:
    """Return whether this process shows progress."""
    return _shown


@contextmanager
def progress(unit: str) -> Iterator[Progress]:
    """Show (done, total) on stderr with speed and time left: a bar on a terminal, elsewhere a line every few seconds.

    Items that are done at the first call do not count in the speed.
    """
    if not _shown:
        yield lambda done, total: None
        return
    speed = _Speed(unit)
    if not sys.stderr.isatty():
        with newest_line() as show:
            yield lambda done, total: show(f"{done} of {total} {unit}{speed.text(done, total)}", done == total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit + "{task.fields[speed]}"))
    with Bar(*columns, console=_terminal(), redirect_stdout=False) as bar:
        task = bar.add_task(unit, total=None, speed="")
        yield lambda done, total: bar.update(task, completed=done, total=total, speed=speed.text(done, total))


Report = Callable[["StepReport"], None]


@contextmanager
def training_progress() -> Iterator[tuple[Report, NamedProgress]]:
    """Show reports on stderr, and between them other work that takes time, as (what, done, total)."""
    with newest_line() as show:
        work = _work(lambda line: show(line, True), 0 if sys.stderr.isatty() else LINE_EVERY)
        yield lambda report: show(report.line(), report.step == report.steps), work


@contextmanager
def newest_line(every: float = LINE_EVERY) -> Iterator[Callable[[str, bool], None]]:
    """Show the newest of many lines on stderr, each given with whether it must be shown.

    A terminal shows them in one place; elsewhere are the first, one every few seconds, and those that must be shown.
    """
    if not _shown:
        yield lambda line, must: None
        return
    if sys.stderr.isatty():
        from rich.live import Live
        from rich.text import Text

        with Live(console=_terminal(), redirect_stdout=False) as live:
            yield lambda line, must: live.update(Text(line, overflow="fold", no_wrap=False))
        return
    due = 0.0

    def show(line: str, must: bool) -> None:
        nonlocal due
        if must or time.monotonic() >= due:
            due = time.monotonic() + every
            print(line, file=sys.stderr, flush=True)

    yield show


def _terminal() -> "Console":
    """The terminal of stderr; messages written meanwhile go above what is shown in place, and keep their lines.

    Stdout, where results go, stays as it is: it may be a file.
    """
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


def _work(show: Callable[[str], None], every: float) -> NamedProgress:
    """Show work and its speed once in `every` seconds; work that takes less time is not shown."""
    speed, before, due = _Speed(""), ("", 0), 0.0

    def report(what: str, done: int, total: int) -> None:
        nonlocal speed, before, due
        if what != before[0] or done <= before[1]:
            speed, due = _Speed(what.split()[0]), time.monotonic() + every
        before, line = (what, done), f"{done} of {total} {what}{speed.text(done, total)}"
        if time.monotonic() >= due:
            due = time.monotonic() + every
            show(line)

    return report


class _Speed:
    """Items of a unit per second since the first call, and an estimate of the time left."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._first: tuple[float, int] | None = None

    def text(self, done: int, total: int) -> str:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        seconds, new = now - self._first[0], done - self._first[1]
        if not new or not seconds:
            return ""
        left = "" if done == total else f", {timedelta(seconds=round((total - done) * seconds / new))} left"
        return f", {new / seconds:.1f} {self._unit}/s{left}"
