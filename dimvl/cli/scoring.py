"""The commands evaluate, probe and score."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimvl.cli.app import (
    AsJson,
    Beams,
    BlockNgrams,
    Device,
    LengthPenalty,
    MaxTokens,
    StatementsFile,
    Threads,
    any_path,
    app,
    given,
    input_file,
    input_folder,
    print_text,
    set_threads,
)
from dimvl.progress import progress
from dimvl.showing import counted

if TYPE_CHECKING:
    from dimvl.regions.store import RegionStore
    from dimvl.tasks.task import Evaluation
    from dimvl.trained_model import TrainedModel

RunOrExport = Annotated[Path, typer.Argument(parser=input_folder, help="Folder of a run or of an export.")]
RegionStores = Annotated[
    list[Path], typer.Option(parser=input_folder, help="Region store of the images; repeat it to use several as one.")
]
Worlds = Annotated[
    Path | None,
    typer.Option(
        parser=input_file,
        help="worlds.jsonl of scenes, to score facts in captions; default: the one beside the captions.",
    ),
]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Skip images that the store lacks, with a warning.")]
MatchRule = Annotated[
    str | None,
    typer.Option("--match", help="How images are found in the store: id, file_name, stem, path_stem and so on."),
]
OnBase = Annotated[
    Path | None,
    typer.Option(
        "--adapter", parser=input_folder, help="Adapter of MODEL to use; results go into the adapter's folder."
    ),
]
AllowTrained = Annotated[
    bool, typer.Option("--allow-trained-images", help="Allow images that the model was trained on.")
]
Answers = Annotated[
    Path | None, typer.Option(parser=input_file, help="VQA v2 annotations; without them, nothing is scored.")
]


@app.command()
def evaluate(
    model: RunOrExport,
    regions: RegionStores,
    values: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Files and options of other tasks.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(parser=input_file, help="Questions in any format of docs/annotations.md.")
    ] = None,
    annotations: Answers = None,
    statements: StatementsFile = None,
    captions: Annotated[
        Path | None, typer.Option(parser=input_file, help="Captions in any format; the model captions their images.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="Split of a file in Karpathy's format; repeatable.")] = None,
    worlds: Worlds = None,
    out: Annotated[
        Path | None, typer.Option(parser=any_path, help="Folder to write; default MODEL/evaluation.")
    ] = None,
    beams: Beams = None,
    max_tokens: MaxTokens = None,
    length_penalty: LengthPenalty = None,
    block_ngrams: BlockNgrams = None,
    match: MatchRule = None,
    skip_missing: SkipMissing = False,
    allow_trained_images: AllowTrained = False,
    adapter: OnBase = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Predict for an annotation file and score the predictions.

    Writes predictions.json in the official submission format, items.jsonl for reading, scores.json if references are
    given, and manifest.json, which records what the result depends on.

    Example: dimvl evaluate runs/vqa --regions data/regions --questions questions.json --annotations annotations.json

    Example: dimvl evaluate runs/pretrain --regions data/regions --questions questions.json --statements rules.yaml
    """
    from dimvl.config import parse_overrides

    options: dict[str, Any] = {"questions": questions, "annotations": annotations, "statements": statements}
    options |= {"captions": captions, "split": split, "worlds": worlds, "beams": beams, "max_tokens": max_tokens}
    options |= {"length_penalty": length_penalty, "block_ngrams": block_ngrams, "match": match}
    named = parse_overrides(values or []) | given(**options)
    from dimvl import evaluation

    folder = out or (adapter or model) / "evaluation"
    trained, store = _opened(model, adapter, regions, folder, allow_trained_images, device, threads)
    named |= {"missing": "skip" if skip_missing else "error"}
    with progress("predictions") as shown:
        settings = {"allow_trained_images": allow_trained_images}
        found = evaluation.evaluate(adapter or model, trained, store, named, folder, settings, shown)
    _print_written(found, folder)


