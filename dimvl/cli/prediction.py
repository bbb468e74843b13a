"""A finished run as one folder, and its predictions on pictures: export, caption, answer, match."""

import json
import sys
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
    from dimvl.predictor import Explanation, Predictor
    from dimvl.regions.records import Regions


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    detector: DetectorName = "scenes",
    weights: DetectorWeights = None,
    classes: DetectorClasses = None,
    scores: Annotated[Path | None, typer.Option(help="JSON file of scores for the model card.")] = None,
) -> None:
    """Make one folder of all that predictions need.

    The weights of a run's best checkpoint (without validation the newest), tokenizer, model card, and the detector with
    the settings that the regions were made with; --detector none leaves it out.

    Example: dimvl export runs/vqa exports/vqa --scores runs/vqa/evaluation/scores.json
    """
    from dimvl.export import export as export_run
    from dimvl.files import read_json

    measured = None if scores is None else read_json(scores)
    if measured is not None and not isinstance(measured, dict):
        raise UserError(f"{scores} must hold scores by name, not a {type(measured).__name__}")
    print(f"exported: {export_run(run, out, detector, measured, weights=weights, classes=classes)}")


@app.command()
def caption(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.", metavar="IMAGE...")],
    model: Model,
    beams: Annotated[int, typer.Option(min=1, max=100, help="Width of the beam search; 1 is greedy.")] = 3,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Describe pictures.

    Of several pictures, each caption is written as soon as it is there. A picture that cannot be read is named and
    skipped; then the exit code is 1, or 2 if the picture itself was given.

    Example: dimvl caption photos --model exports/caption --json
    """
    from dimvl.predictor import Predictor

    set_threads(threads)
    files = _picture_files(images)
    predictor = Predictor.from_pretrained(model, device)
    if files == images and len(files) == 1:
        text = predictor.caption(files[0], beams)
        print(json.dumps({"image": str(files[0]), "caption": text}) if as_json else text)
        return
    with _many(predictor, files, images) as batches:
        for regions in batches:
            for seen, text in zip(regions, predictor.caption(regions, beams), strict=True):
                record = {"image": seen.image_id, "caption": text}
                print(json.dumps(record) if as_json else f"{seen.image_id}: {text}", flush=True)


@app.command()
def answer(
    image: Annotated[
        Path, typer.Argument(help='Picture, folder of pictures, or .jsonl file of {"image": ..., "question": ...}.')
    ],
    model: Model,
    questions: Annotated[list[str] | None, typer.Argument(help="Questions.", metavar="[QUESTION]...")] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of best answers to tell.")] = 1,
    explain: Annotated[
        bool, typer.Option("--explain", help="Tell the probability drop when a region is removed, for each region.")
    ] = False,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Answer questions on pictures.

    One question on one picture is answered in words. Several questions, a folder or a .jsonl file give one JSON object
    a line, picture by picture, as soon as it is there; paths in the file start from its folder. A picture that cannot
    be read is named and skipped; then the exit code is 1, or 2 if the picture itself was given.

    Example: dimvl answer photo.png "what color is the star?" --model exports/vqa --explain
    """
    from dimvl.predictor import Predictor

    set_threads(threads)
    asked = _asked(image, questions or [])
    single = len(asked) == 1 and image in asked and len(asked[image]) == 1
    if explain and not single:
        raise UserError("--explain takes one picture and one question; leave it out")
    predictor = Predictor.from_pretrained(model, device)
    if single:
        _answer_one(predictor, image, asked[image][0]["question"], top, explain, as_json)
        return
    with _many(predictor, list(asked), [image]) as batches:
        for regions in batches:
            pairs = [(seen, record) for seen in regions for record in asked[Path(seen.image_id)]]
            texts = [record["question"] for _, record in pairs]
            for (_, record), found in zip(
                pairs, predictor.answer([seen for seen, _ in pairs], texts, top), strict=True
            ):
                told = {"answer": found.text, "probability": found.probability, "top": found.top}
                print(json.dumps({**record, **told}), flush=True)


def _answer_one(predictor: "Predictor", image: Path, question: str, top: int, explain: bool, as_json: bool) -> None:
    explanation = predictor.explain(image, question, top) if explain else None
    found = explanation.answer if explanation else predictor.answer(image, question, top)
    if as_json:
        record = {"image": str(image), "question": question, "answer": found.text, "probability": found.probability}
        regions = {} if explanation is None else {"regions": [region._asdict() for region in explanation.regions]}
        print(json.dumps({**record, "top": found.top, **regions}))
        return
    for text, probability in found.top:
        print(text if top == 1 else f"{text} ({probability:.3f})")
    if explanation is not None:
        _print_explanation(explanation)


def _asked(image: Path, questions: Sequence[str]) -> dict[Path, list[dict[str, Any]]]:
    """Return what is asked on each picture: records with `image` and `question`.

    Raises:
        UserError: no question, no line in a file of them, questions beside such a file, or as `jsonl_questions`.

    """
    if image.suffix != ".jsonl":
        if not questions:
            raise UserError(f"there is no question on {image}; give one, or a .jsonl file of pictures and questions")
        return {
            file: [{"image": str(file), "question": question} for question in questions]
            for file in _picture_files([image])
        }
    if questions:
        raise UserError(f"{image} has its own questions; leave {questions[0]!r} out")
    from dimvl.data.annotations.jsonl import jsonl_questions

    asked: dict[Path, list[dict[str, Any]]] = {}
    for found in jsonl_questions(image):
        record = {"image": found.image_id, "question_id": found.question_id, "question": found.text}
        asked.setdefault(image.parent / found.image_id, []).append(record)
    if not asked:
        raise UserError(f"{image} has no question; give one a line")
    return asked


def _picture_files(given: Sequence[Path]) -> list[Path]:
    """Put the pictures of a folder in its place."""
    if not any(path.is_dir() for path in given):
        return list(given)
    from dimvl.regions.extract import pictures_of_folder

    return [file for path in given for file in (pictures_of_folder(path) if path.is_dir() else [path])]


@contextmanager
def _many(predictor: "Predictor", files: Sequence[Path], given: Sequence[Path]) -> Iterator[Iterator[list["Regions"]]]:
    """Give the regions of pictures a few at a time; tell at the end what was done, by the exit code too.

    Progress is shown where results do not go to the same terminal.
    """
    skipped: list[tuple[Path, str]] = []
    show = nullcontext() if sys.stdout.isatty() else progress("pictures")
    with show as shown:
        yield predictor.regions_of_files(files, skipped, shown)
    print(f"{len(files) - len(skipped)} pictures done, {len(skipped)} skipped", file=sys.stderr)
    if skipped:
        raise typer.Exit(2 if {path for path, _ in skipped} & set(given) else 1)


def _print_explanation(explanation: "Explanation") -> None:
    print(f"probability of {explanation.answer.text!r}: {explanation.answer.probability:.3f}")
    print("probability drop when the region is removed:")
    for region in explanation.regions:
        name = " ".join((*region.attributes, region.name)) or "unnamed region"
        box = ", ".join(f"{side:.0f}" for side in region.box)
        print(f"{region.probability_drop:+.3f}  {name} ({region.score:.2f}) at {box}")


@app.command()
def match(
    image: Annotated[Path, typer.Argument(help="Picture.")],
    text: Annotated[str, typer.Argument(help="Text.")],
    model: Model,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Tell how well a text fits a picture.

    Prints the probability that the text belongs to the picture.

    Example: dimvl match photo.png "a red circle above a blue star" --model exports/pretrain
    """
    from dimvl.predictor import Predictor

    set_threads(threads)
    probability = Predictor.from_pretrained(model, device).match(image, text)
    record = {"image": str(image), "text": text, "probability": probability}
    print(json.dumps(record) if as_json else f"{probability:.3f}")
