"""The command line. Only here does dimvl print.

Everything heavy is imported inside the commands, so that `dimvl --help` answers at once. Results go to stdout, progress
and messages to stderr. Exit codes: 0 done; 1 something was left out or found wrong; 2 a mistake in what was given;
130 and 143 interrupted.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dimvl.errors import Interrupted, NotFiniteError, UserError
from dimvl.progress import progress, training_progress

if TYPE_CHECKING:
    from dimvl.predictor import Explanation

app = typer.Typer(
    name="dimvl",
    help="Vision-language models over image regions: raw pictures in, answers and captions out.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's own choice.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]
Model = Annotated[str, typer.Option(help="Folder of an export, or the name of a model on the Hugging Face hub.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values that win over those of the file.")
]
Config = Annotated[Path, typer.Argument(help="YAML file.")]


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2, never in a traceback."""
    # Two torch threads that spin while waiting slow each other down 10 times and more on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except UserError as error:
        _fail(error, 2)
    except NotFiniteError as error:
        _fail(error, 1)
    except Interrupted as error:
        _fail(error, 128 + error.signal_number)


def _fail(error: Exception, code: int) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)


@app.command()
def demo(
    config: Annotated[Path | None, typer.Option(help="YAML file of another demo than the shipped one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A smaller one in under three minutes.")] = False,
    threads: Threads = 0,
) -> None:
    """Run the demo on synthetic scenes.

    Pictures, detector, pretraining, fine-tuning, scores, report; goes on where it stopped.

    Example: dimvl demo --out runs/demo
    """
    from dimvl.demo import run_demo

    _set_threads(threads)
    run_demo(config, out, quick)


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
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Write synthetic scenes.

    Pictures with COCO boxes, COCO captions and VQA v2 questions; goes on where it stopped.

    Example: dimvl scenes data/scenes --train 3000 --seed 1
    """
    given = {name: value for name, value in locals().items() if name not in ("out", "workers") and value is not None}
    from dimvl.data.scenes import SceneOptions, write_scenes

    with progress("pictures") as show:
        write_scenes(out, SceneOptions(**given), show, workers)
    print(f"synthetic scenes written to {out}")


@app.command()
def extract(
    images: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    out: Annotated[Path, typer.Argument(help="Region store to write or to go on with.")],
    coco: Annotated[
        Path | None, typer.Option(help="COCO file that lists the pictures; its ids name the images, else file names.")
    ] = None,
    detector: Annotated[Path | None, typer.Option(help="Folder of a detector; by default the one for scenes.")] = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Turn pictures into a region store.

    Goes on where it stopped. A picture that cannot be read is named and skipped; then the exit code is 1.

    Example: dimvl extract data/scenes/train/images data/regions --coco data/scenes/train/instances.json
    """
    from dimvl.pretrained import choose_device
    from dimvl.regions.detector import SCENES_FOLDER, Detector
    from dimvl.regions.extract import extract as extract_regions
    from dimvl.regions.extract import images_of_coco, images_of_folder
    from dimvl.regions.store_writer import RegionStoreWriter

    _set_threads(threads)
    pictures = images_of_folder(images) if coco is None else images_of_coco(coco, images)
    found = Detector.load(detector or SCENES_FOLDER)
    found.network.to(choose_device(device))
    with RegionStoreWriter(out, found.extractor) as writer, progress("pictures") as show:
        report = extract_regions(pictures, found, writer, progress=show)
    print(f"{report.done} pictures done, {report.already} already there, {len(report.skipped)} skipped: {out}")
    if report.skipped:
        raise typer.Exit(1)


@app.command()
def inspect(store: Annotated[Path, typer.Argument(help="Region store.")], as_json: AsJson = False) -> None:
    """Tell what a region store holds.

    Example: dimvl inspect data/regions
    """
    from dimvl.regions.store import RegionStore

    manifest = RegionStore(store).manifest
    extractor = manifest.extractor
    facts = {
        "images": manifest.num_images,
        "regions": manifest.num_regions,
        "shards": len(manifest.shards),
        "megabytes": round(sum(file.stat().st_size for file in store.iterdir()) / 1e6, 2),
        "extractor": extractor.name,
        "fingerprint": extractor.fingerprint,
        "parameters": dict(extractor.parameters),
        "feature_width": extractor.feature_width,
        "classes": list(extractor.classes),
        "attributes": list(extractor.attributes),
    }
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = [f"{key}={number}" for key, number in value.items()]
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")


@app.command()
def verify(store: Annotated[Path, typer.Argument(help="Region store.")]) -> None:
    """Compare a region store with its checksums.

    Names what is damaged and the images in it; then the exit code is 1.

    Example: dimvl verify data/regions
    """
    from dimvl.regions.store import RegionStore

    opened = RegionStore(store)
    with progress("shards") as show:
        problems = opened.verify(show)
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)
    print(f"{store} is sound: {len(opened)} images in {len(opened.manifest.shards)} shards")


