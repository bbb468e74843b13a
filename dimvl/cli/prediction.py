"""Export of a run, and predictions on images: export, caption, answer, match."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimvl.cli.app import (
    PARTS,
    AsJson,
    Beams,
    BlockNgrams,
    Classes,
    Concepts,
    Device,
    Features,
    FeaturesWeights,
    LengthPenalty,
    MaxTokens,
    Model,
    NamesBy,
    StatementsFile,
    Threads,
    VocabularyFile,
    Weights,
    Where,
    any_path,
    app,
    file_or_folder,
    given,
    input_file,
    input_folder,
    print_text,
)
from dimvl.cli.inputs import Group, Groups, Ids, Images, Stores, Together, check_inputs, named, open_model, refuse_empty
from dimvl.errors import UserError
from dimvl.files import read_text
from dimvl.showing import counted, short

if TYPE_CHECKING:
    from dimvl.data.answers import Answer
    from dimvl.image_inputs import Input
    from dimvl.predictor import Predictor
    from dimvl.tasks.answering.statements import StatementRules

ImagePaths = Annotated[
    list[Path] | None,
    typer.Argument(parser=any_path, help="Images, or folders of images.", metavar="IMAGE"),
]


@app.command()
def export(
    run: Annotated[Path, typer.Argument(parser=input_folder, help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(parser=any_path, help="Folder to write.")],
    where: Where = None,
    weights: Weights = None,
    classes: Classes = None,
    features: Features = None,
    features_weights: FeaturesWeights = None,
    vocabulary: VocabularyFile = None,
    names_by: NamesBy = None,
    concepts: Concepts = None,
    scores: Annotated[
        Path | None, typer.Option(parser=input_file, help="JSON file of scores for the model card.")
    ] = None,
) -> None:
    """Write one folder with everything that predictions need.

    It holds the weights of the run's best checkpoint (without validation the newest), the tokenizer, a model card, and
    what made the regions, as the region store names it: detector, backbone, names. If those files have moved, name
    them by the options of `dimvl extract`. Use --where none to omit them.

    Example: dimvl export runs/vqa exports/vqa --scores runs/vqa/evaluation/scores.json
    """
    parts = {name: value for name, value in locals().items() if name in PARTS}
    from dimvl.export import export as export_run
    from dimvl.fields import mapping
    from dimvl.files import read_json

    measured = None if scores is None else mapping(read_json(scores), (), str(scores), "give scores by name")
    print_text(f"exported: {export_run(run, out, where, measured, **parts)}")


@app.command()
def caption(
    model: Model,
    images: ImagePaths = None,
    regions: Stores = None,
    ids: Ids = None,
    beams: Beams = None,
    max_tokens: MaxTokens = None,
    length_penalty: LengthPenalty = None,
    block_ngrams: BlockNgrams = None,
    together: Together = False,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Caption images, or the regions of a store.

    Captions of several images are printed as they are ready. An image that cannot be read is reported and skipped; the
    exit code is then 1, or 2 if that image was named on the command line.

    Example: dimvl caption photos --model exports/caption --json

    Example: dimvl caption --regions stores/val --images 17 --images 18 --model exports/caption
    """
    chosen = Images(images or [], regions, ids)
    groups = chosen.groups([None], together)
    decoding = given(beams=beams, max_tokens=max_tokens, length_penalty=length_penalty, block_ngrams=block_ngrams)
    predictor = open_model(model, device, threads)
    check_inputs(predictor, "caption", groups)
    if together or chosen.is_single(groups):
        [group] = groups
        text = predictor.caption(chosen.single(predictor, groups), **decoding)
        print_one({**named(group, together), "caption": text}, text, as_json)
        chosen.report()
        return
    with chosen.regions(predictor, groups) as batches:
        for found in batches:
            for (name,), text in zip(found, predictor.caption(list(found.values()), **decoding), strict=True):
                print_one({"image": name, "caption": text}, f"{name}: {text}", as_json)


