"""The command `report`."""

from pathlib import Path
from typing import Annotated

import typer

from dimvl.cli.app import any_path, app, input_folder, print_text


@app.command()
def report(
    run: Annotated[Path, typer.Argument(parser=input_folder, help="Folder of a run.")],
    out: Annotated[
        Path | None, typer.Option(parser=any_path, help="HTML file to write; default RUN/report.html.")
    ] = None,
) -> None:
    """Write a page about a run: learning curves, validation scores, sample predictions.

    The page is one self-contained HTML file. Works while the run trains; run it again for newer numbers.

    Example: dimvl report runs/vqa
    """
    from dimvl.report.run import write_run_report

    print_text(f"report: {write_run_report(run, out)}")
