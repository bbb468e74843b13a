"""Pictures and features to region stores: scenes, extract, import, inspect, verify."""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from dimvl.cli.app import AsJson, DetectorClasses, DetectorName, DetectorWeights, Device, Threads, app, set_threads
from dimvl.errors import UserError
from dimvl.progress import progress

Dtype = Annotated[
    Literal["float16", "int8"],
    typer.Option(help="How features are kept; int8 takes half the space, see docs/stores.md."),
]
Part = Annotated[
    str | None,
    typer.Option(
        metavar="K/N", help="Take every N-th image from the K-th on: N processes, each with an OUT of its own."
    ),
]

TYPED = {"score_threshold": "threshold", "nms_threshold": "nms"}
"""Settings of a detector whose option has a shorter name."""


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    train: Annotated[int | None, typer.Option(help="Pictures to train on.")] = None,
    heldout: Annotated[int | None, typer.Option(help="Pictures of the held-out split.")] = None,
    compositional: Annotated[int | None, typer.Option(help="Pictures with unseen combinations.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the pictures in pixels.")] = None,
    min_objects: Annotated[int | None, typer.Option(help="Fewest objects of a scene.")] = None,
    max_objects: Annotated[int | None, typer.Option(help="Most objects of a scene.")] = None,
    noise: Annotated[float | None, typer.Option(help="Standard deviation of the pixel noise, of 255.")] = None,
    clutter: Annotated[int | None, typer.Option(help="Background marks in a picture.")] = None,
    max_overlap: Annotated[float | None, typer.Option(help="Most of an object that others may cover.")] = None,
    captions_per_image: Annotated[int | None, typer.Option(help="Captions of each picture.")] = None,
    questions_per_image: Annotated[int | None, typer.Option(help="Questions on each picture.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes.")] = 1,
) -> None:
    """Write synthetic scenes.

    Pictures with COCO boxes, COCO captions and VQA v2 questions; goes on where it stopped.

    Example: dimvl scenes data/scenes --train 3000 --seed 1
    """
    given = {name: value for name, value in locals().items() if name not in ("out", "workers") and value is not None}
    from dimvl.data.scenes import SceneOptions, write_scenes

    with _named_as_typed(given):
        options = SceneOptions(**given)
    with progress("pictures") as show:
        write_scenes(out, options, show, workers)
    print(f"synthetic scenes written to {out}")


