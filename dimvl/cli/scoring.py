"""Scores: evaluate a model, or score a file of predictions."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimvl.cli.app import AsJson, Device, Threads, app, set_threads
from dimvl.errors import UserError
from dimvl.files import check_writable
from dimvl.progress import progress

if TYPE_CHECKING:
    from dimvl.pretrained import TrainedModel
    from dimvl.regions.store import RegionStore


Worlds = Annotated[
    Path | None, typer.Option(help="worlds.jsonl of scenes, to score captions; by default beside the captions.")
]
SkipMissing = Annotated[
    bool, typer.Option("--skip-missing", help="Leave images out that the store lacks, with a warning.")
]
AllowTrained = Annotated[
    bool, typer.Option("--allow-trained-images", help="Evaluate even on images that the model was trained on.")
]
Answers = Annotated[Path | None, typer.Option(help="VQA v2 annotations; without answers nothing is scored.")]


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a run or of an export.")],
    regions: Annotated[list[Path], typer.Option(help="Region store of the pictures; repeated, several as one.")],
    questions: Annotated[Path | None, typer.Option(help="Questions of any format in docs/annotations.md.")] = None,
    annotations: Answers = None,
    captions: Annotated[Path | None, typer.Option(help="Captions of any format; their images are captioned.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Of a file of Karpathy's splits; may be repeated.")] = None,
    worlds: Worlds = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default MODEL/evaluation.")] = None,
    beams: Annotated[int, typer.Option(min=1, max=100, help="Width of the beam search for captions.")] = 3,
    skip_missing: SkipMissing = False,
    allow_trained_images: AllowTrained = False,
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
    if questions is not None and worlds is not None:
        raise UserError(f"--worlds {worlds} is for captions; leave it out with --questions")
    if captions is not None and annotations is not None:
        raise UserError(f"--annotations {annotations} is for questions; leave it out with --captions")
    from dimvl.pretrained import choose_device, load_model
    from dimvl.regions.store import RegionStore

    set_threads(threads)
    store = RegionStore(regions, check=True)
    trained = load_model(model, choose_device(device)).for_prediction()
    folder = out or model / "evaluation"
    check_writable(folder)
    if allow_trained_images:
        trained = trained.without_guard()
    settings = {"missing": "skip" if skip_missing else "error", "allow_trained_images": allow_trained_images}
    files = {"questions": questions, "annotations": annotations, "captions": captions, "worlds": worlds}
    _evaluate(model, trained, store, files, settings, split or [], beams, folder)


def _evaluate(
    model: Path,
    trained: "TrainedModel",
    store: "RegionStore",
    files: dict[str, Path | None],
    settings: dict[str, Any],
    split: list[str],
    beams: int,
    folder: Path,
) -> None:
    """Predict, score, write and print; the manifest tells files and settings."""
    from dataclasses import asdict

    from dimvl import evaluation
    from dimvl.decoding import DecodingOptions

    settings = settings | {"device": str(trained.device)}
    if (captions := files["captions"]) is None:
        questions = files["questions"]
        assert questions is not None, "one of them is given"
        with progress("questions") as show:
            result = evaluation.evaluate_questions(
                trained, store, questions, files["annotations"], show, settings["missing"]
            )
        evaluation.write_predictions(folder, result)
    else:
        options = DecodingOptions(beams=beams)
        with progress("pictures") as show:
            result = evaluation.evaluate_captions(
                trained, store, captions, files["worlds"], options, show, settings["missing"], split
            )
        evaluation.write_predictions(folder, result)
        result = evaluation.with_official_scores(result)
        settings |= {"split": split, **asdict(options)}
    files = files | {"worlds": evaluation.worlds_of(captions, files["worlds"])}
    described = evaluation.describe_evaluation(model, trained, store, files, settings)
    evaluation.write_evaluation(folder, result, described)
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
    questions: Annotated[Path, typer.Option(help="VQA v2 questions, or lines of JSON with their answers.")],
    predictions: Predictions,
    annotations: Annotated[Path | None, typer.Option(help="VQA v2 annotations.")] = None,
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
    for remark in scores.remarks():
        print(remark, file=sys.stderr)
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