@app.command()
def pretrain(config: Config, overrides: Overrides = None, threads: Threads = 0) -> None:
    """Pretrain a model from captions.

    The same command again goes on where the run stopped.

    Example: dimvl pretrain pretrain.yaml training.steps=2000
    """
    _train(config, overrides or [], threads, ("pretrain",))


@app.command()
def finetune(
    config: Config,
    overrides: Overrides = None,
    new_extractor: Annotated[
        bool, typer.Option("--new-extractor", help="Take regions of another extractor: their projection starts afresh.")
    ] = False,
    threads: Threads = 0,
) -> None:
    """Fine-tune a model to answer or to caption.

    The same command again goes on where the run stopped.

    Example: dimvl finetune vqa.yaml initial=runs/pretrain
    """
    added = ["new_extractor=true"] if new_extractor else []
    _train(config, [*(overrides or []), *added], threads, ("vqa", "caption"))


def _train(path: Path, overrides: list[str], threads: int, tasks: tuple[str, ...]) -> None:
    from dimvl.config import load_config

    config = load_config(path, overrides + ([f"training.threads={threads}"] if threads else []))
    if config.task not in tasks:
        command = "pretrain" if config.task == "pretrain" else "finetune"
        raise UserError(f"{path}: task is {config.task!r}, which is for `dimvl {command}`; use that command")
    logging.getLogger("dimvl").setLevel(logging.INFO)
    from dimvl.training.run import run_training

    with training_progress() as show:
        run = run_training(config, show)
    print(f"trained: {run}")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a run or of an export.")],
    regions: Annotated[Path, typer.Option(help="Region store of the pictures.")],
    questions: Annotated[Path | None, typer.Option(help="VQA v2 questions.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="VQA v2 annotations; without them nothing is scored.")
    ] = None,
    captions: Annotated[Path | None, typer.Option(help="COCO captions; their images are captioned.")] = None,
    worlds: Annotated[
        Path | None, typer.Option(help="worlds.jsonl of scenes, to score captions; by default beside the captions.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default MODEL/evaluation.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Width of the beam search for captions.")] = 3,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Predict for an annotation file and score it.

    Writes predictions.json in the official results format and, where there is something to compare with, scores.json.

    Example: dimvl evaluate runs/vqa --regions data/regions --questions questions.json --annotations annotations.json
    """
    if (questions is None) == (captions is None):
        raise UserError("give either --questions or --captions: one of them says what to predict")
    from dimvl.decoding import DecodingOptions
    from dimvl.evaluation import evaluate_captions, evaluate_questions
    from dimvl.files import write_json
    from dimvl.pretrained import choose_device, load_trained
    from dimvl.regions.store import RegionStore

    _set_threads(threads)
    store = RegionStore(regions)
    trained = load_trained(model, choose_device(device))
    if questions is not None:
        with progress("questions") as show:
            predictions, scores = evaluate_questions(trained, store, questions, annotations, show)
    else:
        assert captions is not None
        options = DecodingOptions(beams=beams)
        with progress("pictures") as show:
            predictions, scores = evaluate_captions(trained, store, captions, worlds, options, show)
    folder = out or model / "evaluation"
    write_json(folder / "predictions.json", predictions, indent=None)
    if scores:
        write_json(folder / "scores.json", scores)
        print(json.dumps(scores, indent=2))
    print(f"{len(predictions)} predictions written to {folder}", file=sys.stderr)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    detector: Annotated[
        Path | None, typer.Option(help="Folder of the detector that made the regions; by default the one for scenes.")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="JSON file of scores for the model card.")] = None,
) -> None:
    """Make one folder of all that predictions need.

    The weights of a run's newest checkpoint, tokenizer, detector and model card.

    Example: dimvl export runs/vqa exports/vqa --scores runs/vqa/evaluation/scores.json
    """
    from dimvl.export import export as export_run
    from dimvl.files import read_json

    measured = None if scores is None else read_json(scores)
    if measured is not None and not isinstance(measured, dict):
        raise UserError(f"{scores} must hold scores by name, not a {type(measured).__name__}")
    print(f"exported: {export_run(run, out, detector, measured)}")


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

    _set_threads(threads)
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

    _set_threads(threads)
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

    _set_threads(threads)
    probability = Predictor.from_pretrained(model, device).match(image, text)
    record = {"image": str(image), "text": text, "probability": probability}
    print(json.dumps(record) if as_json else f"{probability:.3f}")


def _set_threads(threads: int) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)
