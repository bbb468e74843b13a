"""A finished run as one folder, and its predictions on pictures: export, caption, answer, match."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from dimvl.predictor import Explanation


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
    images: Annotated[list[Path], typer.Argument(help="Pictures.", metavar="IMAGE...")],
    model: Model,
    beams: Annotated[int, typer.Option(min=1, help="Width of the beam search; 1 is greedy.")] = 3,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Describe pictures.

    Example: dimvl caption photo.png --model exports/caption
    """
    from dimvl.predictor import Predictor

    set_threads(threads)
    captions = Predictor.from_pretrained(model, device).caption(images, beams=beams)
    for image, text in zip(images, captions, strict=True):
        if as_json:
            print(json.dumps({"image": str(image), "caption": text}))
        else:
            print(text if len(images) == 1 else f"{image}: {text}")


@app.command()
def answer(
    image: Annotated[Path, typer.Argument(help="Picture.")],
    question: Annotated[str, typer.Argument(help="Question.")],
    model: Model,
    top: Annotated[int, typer.Option(min=1, help="Number of best answers to tell.")] = 1,
    explain: Annotated[
        bool, typer.Option("--explain", help="Tell the probability drop when a region is removed, for each region.")
    ] = False,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Answer a question on a picture.

    Example: dimvl answer photo.png "what color is the star?" --model exports/vqa --explain
    """
    from dimvl.predictor import Predictor

    set_threads(threads)
    predictor = Predictor.from_pretrained(model, device)
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
