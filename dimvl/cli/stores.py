"""Images and features to region stores: scenes, extract, import, inspect, verify."""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from dimvl.cli.app import (
    PARTS,
    AsJson,
    Classes,
    Concepts,
    Device,
    Features,
    FeaturesWeights,
    NamesBy,
    Threads,
    VocabularyFile,
    Weights,
    Where,
    any_path,
    app,
    file_or_folder,
    image_source,
    input_file,
    input_folder,
    print_text,
)
from dimvl.cli.sharing import (
    CaptionField,
    CaptionsOut,
    IdColumn,
    ImageColumn,
    PartOption,
    Share,
    parsed_part,
    set_resources,
)
from dimvl.errors import UserError
from dimvl.progress import progress
from dimvl.showing import counted

Dtype = Annotated[
    Literal["float16", "int8"],
    typer.Option(help="Type of the stored features; int8 takes half the space, see docs/stores.md."),
]

SHOWN = 8
"""Names of classes or attributes that `inspect` prints."""

TYPED = {"score_threshold": "threshold", "nms_threshold": "nms"}
"""Settings of a detector whose option has a shorter name."""


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(parser=any_path, help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    train: Annotated[int, typer.Option(help="Training images.")] = 3000,
    heldout: Annotated[int, typer.Option(help="Images of the held-out split.")] = 300,
    compositional: Annotated[int, typer.Option(help="Images with unseen shape-colour pairs.")] = 300,
    image_size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 160,
    min_objects: Annotated[int, typer.Option(help="Minimum number of objects per scene.")] = 2,
    max_objects: Annotated[int, typer.Option(help="Maximum number of objects per scene.")] = 5,
    noise: Annotated[float, typer.Option(help="Standard deviation of pixel noise, from 0 to 255.")] = 5.0,
    clutter: Annotated[int, typer.Option(help="Background marks per image.")] = 8,
    max_overlap: Annotated[float, typer.Option(help="Maximum share of an object that others cover.")] = 0.3,
    captions_per_image: Annotated[int, typer.Option(help="Captions per image.")] = 5,
    questions_per_image: Annotated[int, typer.Option(help="Questions per image.")] = 10,
    statements_per_image: Annotated[
        int, typer.Option(help="True or false statements about two or three images, in groups of four.")
    ] = 0,
    phrases_per_image: Annotated[int, typer.Option(help="Phrases that describe one object, with its box.")] = 0,
    images_per_story: Annotated[
        int, typer.Option(help="Write one story, with its own images, per this many images; 0 writes none.")
    ] = 0,
    noisy_captions: Annotated[
        float, typer.Option(help="Also write a copy of the captions in which this share is noisy, in one of four ways.")
    ] = 0.0,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Number of processes.")] = 1,
) -> None:
    """Write synthetic scenes.

    Writes images with COCO boxes, COCO captions and VQA v2 questions, and on request statements, phrases, stories and
    noisy captions as JSON lines. Resumes if interrupted.

    Example: dimvl scenes data/scenes --train 3000 --seed 1
    """
    given = {name: value for name, value in locals().items() if name not in ("out", "workers")}
    from dimvl.data.scenes import SceneOptions, write_scenes

    with _named_as_typed(given):
        options = SceneOptions(**given)
    with progress("images") as show:
        write_scenes(out, options, show, workers)
    print_text(f"synthetic scenes written to {out}")