@app.command()
def probe(
    model: RunOrExport,
    files: Annotated[
        list[Path],
        typer.Argument(
            parser=input_file, metavar="FILE", help="Pairs of caption and foil, in any format of docs/annotations.md."
        ),
    ],
    regions: RegionStores,
    out: Annotated[Path | None, typer.Option(parser=any_path, help="Folder to write; default MODEL/probes.")] = None,
    match: MatchRule = None,
    skip_missing: SkipMissing = False,
    allow_trained_images: AllowTrained = False,
    adapter: OnBase = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Test whether a model prefers a true caption to a false one: VALSE, SugarCrepe, FOIL, Winoground, or your own.

    Prints and writes the accuracy by each score that the model has, and, for comparison, by the same score without the
    image, which shows what the texts alone give away. Writes the same files as `dimvl evaluate`.

    Example: dimvl probe runs/pretrain valse/existence.json valse/plurals.json --regions stores/visual7w --regions
    stores/coco
    """
    from dimvl.config import EvaluationOptions, validate

    missing = "skip" if skip_missing else "error"
    options = validate(EvaluationOptions, given(match=match, missing=missing), "options of dimvl probe")
    from dimvl import evaluation
    from dimvl.tasks.probing import evaluate_probes

    folder = out or (adapter or model) / "probes"
    trained, store = _opened(model, adapter, regions, folder, allow_trained_images, device, threads)
    with progress("scores") as shown:
        found = evaluate_probes(trained, store, files, options, shown)
    settings = {**options.settings(), "allow_trained_images": allow_trained_images}
    _print_written(evaluation.write_evaluation(adapter or model, trained, store, found, folder, settings), folder)


def _opened(
    model: Path,
    adapter: Path | None,
    regions: Sequence[Path],
    folder: Path,
    allow_trained_images: bool,
    device: str,
    threads: int,
) -> tuple["TrainedModel", "RegionStore"]:
    """Open model with its adapter and store, after a look at the folder for the results."""
    from dimvl.evaluation import check_folder
    from dimvl.files import check_writable
    from dimvl.regions.store import RegionStore
    from dimvl.trained_model import choose_device, load_model

    set_threads(threads)
    check_folder(folder)
    check_writable(folder)
    store = RegionStore(regions, check=True)
    trained = load_model(model, choose_device(device))
    trained = (trained if adapter is None else trained.with_adapter(adapter)).for_prediction()
    return (trained.without_guard() if allow_trained_images else trained), store


def _print_written(found: "Evaluation", folder: Path) -> None:
    if found.scores:
        print(json.dumps(found.scores, indent=2))
    left_out = "".join(f"; {count:,} left out: {reason}" for reason, count in found.left_out.items() if count)
    print_text(f"{counted(len(found.predictions), 'prediction')} written to {folder}{left_out}", error=True)


score = typer.Typer(
    help="Score predictions by the official protocol, without a model.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(score, name="score")
Predictions = Annotated[
    Path, typer.Option(parser=input_file, help="JSON file of predictions in the official submission format.")
]


@score.command("vqa")
def score_vqa(
    questions: Annotated[
        Path, typer.Option(parser=input_file, help="VQA v2 questions, or JSON lines with their answers.")
    ],
    predictions: Predictions,
    annotations: Annotated[Path | None, typer.Option(parser=input_file, help="VQA v2 annotations.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score answers as the VQA evaluator does.

    Prints the accuracy overall, by answer type and by question type, in percent; with --json also as fractions.

    Example: dimvl score vqa --questions questions.json --annotations annotations.json --predictions predictions.json
    """
    from dimvl.data.annotations import read_questions
    from dimvl.metrics.predictions import read_answers
    from dimvl.metrics.vqa import vqa_accuracy

    read = read_questions(questions, annotations)
    scores = vqa_accuracy(read_answers(predictions, [question.question_id for question in read]), read)
    if as_json:
        print(json.dumps({"task": "vqa", **vars(scores)}))
        return
    for remark in scores.remarks():
        print_text(remark, error=True)
    print_text(f"questions: {scores.count}")
    print_text(f"overall: {scores.official['overall']:.2f}")
    for group in ("perAnswerType", "perQuestionType"):
        print_text(f"{group}:")
        for name, value in scores.official[group].items():
            print_text(f"  {name or '(none)'}: {value:.2f}")


@score.command("caption")
def score_caption(
    annotations: Annotated[
        Path, typer.Option(parser=input_file, help="Reference captions in any format of docs/annotations.md.")
    ],
    predictions: Predictions,
    split: Annotated[list[str] | None, typer.Option(help="Split of a file in Karpathy's format; repeatable.")] = None,
    tokenised: Annotated[
        bool,
        typer.Option(
            "--tokenised", help="Texts are already tokenised, with spaces between tokens; needs no Java, omits METEOR."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score captions as the COCO evaluation does.

    Prints BLEU, METEOR, ROUGE-L and CIDEr on PTB tokens, and SPICE if its files are installed. Names scores that
    cannot be computed; if the program that computes one fails, the exit code is 1.

    Example: dimvl score caption --annotations captions.json --predictions predictions.json
    """
    from dimvl.data.annotations import compared, read_captions
    from dimvl.metrics.captions import caption_scores
    from dimvl.metrics.predictions import read_predicted_captions, read_stories

    groups = compared(read_captions(annotations, split or ()))
    if albums := [str(own[0].album) for own in groups if own[0].album is not None]:
        found = list(read_stories(predictions, albums).values())
    else:
        found = list(read_predicted_captions(predictions, [own[0].images for own in groups]).values())
    scores = caption_scores(
        {str(place): text for place, text in enumerate(found)},
        {str(place): [one.text for one in own] for place, own in enumerate(groups)},
        tokenised,
    )
    if as_json:
        counts = {"count": scores.count, "references": scores.references}
        print(json.dumps({"task": "caption", **counts, "official": scores.corpus, "left_out": scores.left_out}))
    else:
        print_text(f"images: {scores.count}, reference captions: {scores.references}")
        for name, value in scores.corpus.items():
            print_text(f"{name}: {value:.4f}")
        for name, reason in scores.left_out.items():
            print_text(f"{name} is missing: {reason}", error=True)
    if scores.failed:
        raise typer.Exit(1)
