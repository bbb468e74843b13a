"""The commands concepts and name."""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from dimvl.cli.app import Config, Overrides, Threads, any_path, app, input_folder, print_text, set_threads
from dimvl.progress import progress
from dimvl.showing import counted


@app.command()
def concepts(config: Config, overrides: Overrides = None, threads: Threads = 0) -> None:
    """Learn words for regions from captions, without boxes.

    Needs the regions and the captions of some images. Takes minutes, and starts over if interrupted. `dimvl name`
    and `dimvl extract --concepts` use the result.

    Example: dimvl concepts concepts.yaml words=500
    """
    from dimvl.concepts.config import ConceptConfig
    from dimvl.config import read_keys

    settings = read_keys(ConceptConfig, config, overrides or [])
    settings.check_inputs()
    from dimvl.concepts.run import train_concepts
    from dimvl.trained_model import choose_device

    set_threads(threads)
    logging.getLogger("dimvl.data.matching").setLevel(logging.INFO)
    with progress("steps") as show:
        report = train_concepts(settings, choose_device(settings.training.device), show)
    for line in _lines(report):
        print_text(line)
    print_text(f"trained: {settings.output}")
    if dropped := report["captions_dropped"]:
        print_text(f"left out: {counted(dropped, 'caption')} (image not in the store)", error=True)


def _lines(report: dict[str, Any]) -> list[str]:
    """Describe what was trained and measured."""
    words = ", ".join(counted(number, part) for part, number in report["words"].items())
    lines = [f"{words}, from {counted(report['captions'], 'caption')} of {counted(report['images'], 'image')}"]
    for name, groups in report["average_precision"].items():
        means = ", ".join(f"{group} {value['mean']:.3f}{_interval(**value)}" for group, value in groups.items())
        lines.append(f"mean average precision, {name.replace('_', '-')} images: {means}")
    if tags := report.get("tags"):
        lines.append(
            f"tags with a score of at least {tags['threshold']}: {tags['per_image']:.1f} an image, precision "
            f"{tags['precision']:.3f}, recall {tags['recall']:.3f}"
        )
    return lines


def _interval(mean: float, low: float, high: float, words: int) -> str:
    return f" ({low:.3f} to {high:.3f})" if low < high else ""


@app.command()
def name(
    store: Annotated[Path, typer.Argument(parser=input_folder, help="Region store.")],
    concepts: Annotated[Path, typer.Argument(parser=input_folder, help="Folder that `dimvl concepts` wrote.")],
    out: Annotated[Path, typer.Argument(parser=any_path, help="Region store to create or continue.")],
    folds: Annotated[
        bool,
        typer.Option(
            "--folds",
            help="For images that the concepts were trained on, use the fold model (training.folds) that did not see "
            "them.",
        ),
    ] = False,
    threads: Threads = 0,
) -> None:
    """Name the regions of a store with learned concepts.

    Writes a new store with the same regions. The words become their classes if they have none, else their attributes.
    Resumes if interrupted.

    Example: dimvl name stores/photos concepts/photos stores/photos-named
    """
    from dimvl.concepts.renaming import name_store, named_extractor
    from dimvl.regions.naming.folds import Folds, warn_if_seen
    from dimvl.regions.naming.load import load_namer
    from dimvl.regions.store import RegionStore
    from dimvl.regions.store.writer import RegionStoreWriter

    set_threads(threads)
    opened, namer = RegionStore(store, check=True), load_namer(concepts)
    others = Folds.load(concepts) if folds else None
    if not folds:
        warn_if_seen(concepts, map(opened.image_id, range(len(opened))), store, "use --folds")
    extractor = named_extractor(opened, namer, concepts, held_out=folds)
    dtype = opened.folders[0].manifest.feature_dtype
    with RegionStoreWriter(out, extractor, feature_dtype=dtype) as writer, progress("images") as show:
        done, already = name_store(opened, namer, writer, others, show)
    print_text(f"{counted(done, 'image')} done, {already} already there: {out}")
