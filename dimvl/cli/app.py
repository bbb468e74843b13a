"""The typer application, and the options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

import dimvl

app = typer.Typer(
    name="dimvl",
    help="Vision-language models over image regions: raw pictures in, answers and captions out.",
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


Threads = Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0 leaves torch's own choice.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]
Model = Annotated[str, typer.Option(help="Folder of an export, or the name of a model on the Hugging Face hub.")]
DetectorName = Annotated[
    str, typer.Option("--detector", help="scenes, a folder, or a name of torchvision or of the Hugging Face hub.")
]
DetectorWeights = Annotated[
    str | None,
    typer.Option("--weights", help="For torchvision: a weight name, or a file (.pth, .safetensors); default DEFAULT."),
]
DetectorClasses = Annotated[
    Path | None, typer.Option("--classes", help="Class names of a file of weights, one a line; COCO's need none.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values that win over those of the file.")
]
Config = Annotated[Path, typer.Argument(help="YAML file.")]


def set_threads(threads: int) -> None:
    """Fix the number of CPU threads of torch, or leave it with 0."""
    if threads:
        import torch

        torch.set_num_threads(threads)
