"""The `profile` command: where the time of a training step goes."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from dimvl.cli.app import AsJson, Config, Overrides, Threads, any_path, app, print_text
from dimvl.progress import progress

WIDTH = 110  # of the table when stdout is not a terminal


@app.command("profile")
def profile_command(
    config: Config,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to profile.")] = 5,
    warmup: Annotated[int, typer.Option(min=1, help="Warm-up steps before the profiled steps.")] = 2,
    out: Annotated[
        Path | None,
        typer.Option(parser=any_path, help="Folder for trace.json and profile.json; by default a temporary one."),
    ] = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Show where the time of a training step goes.

    Runs a few real steps of a pretraining or fine-tuning configuration under torch's profiler, without touching the
    run's folder. Open trace.json in https://ui.perfetto.dev or chrome://tracing.

    Example: dimvl profile pretrain.yaml --steps 10 training.precision=bf16
    """
    from dimvl.tasks import load_config

    loaded = load_config(config, [*(overrides or []), *([f"training.threads={threads}"] if threads else [])])
    loaded.check_inputs()
    from rich.console import Console

    from dimvl.files import write_json
    from dimvl.profiling import profile
    from dimvl.profiling.measure import TRACE
    from dimvl.profiling.table import as_values, table, title

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages when the profiler starts and stops
    folder = out or Path(tempfile.gettempdir()) / f"dimvl-profile-{os.getpid()}"
    with progress("steps") as show:
        found = profile(loaded, folder, steps=steps, warmup=warmup, progress=show)
    write_json(folder / "profile.json", as_values(found))
    if as_json:
        print(json.dumps(as_values(found)))
    else:
        console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
        for line in title(found):
            console.print(line, soft_wrap=True)
        console.print(table(found))
    print_text(f"{folder / TRACE}: open it in https://ui.perfetto.dev or chrome://tracing", error=True)
