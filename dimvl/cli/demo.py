"""The command `demo`."""

from pathlib import Path
from typing import Annotated

import typer

from dimvl.cli.app import any_path, app, input_file
from dimvl.errors import UserError


@app.command()
def demo(
    config: Annotated[
        Path | None, typer.Option(parser=input_file, help="YAML file such as configs/scenes/demo.yaml.")
    ] = None,
    out: Annotated[Path, typer.Option(parser=any_path, help="Folder to write.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Run a smaller demo, in under three minutes.")] = False,
) -> None:
    """Run the demo on synthetic scenes.

    Renders images, detects regions, pretrains, fine-tunes, scores and writes a report. Resumes an interrupted demo.

    Example: dimvl demo --out runs/demo
    """
    if quick and config is not None:
        raise UserError(f"--quick and --config {config} are different demos; remove one of them")
    from dimvl.demo.runner import run_demo

    run_demo(config, out, quick)