@app.command()
def extract(
    images: Annotated[
        Path,
        typer.Argument(
            parser=image_source,
            help="Folder of images; or shards (.tar of WebDataset, .parquet): a file, a folder, or a quoted pattern.",
        ),
    ],
    out: Annotated[Path, typer.Argument(parser=any_path, help="Region store to create or continue.")],
    coco: Annotated[
        Path | None,
        typer.Option(
            parser=input_file, help="COCO file that lists the images and their ids; by default file names are ids."
        ),
    ] = None,
    where: Where = None,
    weights: Weights = None,
    classes: Classes = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            parser=input_file,
            help="COCO file of boxes to describe instead of the detector's own, or in addition to a grid.",
        ),
    ] = None,
    grid: Annotated[
        int | None, typer.Option(min=1, max=64, help="Number of cells per side: G gives G x G cells. Default 7.")
    ] = None,
    features: Features = None,
    features_weights: FeaturesWeights = None,
    features_side: Annotated[
        int | None, typer.Option(help="Scale both sides of images to this many pixels for --features.")
    ] = None,
    vocabulary: VocabularyFile = None,
    names_by: NamesBy = None,
    concepts: Concepts = None,
    threshold: Annotated[float | None, typer.Option(help="Minimum score of a region.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep this many highest-scoring regions per image.")] = None,
    min_regions: Annotated[
        int | None,
        typer.Option(help="Minimum number of regions per image, if needed with scores below the threshold."),
    ] = None,
    max_regions: Annotated[int | None, typer.Option(help="Maximum number of regions per image.")] = None,
    nms: Annotated[
        float | None, typer.Option(help="IoU above which the lower-scoring region of a class is dropped; 1: never.")
    ] = None,
    whole_image: Annotated[
        bool, typer.Option("--whole-image", help="Append the whole image as a region; a grid always does.")
    ] = False,
    shortest_side: Annotated[
        int | None, typer.Option(help="Scale the shorter side of images to this many pixels.")
    ] = None,
    longest_side: Annotated[int | None, typer.Option(help="Maximum pixels of a scaled image's longer side.")] = None,
    dtype: Dtype = "float16",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 16,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Threads that decode images ahead.")] = 2,
    id_column: IdColumn = None,
    image_column: ImageColumn = None,
    captions_out: CaptionsOut = None,
    caption_field: CaptionField = None,
    part: PartOption = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Turn images into a region store.

    Resumes if interrupted. Images that cannot be read are named and skipped. The exit code is 1 if any are skipped,
    or if IMAGES has further images that are not used, such as those in subfolders. With several processes (torchrun,
    SLURM), each writes OUT.part-K-of-N; see `dimvl join`.

    Example: dimvl extract photos stores/photos --where grid --features efficientnet_lite2
    """
    parts = {name: value for name, value in locals().items() if name in PARTS}
    if where is None and boxes is not None and features is not None:
        where = "boxes"
    if where is None:
        raise UserError(
            "--where is missing; give grid, fasterrcnn_resnet50_fpn_v2 or another detector of torchvision, the "
            "owner/name of one on the Hugging Face hub, the folder of a detector, or scenes for images of `dimvl "
            "scenes`; with --boxes, --features is enough"
        )
    limits = {"top_k": top_k, "min_regions": min_regions, "max_regions": max_regions}
    sizes = {"shortest_side": shortest_side, "longest_side": longest_side, "whole_image": whole_image or None}
    given_options = {"threshold": threshold, "nms": nms, "grid": grid, "features_side": features_side}
    options = _detector_options({**given_options, **limits, **sizes}, boxes)
    from dimvl.regions.detectors.given_boxes import GivenBoxes
    from dimvl.regions.extract import extract as extract_regions
    from dimvl.regions.extractors.load import load_extractor
    from dimvl.regions.naming.folds import warn_if_seen
    from dimvl.regions.sources.opening import open_images
    from dimvl.regions.store.writer import RegionStoreWriter
    from dimvl.trained_model import choose_device

    source = open_images(images, coco, boxes, image_column=image_column, id_column=id_column)
    share = Share(source, out, part, captions_out, caption_field)
    set_resources(share.launched, threads)
    _log_estimates()
    given = None if boxes is None else GivenBoxes.read(boxes)
    with _named_as_typed(options.keys() - {"grid"}):  # names of extractors have the word too; typer checks its range
        found = load_extractor(where, options, **parts).to(choose_device(device))
        found.for_prediction()
    extractor = found.extractor if given is None else given.extractor(found)
    with RegionStoreWriter(share.out, extractor, feature_dtype=dtype) as writer, share.progress() as show:
        report = extract_regions(
            share.source, found, writer, batch_size=batch_size, workers=workers, progress=show, boxes=given
        )
    if concepts is not None:
        remedy = "extract without --concepts, and then use `dimvl name --folds`"
        warn_if_seen(Path(concepts), writer.contents, share.out, remedy)
    passed = share.source.passed
    if str(passed):
        print_text(str(passed))
    left_out = share.write_captions(writer.contents) or passed.left_out
    _finish(report.done, report.already, len(report.skipped), share.out, left_out)


def _finish(done: int, already: int, skipped: int, out: Path, left_out: bool = False) -> None:
    print_text(f"{counted(done, 'image')} done, {already} already there, {skipped} skipped: {out}")
    if skipped or left_out:
        raise typer.Exit(1)


@contextmanager
def _named_as_typed(options: Iterable[str]) -> Iterator[None]:
    """Make an error name options as they are typed."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for name in options:
            text = re.sub(rf"\b{name}\b", f"--{TYPED.get(name, name).replace('_', '-')}", text)
        raise UserError(text) from None


def _log_estimates() -> None:
    """Show the estimated size of a store before it is written."""
    logging.getLogger("dimvl.regions.store.writer").setLevel(logging.INFO)


