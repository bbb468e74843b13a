"""Progress on stderr: a line updated in place on a terminal, elsewhere a plain line every few seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dimvl.callbacks import NamedProgress, Progress

if TYPE_CHECKING:
    from dimvl.training.report import StepReport

LINE_EVERY = 5.0  # seconds between lines where there is no terminal


@contextmanager
def progress(unit: str) -> Iterator[Progress]:
    """Show (done, total) on stderr with speed and time left: a bar on a terminal, elsewhere a line every few seconds.

    Items that are done at the first call do not count in the speed.
    """
    speed = _Speed()
    if not sys.stderr.isatty():
        yield _lines(
            lambda done, total: f"{done} of {total} {unit}{speed.text(done, total)}", lambda done, total: done == total
        )
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit + "{task.fields[speed]}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(unit, total=None, speed="")
        yield lambda done, total: bar.update(task, completed=done, total=total, speed=speed.text(done, total))


Report = Callable[["StepReport"], None]


@contextmanager
def training_progress() -> Iterator[tuple[Report, NamedProgress]]:
    """Show reports on stderr, and between them other work that takes time, as (what, done, total).

    A line updated in place on a terminal, elsewhere a line every few seconds.
    """
    if not sys.stderr.isatty():
        show = _lines(lambda report: report.line(), lambda report: report.step == report.steps)
        yield show, _work(lambda line: print(line, file=sys.stderr, flush=True), LINE_EVERY)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True)) as live:
        yield lambda report: live.update(Text(report.line())), _work(lambda line: live.update(Text(line)), 0)


def _work(show: Callable[[str], None], every: float) -> NamedProgress:
    """Show work and its speed once in `every` seconds; work that takes less time is not shown."""
    speed, before, due = _Speed(), ("", 0), 0.0

    def report(what: str, done: int, total: int) -> None:
        nonlocal speed, before, due
        if what != before[0] or done <= before[1]:
            speed, due = _Speed(), time.monotonic() + every
        before, line = (what, done), f"{done} of {total} {what}{speed.text(done, total)}"
        if time.monotonic() >= due:
            due = time.monotonic() + every
            show(line)

    return report


class _Speed:
    """Items per second since the first call, and an estimate of the time left."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def text(self, done: int, total: int) -> str:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        seconds, new = now - self._first[0], done - self._first[1]
        if not new or not seconds:
            return ""
        left = "" if done == total else f", {timedelta(seconds=round((total - done) * seconds / new))} left"
        return f", {new / seconds:.1f}/s{left}"


def _lines(line: Callable[..., str], is_last: Callable[..., bool]) -> Callable[..., None]:
    """Print a line to stderr for the first report, for the last, and every few seconds between them."""
    due = 0.0

    def show(*report: Any) -> None:
        nonlocal due
        if time.monotonic() >= due or is_last(*report):
            due = time.monotonic() + LINE_EVERY
            print(line(*report), file=sys.stderr, flush=True)

    return show