@app.command()
def extract(
    images: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    out: Annotated[Path, typer.Argument(help="Region store to write or to go on with.")],
    coco: Annotated[
        Path | None, typer.Option(help="COCO file that lists the pictures; its ids name the images, else file names.")
    ] = None,
    detector: DetectorName = "scenes",
    weights: DetectorWeights = None,
    classes: DetectorClasses = None,
    boxes: Annotated[
        Path | None, typer.Option(help="COCO file of boxes to describe in place of the detector's own.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Least score of a region.")] = None,
    top_k: Annotated[int | None, typer.Option(help="So many best regions of each picture, at any score.")] = None,
    min_regions: Annotated[int | None, typer.Option(help="Fewest regions, filled up from below the threshold.")] = None,
    max_regions: Annotated[int | None, typer.Option(help="Most regions of a picture.")] = None,
    nms: Annotated[float | None, typer.Option(help="Overlap above which the worse of a class goes; 1: none.")] = None,
    whole_image: Annotated[bool, typer.Option("--whole-image", help="Append the whole image as a region.")] = False,
    shortest_side: Annotated[int | None, typer.Option(help="Pixels that pictures are scaled to.")] = None,
    longest_side: Annotated[int | None, typer.Option(help="Most pixels of a scaled picture's longer side.")] = None,
    dtype: Dtype = "float16",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 16,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Threads that decode pictures ahead.")] = 2,
    part: Part = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Turn pictures into a region store.

    Goes on where it stopped. A picture that cannot be read is named and skipped; then the exit code is 1.

    Example: dimvl extract data/scenes/train/images data/regions --coco data/scenes/train/instances.json
    """
    limits = {"top_k": top_k, "min_regions": min_regions, "max_regions": max_regions}
    sizes = {"shortest_side": shortest_side, "longest_side": longest_side, "whole_image": whole_image or None}
    options = _detector_options({"threshold": threshold, "nms": nms, **limits, **sizes}, boxes)
    from dimvl.pretrained import choose_device
    from dimvl.regions.detectors import load_detector
    from dimvl.regions.detectors.given_boxes import GivenBoxes
    from dimvl.regions.extract import extract as extract_regions
    from dimvl.regions.extract import images_of_coco, images_of_folder
    from dimvl.regions.store.writer import RegionStoreWriter

    set_threads(threads)
    _tell_sizes()
    listing, chosen = coco or boxes, _part(part)
    pictures = (images_of_folder(images) if listing is None else images_of_coco(listing, images))[chosen]
    given = None if boxes is None else GivenBoxes.read(boxes)
    with _named_as_typed(options):
        found = load_detector(detector, options, weights=weights, classes=classes).to(choose_device(device))
    extractor = found.extractor if given is None else given.extractor(found)
    with RegionStoreWriter(out, extractor, feature_dtype=dtype) as writer, progress("pictures") as show:
        report = extract_regions(
            pictures, found, writer, batch_size=batch_size, workers=workers, progress=show, boxes=given
        )
    print(f"{report.done} pictures done, {report.already} already there, {len(report.skipped)} skipped: {out}")
    if report.skipped:
        raise typer.Exit(1)


@contextmanager
def _named_as_typed(options: Iterable[str]) -> Iterator[None]:
    """Let a mistake name options as they are typed."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for name in options:
            text = re.sub(rf"\b{name}\b", f"--{TYPED.get(name, name).replace('_', '-')}", text)
        raise UserError(text) from None


def _tell_sizes() -> None:
    """Let the estimate of a store's size be told before it is written."""
    logging.getLogger("dimvl.regions.store.format").setLevel(logging.INFO)


def _part(text: str | None) -> slice:
    """Turn K/N into a slice.

    Raises:
        UserError: it is none.

    """
    if text is None:
        return slice(0, None, 1)
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--part {text} is no part; give K/N with K from 1 to N, such as 2/4")
    return slice(int(found[1]) - 1, None, int(found[2]))


def _detector_options(given: dict[str, float | None], boxes: Path | None) -> dict[str, float]:
    """Turn the options of `extract` into settings of a detector; one that would be ignored is refused."""
    options = {name: value for name, value in given.items() if value is not None}
    clashing = {"threshold", "min_regions", "max_regions"} & set(options)
    if "top_k" in options and clashing:
        raise UserError(f"--top-k fixes the number of regions; leave out --{min(clashing).replace('_', '-')}")
    if boxes is not None and (useless := {"threshold", "top_k", "min_regions", "max_regions", "nms"} & set(options)):
        raise UserError(f"--boxes gives the regions; leave out --{min(useless).replace('_', '-')}")
    if "top_k" in options:
        number = options.pop("top_k")
        if number < 1:
            raise UserError(f"--top-k is {number}; give 1 or more")
        options |= {"threshold": 0.0, "min_regions": number, "max_regions": number}
    names = {typed: name for name, typed in TYPED.items()}
    return {names.get(name, name): value for name, value in options.items()}


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="File or folder of region features that others made.")],
    out: Annotated[Path, typer.Argument(help="Region store to write or to go on with.")],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="lxmert-tsv, oscar-tsv, npz, uniter-npz, uniter-lmdb or vlp-hdf5; by default it is recognised.",
        ),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line; without them there are no classes and no tags.")
    ] = None,
    attributes: Annotated[Path | None, typer.Option(help="Attribute names, one a line.")] = None,
    extractor: Annotated[
        str | None,
        typer.Option(help="Name of who made the features; equal names say comparable. By default SOURCE's own name."),
    ] = None,
    sizes: Annotated[
        Path | None, typer.Option(help="COCO file with the pictures' sizes, for formats that do not tell them.")
    ] = None,
    coco_ids: Annotated[
        bool, typer.Option("--coco-ids", help="Name images by the number at the end of their ids, as COCO and VQA do.")
    ] = False,
    part: Part = None,
    dtype: Dtype = "float16",
) -> None:
    """Turn region features that others made into a region store.

    Goes on where it stopped. A bad image is named and skipped; then the exit code is 1.

    Example: dimvl import train2014_obj36.tsv data/regions --classes objects.txt --extractor bottom-up-36
    """
    from dimvl.regions.importers.run import import_source, open_source, part_of

    _tell_sizes()
    chosen = _part(part)
    opened, assembler = open_source(
        source, format_name, classes=classes, attributes=attributes, sizes=sizes, coco_ids=coco_ids
    )
    with progress(opened.unit) as show:
        report = import_source(part_of(opened, chosen), assembler, out, extractor or source.resolve().stem, show, dtype)
    print(f"{report.done} images done, {report.already} already there, {report.skipped} skipped: {out}")
    if report.skipped:
        raise typer.Exit(1)


@app.command()
def inspect(store: Annotated[Path, typer.Argument(help="Region store.")], as_json: AsJson = False) -> None:
    """Tell what a region store holds.

    Counts, sizes, extractor, vocabulary, and how regions per image and scores are spread.

    Example: dimvl inspect data/regions
    """
    from dataclasses import asdict

    from dimvl.regions.store.summary import bar_chart, summarise

    summary = summarise(store)
    extractor = summary.extractor
    facts = asdict(summary) | {
        "extractor": extractor.name,
        "fingerprint": extractor.fingerprint,
        "parameters": dict(extractor.parameters),
        "feature_width": extractor.feature_width,
        "classes": list(extractor.classes),
        "attributes": list(extractor.attributes),
    }
    histograms = ("regions_per_image", "top_scores")
    if as_json:
        for name in histograms:
            facts[name] = [part._asdict() for part in getattr(summary, name)]
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        if name in histograms:
            continue
        if isinstance(value, dict):
            value = [f"{key}={number}" for key, number in value.items()]
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    for name in histograms:
        print("\n".join([f"{name}:", *bar_chart(getattr(summary, name))]))


@app.command()
def verify(store: Annotated[Path, typer.Argument(help="Region store.")]) -> None:
    """Compare a region store with its checksums.

    Names what is damaged and the images that it costs; then the exit code is 1.

    Example: dimvl verify data/regions
    """
    from dimvl.regions.store import RegionStore
    from dimvl.regions.store.check import verify_store

    with progress("shards") as show:
        problems = verify_store(store, show)
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)
    print(f"{store} is sound: {len(RegionStore(store)):,} images")
