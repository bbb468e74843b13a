"""The typer application, and options shared by several commands."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import dimvl
from dimvl.errors import UserError
from dimvl.files import existing, existing_file, existing_folder, folder_or_hub_name, is_url, local_path, matching
from dimvl.progress import show_progress
from dimvl.showing import visible

app = typer.Typer(
    name="dimvl",
    help="Vision-language models over image regions: from images to answers and captions.",
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
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Show no progress, only results, warnings and errors; goes before the command."
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Show more messages, and where in the code an error is; goes before the command."
        ),
    ] = False,
) -> None:
    if quiet and verbose:
        raise UserError("--quiet and --verbose contradict each other; omit one of them")
    show_progress(not quiet)
    logging.disable(logging.INFO if quiet else logging.NOTSET)
    if verbose:
        logging.getLogger("dimvl").setLevel(logging.DEBUG)


class PathParser:
    """Turns an argument into a path, and refuses one that is not what the command needs before torch is imported."""

    def __init__(self, name: str, check: Callable[[Path], Path] = lambda path: path) -> None:
        self.__name__ = name  # what help shows
        self.check = check

    def __call__(self, text: str | Path) -> Path:
        """Parse an argument; raises `UserError`."""
        return self.check(local_path(text))


def _config_file(path: Path) -> Path:
    if "=" in str(path) and not path.exists():
        raise UserError(f"{path} is an override; give the configuration, a YAML file, before it")
    return existing_file(path)


def _image_source(path: Path) -> Path:
    matching(path)
    return path


any_path = PathParser("path")
input_file = PathParser("file", existing_file)


class _ImageParser(PathParser):
    """Turns an argument into a path, or leaves it an address of the web."""

    def __call__(self, text: str | Path) -> Any:
        return text if is_url(text) else super().__call__(text)


image_path = _ImageParser("image")
image_file = _ImageParser("image", existing_file)
image_or_folder = _ImageParser("image", existing)
input_folder = PathParser("folder", existing_folder)
file_or_folder = PathParser("path", existing)
image_source = PathParser("source", _image_source)
config_file = PathParser("file", _config_file)


def some_exist(paths: Sequence[Path]) -> Sequence[Path]:
    """Refuse a list of paths of which none exists; a command that takes many skips and names the others."""
    if not any(map(os.path.exists, paths)):
        existing(paths[0])
    return paths


def model_name(text: str) -> str:
    """Parse the folder of an export, or a name on the hub."""
    return str(folder_or_hub_name(text, "an export") or text)


def file_or_name(text: str) -> str:
    """Parse something that may be a name or a path; only `~` shows which."""
    return str(local_path(text)) if text.startswith("~") else text


Threads = Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0 uses torch's default.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Model = Annotated[
    str,
    typer.Option(
        parser=model_name, metavar="MODEL", help="Folder of an export, or the name of a model on the Hugging Face hub."
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        parser=model_name,
        metavar="ADAPTER",
        help="Folder of an adapter of MODEL, or its name on the hub; the model then does the adapter's task.",
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        parser=file_or_name,
        metavar="NAME",
        help="Source of the regions: grid, scenes, a folder, or a detector from torchvision or the Hugging Face hub.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        parser=file_or_name,
        metavar="NAME",
        help="For a detector of torchvision: the name of its weights, or a .pth or .safetensors file; default DEFAULT.",
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        parser=input_file, help="File of class names, one per line; needed unless the classes are those of COCO."
    ),
]
Features = Annotated[
    str | None,
    typer.Option(
        parser=file_or_name,
        metavar="BACKBONE",
        help="Backbone for the features of regions: efficientnet_lite2, a folder, or a network from torchvision or the "
        "Hugging Face hub. By default the detector's own features.",
    ),
]
FeaturesWeights = Annotated[
    str | None,
    typer.Option(
        parser=file_or_name,
        metavar="NAME",
        help="For a backbone: a file of weights, or, for one of torchvision, the name of its weights.",
    ),
]
VocabularyFile = Annotated[
    Path | None,
    typer.Option(
        "--vocabulary",
        parser=input_file,
        help="File of names, one per line: an open-vocabulary detector looks for these, or --names-by chooses one.",
    ),
]
NamesBy = Annotated[
    str | None,
    typer.Option(
        parser=file_or_name,
        metavar="MODEL",
        help="Name regions with the nearest names in --vocabulary, by the text tower of this CLIP or SigLIP model, "
        "which must also be the model of --features.",
    ),
]
Concepts = Annotated[
    Path | None,
    typer.Option(
        parser=input_folder,
        help="Name regions with learned concepts: a folder that `dimvl concepts` wrote. Its words become the "
        "classes of regions, or their attributes if they already have classes.",
    ),
]
PARTS = ("weights", "classes", "features", "features_weights", "vocabulary", "names_by", "concepts")
"""The options above beside --where, as `load_extractor` takes them."""
StatementsFile = Annotated[
    Path | None,
    typer.Option(
        "--statements",
        parser=input_file,
        help="YAML or JSON file of rules by which a pretrained model answers without question labels, see "
        "docs/scoring.md.",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="SECTION.KEY=VALUE", help="Values that override those of the file.")
]
Config = Annotated[Path, typer.Argument(parser=config_file, help="Configuration (YAML file).")]


Beams = Annotated[int | None, typer.Option(min=1, max=100, help="Beam width for captions; 1 is greedy. Default 3.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Maximum tokens of a caption, including its end. Default: as in training."),
]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        min=-10,
        max=10,
        help="Captions are compared by log-probability / tokens ** PENALTY; above 1 favours long ones. Default 1.",
    ),
]
BlockNgrams = Annotated[
    int | None,
    typer.Option(min=0, max=100, help="No sequence of this many tokens may repeat in a caption. Default 0: no limit."),
]


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given; the others keep the defaults of the library."""
    return {name: value for name, value in options.items() if value is not None}


def print_text(text: str, error: bool = False) -> None:
    """Print a line that may hold text from outside, to stdout or stderr; what a terminal obeys becomes visible.

    JSON is printed by `print`, since it must stay exact and escapes such characters itself.
    """
    print(visible(text), file=sys.stderr if error else sys.stdout, flush=True)


def set_threads(threads: int) -> None:
    """Set the number of torch's CPU threads; 0 leaves the default."""
    if threads:
        import torch

        torch.set_num_threads(threads)
