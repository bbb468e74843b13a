"""The demo."""

from pathlib import Path
from typing import Annotated

import typer

from dimvl.cli.app import Threads, app, set_threads
from dimvl.errors import UserError


@app.command()
def demo(
    config: Annotated[Path | None, typer.Option(help="YAML file of another demo than the shipped one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A smaller one in under three minutes.")] = False,
    threads: Threads = 0,
) -> None:
    """Run the demo on synthetic scenes.

    Pictures, detector, pretraining, fine-tuning, scores, report; goes on where it stopped.

    Example: dimvl demo --out runs/demo
    """
    if quick and config is not None:
        raise UserError(f"--quick is a demo of its own; leave it or --config {config} out")
    from dimvl.demo.runner import run_demo

    set_threads(threads)
    run_demo(config, out, quick)