@app.command()
def answer(
    model: Model,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE QUESTION",
            help='Image or folder, and questions; or a .jsonl file of {"image" or "images": ..., "question": ...}. '
            "With --regions, only questions or such a file.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            parser=input_folder, help="Folder of the images of a .jsonl file; default: the folder of the file."
        ),
    ] = None,
    regions: Stores = None,
    ids: Ids = None,
    statements: StatementsFile = None,
    top: Annotated[int, typer.Option(min=1, help="Number of answers to print.")] = 1,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print how much the answer's probability drops without each region.")
    ] = False,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Answer questions about images, or about the regions of a store.

    One question about one image prints the answer. Several questions, a folder, a .jsonl file or several images of a
    store print one JSON object per line as they are ready. The file names images by paths relative to its folder, or
    to --folder, which must not leave it, or, with --regions, by their ids in the store. An image that cannot be read is
    reported and skipped; the exit code is then 1, or 2 if that image was named on the command line.

    With --statements, the model needs no training on questions. Questions that no rule of the file covers get an empty
    answer and are counted; the exit code is then 1.

    Example: dimvl answer photo.png "what color is the star?" --model exports/vqa --explain

    Example: dimvl answer photo.png "what color is the star?" --model exports/pretrain --statements rules.yaml

    Example: dimvl answer "what color is the star?" --regions stores/val --images 17 --model exports/vqa

    Example: dimvl answer asked.jsonl --regions stores/val --model exports/vqa
    """
    chosen, groups = _asked(arguments or [], folder, regions, ids)
    single = chosen.is_single(groups)
    if explain and not single:
        raise UserError("--explain needs one image and one question; omit it")
    if explain and statements:
        raise UserError("--explain is for models that were trained to answer; omit it, or --statements")
    rules, uncovered = _rules(statements, groups)
    if single and uncovered:
        raise UserError(f"no rule of {statements} covers {short(uncovered[0])}; add one, or ask in the words of a rule")
    predictor = open_model(model, device, threads)
    verb = "answer" if rules is None else "answer by statements"
    if single:
        check_inputs(predictor, verb, groups)
        [[record]] = groups.values()
        _answer_one(predictor, chosen.single(predictor, groups), record, top, explain, rules, as_json)
        return
    timed = sum("times" in record for records in groups.values() for record in records)
    used = timed and predictor.trained.processor.times
    check_inputs(predictor, verb, groups, [[0.0] * len(group) for group in groups] if used else None)
    if timed and not used:  # as in an evaluation: a fact of the file, which other models may use
        print_text(f"the times of {timed} texts are ignored; train with inputs.times=true to use them", error=True)
    if uncovered:
        asked = f"{counted(len(uncovered), 'question')}, such as {short(uncovered[0])}"
        print_text(f"no rule of {statements} covers {asked}; the answer is empty", error=True)
    with chosen.regions(predictor, groups, "questions") as batches:
        for found in batches:
            pairs = [(images, record) for group, images in found.items() for record in groups[group]]
            times = [record.get("times", [0.0] * len(images)) for images, record in pairs] if used else None
            texts = [record["question"] for _, record in pairs]
            answers = predictor.answer([images for images, _ in pairs], texts, top, times, statements=rules)
            for (_, record), one in zip(pairs, answers, strict=True):
                print(json.dumps({**record, **_fields(one)}), flush=True)
    if uncovered:
        raise typer.Exit(1)


def _rules(statements: Path | None, groups: Groups) -> tuple["StatementRules | None", list[str]]:
    """Return the rules of a file, and the questions that none of them covers.

    Raises:
        UserError: a mistake in the file.

    """
    if statements is None:
        return None, []
    from dimvl.tasks.answering.statements import read_statements

    rules = read_statements(statements)
    questions = [record["question"] for records in groups.values() for record in records]
    return rules, [question for question in questions if rules.ask(question) is None]


def _asked(
    arguments: Sequence[str], folder: Path | None, regions: Sequence[Path] | None, ids: Sequence[str] | None
) -> tuple[Images, Groups]:
    """Return the images, and groups of them with records of `image` or `images`, and `question`.

    Raises:
        UserError: no question, questions besides those of a file, or as `jsonl_questions` and `Images`.

    """
    first, *rest = arguments or [""]
    if Path(first).suffix == ".jsonl":
        if rest:
            raise UserError(f"{first} has its own questions; omit {rest[0]!r}")
        if ids:
            raise UserError(f"{first} names its own images; omit --images")
        return _asked_in(input_file(first), folder, regions)
    if folder is not None:
        raise UserError(f"--folder {folder} is for the images of a .jsonl file; omit it")
    chosen = Images([file_or_folder(first)] if first and not regions else [], regions, ids)
    questions = arguments if regions else rest
    if not questions:
        subject = f"{first} has" if first else "there is"
        raise UserError(f"{subject} no question; give one, or a .jsonl file of images and questions")
    refuse_empty(questions)
    if chosen.store is not None and (image := next((text for text in questions if text in chosen.store), None)):
        raise UserError(f"{image!r} is an image of the region store, not a question; give it as --images {image}")
    if path := next(filter(os.path.exists, questions), None):
        raise UserError(f"{path} is a file or a folder, not a question; give one image, one folder or a region store")
    return chosen, {(name,): [{"image": name, "question": question} for question in questions] for name in chosen.names}


def _asked_in(file: Path, folder: Path | None, regions: Sequence[Path] | None) -> tuple[Images, Groups]:
    """Do what `_asked` does for a .jsonl file."""
    from dimvl.data.annotations.jsonl import jsonl_questions
    from dimvl.files import inside

    chosen = Images([] if regions else [file], regions, None)  # without a store, the lines name the image files
    groups: dict[Group, list[dict[str, Any]]] = {}
    for asked in jsonl_questions(file):
        files = () if regions else (str(inside(folder or file.parent, name)) for name in asked.image_ids)
        group = asked.image_ids if regions else tuple(files)
        times = {"times": asked.times} if asked.times else {}
        record = {**named(asked.written_ids, len(group) > 1), **times, "question_id": asked.question_id}
        groups.setdefault(group, []).append({**record, "question": asked.text})
    if not groups:
        raise UserError(f"{file} has no question; give one per line")
    chosen.check({name: None for group in groups for name in group})
    return chosen, groups


def _answer_one(
    predictor: "Predictor",
    image: "Input",
    record: Mapping[str, Any],
    top: int,
    explain: bool,
    rules: "StatementRules | None",
    as_json: bool,
) -> None:
    explanation = predictor.explain(image, record["question"], top) if explain else None
    found = explanation.answer if explanation else predictor.answer(image, record["question"], top, statements=rules)
    if as_json:
        described = {} if explanation is None else {"regions": [region._asdict() for region in explanation.regions]}
        print(json.dumps({**record, **_fields(found), **described}))
        return
    for text, probability in found.top:
        print_text(text if top == 1 else f"{text} ({probability:.3f})")
    if explanation is None:
        return
    print_text(f"probability of {found.text!r}: {found.probability:.3f}")
    print_text("probability drop when the region is removed:")
    for region in explanation.regions:
        name = " ".join((*region.attributes, region.name)) or "unnamed region"
        box = ", ".join(f"{side:.0f}" for side in region.box)
        print_text(f"{region.probability_drop:+.3f}  {name} ({region.score:.2f}) at {box}")


def _fields(answer: "Answer") -> dict[str, Any]:
    return {"answer": answer.text, "probability": answer.probability, "top": answer.top}


@app.command()
def match(
    model: Model,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE TEXT",
            help="Images or folders, then a text unless --text or --texts gives it. With --regions, only the text.",
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="Text; repeatable.")] = None,
    texts: Annotated[Path | None, typer.Option(parser=input_file, help="File of texts, one per line.")] = None,
    regions: Stores = None,
    ids: Ids = None,
    together: Together = False,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Print the probability that a text belongs to an image, for each image and text.

    Several texts, a folder, or all images of a store print one JSON object per line as they are ready. An image that
    cannot be read is reported and skipped; the exit code is then 1, or 2 if that image was named on the command line.

    Example: dimvl match photo.png "a red circle above a blue star" --model exports/pretrain

    Example: dimvl match photos --text "a dog" --text "a cat" --model exports/pretrain

    Example: dimvl match --regions stores/val --texts texts.txt --model exports/pretrain
    """
    paths, wanted = _texts(arguments or [], text or [], texts)
    chosen = Images(paths, regions, ids)
    groups = chosen.groups(wanted, together)
    predictor = open_model(model, device, threads)
    check_inputs(predictor, "match", groups)
    if chosen.is_single(groups):
        [group] = groups
        probability = predictor.match(chosen.single(predictor, groups), wanted[0])
        record = {**named(group, together), "text": wanted[0], "probability": probability}
        print_one(record, f"{probability:.3f}", as_json)
        return
    as_json = as_json or len(wanted) > 1 or not {*chosen.names} <= {*chosen.named}
    with chosen.regions(predictor, groups, "pairs of image and text") as batches:
        for found in batches:
            pairs = [(group, one) for group in found for one in groups[group]]
            probabilities = predictor.match([found[group] for group, _ in pairs], [one for _, one in pairs])
            for (group, one), probability in zip(pairs, probabilities, strict=True):
                record = {**named(group, together), "text": one, "probability": probability}
                print_one(record, f"{group[0]}: {probability:.3f}", as_json)


def _texts(arguments: Sequence[str], texts: Sequence[str], file: Path | None) -> tuple[list[Path], list[str]]:
    """Return the images and the texts of `match`.

    Raises:
        UserError: no text, an empty one, or the last argument is a file.

    """
    images, wanted = list(arguments), list(texts)
    if file is not None:
        wanted += [line.strip() for line in read_text(file).splitlines() if line.strip()]
        if not wanted:
            raise UserError(f"{file} has no text; give one per line")
    elif not wanted:
        if not images:
            raise UserError("no text is given; give it last, or by --text or --texts")
        wanted = [images.pop()]
        if os.path.exists(wanted[0]):
            raise UserError(f"{wanted[0]} is a file or a folder, not a text; give a text last, or by --text or --texts")
    refuse_empty(wanted)
    return [any_path(image) for image in images], list(dict.fromkeys(wanted))


def print_one(record: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print a result, as soon as it is ready."""
    if as_json:
        print(json.dumps(record), flush=True)
    else:
        print_text(text)
