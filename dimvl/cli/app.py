"""The typer application, and options shared by several commands."""

from pathlib import Path
from typing import Annotated

import typer

import dimvl

app = typer.Typer(
    name="dimvl",
    help="Vision-language models over image regions: from images to answers and captions.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dimvl {dimvl.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


Threads = Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0 uses torch's default.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Model = Annotated[str, typer.Option(help="Folder of an export, or the name of a model on the Hugging Face hub.")]
DetectorName = Annotated[
    str, typer.Option("--detector", help="scenes, a folder, or a detector of torchvision or the Hugging Face hub.")
]
DetectorWeights = Annotated[
    str | None,
    typer.Option(
        "--weights", help="For torchvision: a name of its weights, or a .pth or .safetensors file; default DEFAULT."
    ),
]
DetectorClasses = Annotated[
    Path | None,
    typer.Option("--classes", help="File of class names, one per line; needed for other than COCO classes."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="SECTION.KEY=VALUE", help="Values that override those of the file.")
]
Config = Annotated[Path, typer.Argument(help="Configuration (YAML file).")]


def set_threads(threads: int) -> None:
    """Set the number of torch's CPU threads; 0 leaves the default."""
    if threads:
        import torch

        torch.set_num_threads(threads)
