"""Export of a run, and predictions on images: export, caption, answer, match."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimvl.cli.app import (
    AsJson,
    DetectorClasses,
    DetectorName,
    DetectorWeights,
    Device,
    Model,
    Threads,
    app,
    set_threads,
)
from dimvl.errors import UserError
from dimvl.progress import progress

if TYPE_CHECKING:
    from dimvl.predictor import Predictor
    from dimvl.regions.records import Regions
    from dimvl.tasks.answering.prediction import Answer

Together = Annotated[bool, typer.Option("--together", help="Treat the images as one input, in order.")]


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    detector: DetectorName = "scenes",
    weights: DetectorWeights = None,
    classes: DetectorClasses = None,
    scores: Annotated[Path | None, typer.Option(help="JSON file of scores for the model card.")] = None,
) -> None:
    """Write one folder with everything that predictions need.

    It holds the weights of the run's best checkpoint (without validation the newest), the tokenizer, a model card, and
    the detector with the settings that the regions were made with. Use --detector none to omit the detector.

    Example: dimvl export runs/vqa exports/vqa --scores runs/vqa/evaluation/scores.json
    """
    from dimvl.export import export as export_run
    from dimvl.files import read_json

    measured = None if scores is None else read_json(scores)
    if measured is not None and not isinstance(measured, dict):
        raise UserError(f"{scores} is a {type(measured).__name__}; it must be an object with scores by name")
    print(f"exported: {export_run(run, out, detector, measured, weights=weights, classes=classes)}")


@app.command()
def caption(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", metavar="IMAGE")],
    model: Model,
    beams: Annotated[int, typer.Option(min=1, max=100, help="Width of the beam search; 1 is greedy.")] = 3,
    together: Together = False,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Caption images.

    Captions of several images are printed as they are ready. An image that cannot be read is reported and skipped; the
    exit code is then 1, or 2 if that image was named on the command line.

    Example: dimvl caption photos --model exports/caption --json
    """
    from dimvl.predictor import Predictor

    set_threads(threads)
    files = _image_files(images)
    predictor = Predictor.from_pretrained(model, device)
    if together or (files == images and len(files) == 1):
        text = predictor.caption(tuple(files) if together else files[0], beams)
        print(json.dumps({**_named(files, together), "caption": text}) if as_json else text)
        return
    with _many(predictor, files, images) as batches:
        for regions in batches:
            for seen, text in zip(regions, predictor.caption(regions, beams), strict=True):
                record = {"image": seen.image_id, "caption": text}
                print(json.dumps(record) if as_json else f"{seen.image_id}: {text}", flush=True)