def _detector_options(given: dict[str, float | None], boxes: Path | None) -> dict[str, float]:
    """Turn the options of `extract` into settings of a detector; options that would be ignored are errors."""
    options = {name: value for name, value in given.items() if value is not None}
    clashing = {"threshold", "min_regions", "max_regions"} & set(options)
    if "top_k" in options and clashing:
        raise UserError(f"--top-k sets the number of regions; omit --{min(clashing).replace('_', '-')}")
    if boxes is not None and (useless := {"threshold", "top_k", "min_regions", "max_regions", "nms"} & set(options)):
        raise UserError(f"--boxes sets the regions; omit --{min(useless).replace('_', '-')}")
    if "top_k" in options:
        number = options.pop("top_k")
        if number < 1:
            raise UserError(f"--top-k is {number}; give 1 or more")
        options |= {"threshold": 0.0, "min_regions": number, "max_regions": number}
    names = {typed: name for name, typed in TYPED.items()}
    return {names.get(name, name): value for name, value in options.items()}


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(parser=file_or_folder, help="File or folder of region features from another project.")
    ],
    out: Annotated[Path, typer.Argument(parser=any_path, help="Region store to create or continue.")],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="lxmert-tsv, oscar-tsv, npz, uniter-npz, uniter-lmdb or vlp-hdf5; recognised if omitted.",
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(parser=input_file, help="File of class names, one per line; without it, no classes and no tags."),
    ] = None,
    attributes: Annotated[
        Path | None, typer.Option(parser=input_file, help="File of attribute names, one per line.")
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(help="Extractor's name; stores with the same name may be combined. By default SOURCE's name."),
    ] = None,
    sizes: Annotated[
        Path | None,
        typer.Option(parser=input_file, help="COCO file with the sizes of the images, for formats without them."),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(help="How images are found in --sizes: id, file_name or number; by default all must agree."),
    ] = None,
    coco_ids: Annotated[
        bool, typer.Option("--coco-ids", help="Use only the number at the end of each image id, as in COCO and VQA.")
    ] = False,
    part: PartOption = None,
    dtype: Dtype = "float16",
) -> None:
    """Turn region features from another project into a region store.

    Resumes if interrupted. Bad images are named and skipped; then the exit code is 1. Prints what the features
    are like, and what was passed over.

    Example: dimvl import train2014_obj36.tsv data/regions --classes objects.txt --extractor bottom-up-36
    """
    from dimvl.regions.importers.run import import_source, open_source, part_of

    _log_estimates()
    chosen = slice(0, None, 1) if part is None else parsed_part(part).slice
    opened, assembler = open_source(
        source, format_name, classes=classes, attributes=attributes, sizes=sizes, match=match, coco_ids=coco_ids
    )
    with progress(opened.unit) as show:
        report = import_source(part_of(opened, chosen), assembler, out, extractor or source.resolve().stem, show, dtype)
    print_text(str(report.facts))
    if report.passed_over:
        print_text(f"passed over: {'; '.join(report.passed_over)}")
    _finish(report.done, report.already, report.skipped, out, left_out=bool(report.left_out))


@app.command()
def join(
    out: Annotated[Path, typer.Argument(parser=any_path, help="Region store to create.")],
    stores: Annotated[
        list[Path] | None,
        typer.Argument(parser=input_folder, metavar="[STORE]...", help="Stores; by default all OUT.part-K-of-N."),
    ] = None,
) -> None:
    """Combine several region stores into one.

    The stores must be complete and have the same extractor; they are not changed. Shards are linked, or copied if OUT
    is on another file system. Images that several stores have with the same content are written once and counted.

    Example: dimvl join stores/train
    """
    from dimvl.regions.parts import check_complete, parts_of
    from dimvl.regions.store.join import join_stores

    if stores:
        check_complete(stores)
    paths = stores or parts_of(out)
    with progress("shards") as show:
        report = join_stores(out, paths, show)
    print_text(
        f"{counted(report.images, 'image')} of {counted(len(paths), 'store')} joined, {report.repeated} repeated: {out}"
    )


@app.command()
def inspect(
    store: Annotated[Path, typer.Argument(parser=input_folder, help="Region store.")], as_json: AsJson = False
) -> None:
    """Show what a region store contains.

    Prints counts, sizes, extractor, vocabulary, and the distributions of regions per image and of scores.

    Example: dimvl inspect data/regions
    """
    from dimvl.regions.store.summary import bar_chart, summarise

    facts = summarise(store)
    histograms = {name: facts[name] for name in ("regions_per_image", "top_scores")}
    if as_json:
        print(json.dumps(facts | {name: [part._asdict() for part in bins] for name, bins in histograms.items()}))
        return
    for name, value in facts.items():
        if name in histograms:
            continue
        if isinstance(value, dict):
            value = [f"{key}={number}" for key, number in value.items()]
        if isinstance(value, tuple) and len(value) > SHOWN:
            value = [f"{len(value):,}, beginning with {value[0]}", *value[1:SHOWN]]
        print_text(f"{name}: {', '.join(value) if isinstance(value, list | tuple) else value}")
    for name, bins in histograms.items():
        for line in (f"{name}:", *bar_chart(bins)):
            print_text(line)


@app.command()
def verify(store: Annotated[Path, typer.Argument(parser=input_folder, help="Region store.")]) -> None:
    """Compare a region store with its checksums.

    Names damaged files and the images lost with them; then the exit code is 1.

    Example: dimvl verify data/regions
    """
    from dimvl.regions.store import RegionStore
    from dimvl.regions.store.check import verify_store

    with progress("shards") as show:
        problems = verify_store(store, show)
    for problem in problems:
        print_text(problem)
    if problems:
        raise typer.Exit(1)
    print_text(f"{store} is sound: {counted(len(RegionStore(store)), 'image')}")
