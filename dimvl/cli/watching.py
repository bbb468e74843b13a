"""The command `watch`."""

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dimvl.cli.app import app, input_folder, print_text

if TYPE_CHECKING:
    from dimvl.report.watching import View

INTERVAL = 2.0
"""Seconds between two looks at a run; more if a look takes long."""


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(parser=input_folder, help="Folder of a run.")],
    once: Annotated[bool, typer.Option("--once", help="Show the run as it is now, and exit.")] = False,
) -> None:
    """Show a run while it trains: progress, time left and curves.

    Ends when the run ends, with exit code 0 if it finished and 1 if it stopped or failed. Ctrl-C does not stop the run.
    Without a terminal, each new step is printed as a line.

    Example: dimvl watch runs/vqa
    """
    from dimvl.report.watching import look

    if once:
        _print(look(run))
        return
    try:
        view = _follow(run) if sys.stdout.isatty() else _follow_plainly(run)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(int(view.state != "finished"))


def _lines(view: "View") -> list[str]:
    from dimvl.report.watching import ASCII, BLOCKS

    width, height = shutil.get_terminal_size()
    unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
    return view.lines(width, height, BLOCKS if unicode else ASCII)


def _print(view: "View") -> None:
    for line in _lines(view):
        print_text(line)


def _follow(run: Path) -> "View":
    """Show the run in place until it ends."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from dimvl.report.watching import look

    with Live(console=Console(), auto_refresh=False, redirect_stdout=False) as live:
        while True:
            before = time.monotonic()
            view = look(run)
            live.update(Text("\n".join(_lines(view)), no_wrap=True), refresh=True)
            if view.state != "training":
                return view
            _wait(before)


def _follow_plainly(run: Path) -> "View":
    """Print a line for each new step until the run ends."""
    from dimvl.report.watching import look

    shown = None
    while True:
        before = time.monotonic()
        view = look(run)
        if shown != (now := (view.newest or {}).get("step")) or view.state != "training":
            print_text(view.summary())
        if view.state != "training":
            return view
        shown = now
        _wait(before)


def _wait(before: float) -> None:
    time.sleep(max(INTERVAL, 10 * (time.monotonic() - before)))