@app.command()
def answer(
    image: Annotated[
        Path, typer.Argument(help='Image, folder, or .jsonl file of {"image" or "images": ..., "question": ...}.')
    ],
    model: Model,
    questions: Annotated[list[str] | None, typer.Argument(help="Questions.", metavar="QUESTION")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of the images of a .jsonl file; default: the folder of the file.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of answers to print.")] = 1,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print how much the answer's probability drops without each region.")
    ] = False,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Answer questions about images.

    One question about one image prints the answer. Several questions, a folder or a .jsonl file print one JSON object
    per line as they are ready; paths in the file are relative to its folder, or to --folder, and must not leave it.
    An image that cannot be read is reported and skipped; the exit code is then 1, or 2 if that image was named on the
    command line.

    Example: dimvl answer photo.png "what color is the star?" --model exports/vqa --explain
    """
    from dimvl.predictor import Predictor

    set_threads(threads)
    records = _questions(image, questions or [], folder)
    single = [(group, len(some)) for group, some in records.items()] == [((image,), 1)]
    if explain and not single:
        raise UserError("--explain needs one image and one question; omit it")
    predictor = Predictor.from_pretrained(model, device)
    if single:
        _answer_one(predictor, image, records[image,][0]["question"], top, explain, as_json)
        return
    timed = any("times" in record for some in records.values() for record in some)
    predictor.check(list(records), [[0.0] * len(group) for group in records] if timed else None)
    with _many(predictor, list({file: None for group in records for file in group}), [image]) as batches:
        for groups in _complete(batches, list(records)):
            pairs = [(regions, record) for group, regions in groups.items() for record in records[group]]
            times = [record.get("times", [0.0] * len(images)) for images, record in pairs] if timed else None
            texts = [record["question"] for _, record in pairs]
            found = predictor.answer([images for images, _ in pairs], texts, top, times)
            for (_, record), answer in zip(pairs, found, strict=True):
                print(json.dumps({**record, **_fields(answer)}), flush=True)


def _complete(
    batches: Iterator[list["Regions"]], groups: Sequence[tuple[Path, ...]]
) -> Iterator[dict[tuple[Path, ...], tuple["Regions", ...]]]:
    """Yield groups of images when the regions of all are found; only regions that later groups need are kept."""
    order = {file: place for place, file in enumerate({file: None for group in groups for file in group})}
    uses, by_last = Counter(file for group in groups for file in group), defaultdict(list)
    kept: dict[Path, Regions] = {}
    for group in groups:
        by_last[max(group, key=lambda file: order[file])].append(group)
    for batch in batches:
        kept |= {Path(regions.image_id): regions for regions in batch}
        ready = [group for regions in batch for group in by_last[Path(regions.image_id)] if kept.keys() >= {*group}]
        yield {group: tuple(kept[file] for file in group) for group in ready}
        uses.subtract(file for group in ready for file in group)
        kept = {file: regions for file, regions in kept.items() if uses[file]}


def _answer_one(predictor: "Predictor", image: Path, question: str, top: int, explain: bool, as_json: bool) -> None:
    explanation = predictor.explain(image, question, top) if explain else None
    found = explanation.answer if explanation else predictor.answer(image, question, top)
    if as_json:
        regions = {} if explanation is None else {"regions": [region._asdict() for region in explanation.regions]}
        print(json.dumps({"image": str(image), "question": question, **_fields(found), **regions}))
        return
    for text, probability in found.top:
        print(text if top == 1 else f"{text} ({probability:.3f})")
    if explanation is None:
        return
    print(f"probability of {found.text!r}: {found.probability:.3f}")
    print("probability drop when the region is removed:")
    for region in explanation.regions:
        name = " ".join((*region.attributes, region.name)) or "unnamed region"
        box = ", ".join(f"{side:.0f}" for side in region.box)
        print(f"{region.probability_drop:+.3f}  {name} ({region.score:.2f}) at {box}")


def _named(files: Sequence[Path], together: bool) -> dict[str, Any]:
    return {"images": list(map(str, files))} if together else {"image": str(files[0])}


def _fields(answer: "Answer") -> dict[str, Any]:
    return {"answer": answer.text, "probability": answer.probability, "top": answer.top}


def _questions(
    image: Path, questions: Sequence[str], folder: Path | None
) -> dict[tuple[Path, ...], list[dict[str, Any]]]:
    """Return records with `image` or `images`, and `question`, for each group of image files.

    Raises:
        UserError: no question, questions besides those of a file, an image outside the folder, or as
            `jsonl_questions`.

    """
    if image.suffix != ".jsonl":
        if folder is not None:
            raise UserError(f"--folder {folder} is for the images of a .jsonl file; omit it")
        if not questions:
            raise UserError(f"{image} has no question; give one, or a .jsonl file of images and questions")
        files = _image_files([image])
        return {(file,): [{"image": str(file), "question": question} for question in questions] for file in files}
    if questions:
        raise UserError(f"{image} has its own questions; omit {questions[0]!r}")
    from dimvl.data.annotations.jsonl import jsonl_questions
    from dimvl.files import inside

    records: dict[tuple[Path, ...], list[dict[str, Any]]] = {}
    for found in jsonl_questions(image):
        ids, times = found.written_ids, {"times": found.times} if found.times else {}
        named = {"image": ids[0]} if len(ids) == 1 else {"images": ids}
        record = {**named, **times, "question_id": found.question_id, "question": found.text}
        paths = tuple(inside(folder or image.parent, name) for name in found.image_ids)
        records.setdefault(paths, []).append(record)
    if not records:
        raise UserError(f"{image} has no question; give one per line")
    return records


def _image_files(paths: Sequence[Path]) -> list[Path]:
    """Replace each folder by its images."""
    if not any(path.is_dir() for path in paths):
        return list(paths)
    from dimvl.regions.extract import image_files_in

    return [file for path in paths for file in (image_files_in(path) if path.is_dir() else [path])]


@contextmanager
def _many(predictor: "Predictor", files: Sequence[Path], named: Sequence[Path]) -> Iterator[Iterator[list["Regions"]]]:
    """Yield the regions of images a few at a time; afterwards, report how many were skipped and set the exit code.

    Progress is shown unless results go to the same terminal.
    """
    skipped: list[tuple[Path, str]] = []
    show = nullcontext() if sys.stdout.isatty() else progress("images")
    with show as shown:
        yield predictor.regions_of_files(files, skipped, shown)
    print(f"{len(files) - len(skipped)} images done, {len(skipped)} skipped", file=sys.stderr)
    if skipped:
        raise typer.Exit(2 if {path for path, _ in skipped} & set(named) else 1)


@app.command()
def match(
    images: Annotated[list[Path], typer.Argument(help="Images.", metavar="IMAGE")],
    text: Annotated[str, typer.Argument(help="Text.")],
    model: Model,
    together: Together = False,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Print the probability that a text belongs to an image, for each image or --together.

    Example: dimvl match photo.png "a red circle above a blue star" --model exports/pretrain
    """
    from dimvl.predictor import Predictor

    set_threads(threads)
    groups = [images] if together else [[image] for image in images]
    found = Predictor.from_pretrained(model, device).match([tuple(group) for group in groups], text)
    for group, probability in zip(groups, found, strict=True):
        record = {**_named(group, together), "text": text, "probability": probability}
        name = f"{group[0]}: " if len(groups) > 1 else ""
        print(json.dumps(record) if as_json else f"{name}{probability:.3f}")
