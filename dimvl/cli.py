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
    from dimvl.config import Missing
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
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 16,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode pictures ahead.")] = 2,
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
    from dimvl.regions.extract import extract as extract_regions
    from dimvl.regions.extract import images_of_coco, images_of_folder
    from dimvl.regions.given_boxes import GivenBoxes
    from dimvl.regions.store_writer import RegionStoreWriter

    _set_threads(threads)
    listing = coco or boxes
    pictures = images_of_folder(images) if listing is None else images_of_coco(listing, images)
    given = None if boxes is None else GivenBoxes.read(boxes)
    found = load_detector(detector, options, weights=weights, classes=classes).to(choose_device(device))
    extractor = found.extractor if given is None else given.extractor(found)
    with RegionStoreWriter(out, extractor) as writer, progress("pictures") as show:
        report = extract_regions(
            pictures, found, writer, batch_size=batch_size, workers=workers, progress=show, boxes=given
        )
    print(f"{report.done} pictures done, {report.already} already there, {len(report.skipped)} skipped: {out}")
    if report.skipped:
        raise typer.Exit(1)


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
        options |= {"threshold": 0.0, "min_regions": number, "max_regions": number}
    names = {"threshold": "score_threshold", "nms": "nms_threshold"}
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
) -> None:
    """Turn region features that others made into a region store.

    Goes on where it stopped. A bad image is named and skipped; then the exit code is 1.

    Example: dimvl import train2014_obj36.tsv data/regions --classes objects.txt --extractor bottom-up-36
    """
    from dimvl.regions.importers.run import import_source, open_source

    opened, assembler = open_source(
        source, format_name, classes=classes, attributes=attributes, sizes=sizes, coco_ids=coco_ids
    )
    with progress(opened.unit) as show:
        report = import_source(opened, assembler, out, extractor or source.resolve().stem, show)
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

    from dimvl.regions.store_summary import bar_chart, summarise

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
    from dimvl.regions.store_check import verify_store

    with progress("shards") as show:
        problems = verify_store(store, show)
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)
    print(f"{store} is sound: {len(RegionStore(store)):,} images")


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
    regions: Annotated[list[Path], typer.Option(help="Region store of the pictures; repeated, several as one.")],
    questions: Annotated[Path | None, typer.Option(help="Questions of any format in docs/annotations.md.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="VQA v2 annotations; without answers nothing is scored.")
    ] = None,
    captions: Annotated[Path | None, typer.Option(help="Captions of any format; their images are captioned.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Of a file of Karpathy's splits; may be repeated.")] = None,
    worlds: Annotated[
        Path | None, typer.Option(help="worlds.jsonl of scenes, to score captions; by default beside the captions.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default MODEL/evaluation.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Width of the beam search for captions.")] = 3,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave images out that the store lacks, with a warning.")
    ] = False,
    allow_trained_images: Annotated[
        bool, typer.Option("--allow-trained-images", help="Evaluate even on images that the model was trained on.")
    ] = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Predict for an annotation file and score it.

    Writes predictions.json in the official submission format, items.jsonl to read, scores.json where there is something
    to compare with, and manifest.json, which tells what the result depends on.

    Example: dimvl evaluate runs/vqa --regions data/regions --questions questions.json --annotations annotations.json
    """
    if (questions is None) == (captions is None):
        raise UserError("give either --questions or --captions: one of them says what to predict")
    if questions is not None and split:
        raise UserError(f"--split {' '.join(split)} is for captions; leave it out with --questions")
    from dataclasses import asdict

    from dimvl.decoding import DecodingOptions
    from dimvl.evaluation import (
        describe_evaluation,
        evaluate_captions,
        evaluate_questions,
        with_official_scores,
        worlds_of,
        write_evaluation,
        write_predictions,
    )
    from dimvl.pretrained import choose_device, load_trained
    from dimvl.regions.store import RegionStore

    _set_threads(threads)
    store = RegionStore(regions, check=True)
    trained = load_trained(model, choose_device(device))
    if allow_trained_images:
        trained = trained.without_guard()
    missing: Missing = "skip" if skip_missing else "error"
    settings: dict[str, object] = {"missing": missing, "allow_trained_images": allow_trained_images}
    settings["device"] = str(trained.device)
    if questions is not None:
        with progress("questions") as show:
            result = evaluate_questions(trained, store, questions, annotations, show, missing)
    else:
        assert captions is not None
        options = DecodingOptions(beams=beams)
        with progress("pictures") as show:
            result = evaluate_captions(trained, store, captions, worlds, options, show, missing, split or ())
        settings |= {"split": split or [], **asdict(options)}
    folder = out or model / "evaluation"
    write_predictions(folder, result)
    if captions is not None:
        result = with_official_scores(result)
    files = {"questions": questions, "annotations": annotations, "captions": captions}
    files["worlds"] = worlds_of(captions, worlds)
    write_evaluation(folder, result, describe_evaluation(model, trained, store, files, settings))
    if result.scores:
        print(json.dumps(result.scores, indent=2))
    print(f"{len(result.predictions)} predictions written to {folder}", file=sys.stderr)


score = typer.Typer(
    help="Score a file of predictions by the official protocol, without a model.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(score, name="score")
Predictions = Annotated[Path, typer.Option(help="Predictions in the official submission format.")]


@score.command("vqa")
def score_vqa(
    questions: Annotated[Path, typer.Option(help="VQA v2 questions.")],
    annotations: Annotated[Path, typer.Option(help="VQA v2 annotations.")],
    predictions: Predictions,
    as_json: AsJson = False,
) -> None:
    """Score answers as the VQA evaluator does.

    Overall, by answer type and by question type, in percent; with --json as fractions too.

    Example: dimvl score vqa --questions questions.json --annotations annotations.json --predictions predictions.json
    """
    from dimvl.data.annotations import read_questions
    from dimvl.metrics.predictions import read_answers
    from dimvl.metrics.vqa import vqa_accuracy

    asked = read_questions(questions, annotations)
    scores = vqa_accuracy(read_answers(predictions, [question.question_id for question in asked]), asked)
    if as_json:
        print(json.dumps({"task": "vqa", **vars(scores)}))
        return
    print(f"questions: {scores.count}")
    print(f"overall: {scores.official['overall']:.2f}")
    for group in ("perAnswerType", "perQuestionType"):
        print(f"{group}:")
        for name, value in scores.official[group].items():
            print(f"  {name or '(none)'}: {value:.2f}")


@score.command("caption")
def score_caption(
    annotations: Annotated[Path, typer.Option(help="Captions to compare with, of any format that is read.")],
    predictions: Predictions,
    split: Annotated[list[str] | None, typer.Option(help="Of a file of Karpathy's splits; may be repeated.")] = None,
    tokenised: Annotated[
        bool, typer.Option("--tokenised", help="All texts are tokens between blanks: without Java, all but METEOR.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score captions as the COCO evaluation does.

    BLEU, METEOR, ROUGE-L and CIDEr on PTB tokens; SPICE where its files are installed. What is left out is said.

    Example: dimvl score caption --annotations captions.json --predictions predictions.json
    """
    from dimvl.data.annotations import read_captions
    from dimvl.metrics.captions import caption_scores
    from dimvl.metrics.predictions import read_predicted_captions

    references: dict[str, list[str]] = {}
    for caption in read_captions(annotations, split or ()):
        references.setdefault(caption.image_id, []).append(caption.text)
    scores = caption_scores(read_predicted_captions(predictions, references), references, tokenised)
    if as_json:
        counts = {"count": scores.count, "references": scores.references}
        print(json.dumps({"task": "caption", **counts, "official": scores.corpus, "left_out": scores.left_out}))
        return
    print(f"images: {scores.count}, captions to compare with: {scores.references}")
    for name, value in scores.corpus.items():
        print(f"{name}: {value:.4f}")
    for name, reason in scores.left_out.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)


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
