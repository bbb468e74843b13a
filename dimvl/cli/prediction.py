"""Predictions on images: caption, answer, match."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimvl.cli.app import (
    Adapter,
    AsJson,
    Beams,
    BlockNgrams,
    Device,
    LengthPenalty,
    MaxTokens,
    Model,
    StatementsFile,
    Threads,
    app,
    given,
    image_or_folder,
    image_path,
    input_file,
    input_folder,
    print_text,
)
from dimvl.cli.explaining import Draw, Explain, as_fields, check_explaining, predict_one, print_explanation
from dimvl.cli.inputs import (
    Group,
    Groups,
    Ids,
    Images,
    Stores,
    Together,
    Videos,
    check_inputs,
    named,
    open_model,
    refuse_empty,
)
from dimvl.errors import UserError
from dimvl.files import is_url, read_text
from dimvl.showing import counted, short

if TYPE_CHECKING:
    from dimvl.data.answers import Answer
    from dimvl.explanation import Explanation
    from dimvl.predictor import Predictor
    from dimvl.tasks.answering.statements import StatementRules

ImagePaths = Annotated[
    list[Path] | None,
    typer.Argument(parser=image_path, help="Images, folders of images, or URLs (http, https).", metavar="IMAGE"),
]


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
    explain: Explain = False,
    draw: Draw = None,
    videos: Videos = False,
    as_json: AsJson = False,
    adapter: Adapter = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Caption images, or the regions of a store.

    Captions of several images are printed as they are ready. An image that cannot be read is reported and skipped; the
    exit code is then 1, or 2 if that image was named on the command line.

    Example: dimvl caption photos --model exports/caption --json

    Example: dimvl caption --regions stores/val --images 17 --images 18 --model exports/caption

    Example: dimvl caption 1.jpg 2.jpg 3.jpg 4.jpg 5.jpg --together --model exports/story

    Example: dimvl caption frames --videos --model exports/msrvtt
    """
    if together and videos:
        raise UserError("--together and --videos both group images; omit one of them")
    chosen = Images(images or [], regions, ids)
    groups = chosen.groups([None], together)
    decoding = given(beams=beams, max_tokens=max_tokens, length_penalty=length_penalty, block_ngrams=block_ngrams)
    if videos and explain:
        raise UserError("--explain is for images, not for --videos; omit one of them")
    check_explaining(chosen, groups, explain, draw)
    if videos:
        _caption_videos(chosen, open_model(model, device, threads, adapter), decoding, as_json)
        return
    predictor = open_model(model, device, threads, adapter)
    check_inputs(predictor, "caption", groups)
    if together or chosen.is_single(groups):
        [group] = groups
        text, explained = predict_one(predictor, chosen, groups, explain, draw, "caption", **decoding)
        print_one({**named(group, together), "caption": text}, [text], as_json, explained, text)
        chosen.report()
        return
    with chosen.regions(predictor, groups) as batches:
        for found in batches:
            for (name,), text in zip(found, predictor.caption(list(found.values()), **decoding), strict=True):
                print_one({"image": name, "caption": text}, [f"{name}: {text}"], as_json)


def _caption_videos(chosen: Images, predictor: "Predictor", decoding: dict[str, Any], as_json: bool) -> None:
    found = chosen.videos()
    names = {frames: video for video, (frames, _) in found.items()}
    groups, used = dict.fromkeys(names, (None,)), predictor.trained.processor.times
    check_inputs(predictor, "caption", groups, [times for _, times in found.values()] if used else None)
    if not used:
        _say_ignored(len(found))
    with chosen.regions(predictor, groups, "videos") as batches:
        for batch in batches:
            times = [found[names[group]][1] for group in batch]
            texts = predictor.caption(list(batch.values()), times=times if used else None, **decoding)
            for group, seconds, text in zip(batch, times, texts, strict=True):
                record = {"video": names[group], "images": group, "times": seconds, "caption": text}
                print_one(record, [f"{names[group]}: {text}"], as_json)


def _say_ignored(texts: int) -> None:
    """Say that a model does not use times: a fact of the file, which other models may use."""
    print_text(f"the times of {texts} texts are ignored; train with inputs.times=true to use them", error=True)


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
    explain: Explain = False,
    draw: Draw = None,
    as_json: AsJson = False,
    adapter: Adapter = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Answer questions about images, or about the regions of a store.

    One question about one image prints the answer. Several questions, a folder, a .jsonl file or several images of a
    store print one JSON object per line as they are ready. The file names images by paths inside its folder, or inside
    --folder; with --regions, by their ids in the store. An image that cannot be read is reported and skipped; the exit
    code is then 1, or 2 if that image was named on the command line.

    With --statements, the model needs no training on questions. Questions that no rule of the file covers get an empty
    answer and are counted; the exit code is then 1.

    Example: dimvl answer photo.png "what color is the star?" --model exports/vqa --explain

    Example: dimvl answer photo.png "what color is the star?" --model exports/pretrain --statements rules.yaml

    Example: dimvl answer "what color is the star?" --regions stores/val --images 17 --model exports/vqa

    Example: dimvl answer asked.jsonl --regions stores/val --model exports/vqa
    """
    chosen, groups = _asked(arguments or [], folder, regions, ids)
    single = chosen.is_single(groups)
    check_explaining(chosen, groups, explain, draw)
    if explain and statements:
        raise UserError("--explain is for models that were trained to answer; omit it, or --statements")
    rules, uncovered = _rules(statements, groups)
    if single and uncovered:
        raise UserError(f"no rule of {statements} covers {short(uncovered[0])}; add one, or ask in the words of a rule")
    predictor = open_model(model, device, threads, adapter)
    verb = "answer" if rules is None else "answer by statements"
    if single:
        check_inputs(predictor, verb, groups)
        [[record]] = groups.values()
        options = {"top": top} | ({} if rules is None else {"statements": rules})
        found, explained = predict_one(predictor, chosen, groups, explain, draw, verb, record["question"], **options)
        shown = [text if top == 1 else f"{text} ({probability:.3f})" for text, probability in found.top]
        print_one({**record, **_fields(found)}, shown, as_json, explained, found.text)
        return
    timed = sum("times" in record for records in groups.values() for record in records)
    used = timed and predictor.trained.processor.times
    check_inputs(predictor, verb, groups, [[0.0] * len(group) for group in groups] if used else None)
    if timed and not used:
        _say_ignored(timed)
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
    if Path(first).suffix == ".jsonl" and not is_url(first):
        if rest:
            raise UserError(f"{first} has its own questions; omit {rest[0]!r}")
        if ids:
            raise UserError(f"{first} names its own images; omit --images")
        if folder is not None and regions:
            raise UserError(f"--folder {folder} is for files, and --regions reads a region store; omit one of them")
        return _asked_in(input_file(first), folder, regions)
    if folder is not None:
        raise UserError(f"--folder {folder} is for the images of a .jsonl file; omit it")
    chosen = Images([image_or_folder(first)] if first and not regions else [], regions, ids)
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
    asked_about = jsonl_questions(file)
    videos: Mapping[str, tuple[Group, tuple[float, ...]]] = {}
    if any(asked.is_video for asked in asked_about):
        videos = (chosen if regions else Images([folder or file.parent], None, None)).videos(mixed=True)
    for asked in asked_about:
        if asked.is_video and asked.image_id not in videos:
            raise UserError(f"{file}: there are no frames of video {asked.image_id!r}; cut it with `dimvl frames`")
        if asked.is_video:
            group, seconds = videos[asked.image_id]
        else:
            files = () if regions else (str(inside(folder or file.parent, name)) for name in asked.image_ids)
            group, seconds = asked.image_ids if regions else tuple(files), asked.times
        times = {"times": seconds} if seconds else {}
        about = {"video": asked.written_ids[0]} if asked.is_video else named(asked.written_ids, len(group) > 1)
        record = {**about, **times, "question_id": asked.question_id}
        groups.setdefault(group, []).append({**record, "question": asked.text})
    if not groups:
        raise UserError(f"{file} has no question; give one per line")
    chosen.check({name: None for group in groups for name in group})
    return chosen, groups


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
    explain: Explain = False,
    draw: Draw = None,
    as_json: AsJson = False,
    adapter: Adapter = None,
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
    check_explaining(chosen, groups, explain, draw)
    predictor = open_model(model, device, threads, adapter)
    check_inputs(predictor, "match", groups)
    if chosen.is_single(groups):
        [group] = groups
        probability, explained = predict_one(predictor, chosen, groups, explain, draw, "match", wanted[0])
        record = {**named(group, together), "text": wanted[0], "probability": probability}
        print_one(record, [f"{probability:.3f}"], as_json, explained, wanted[0])
        return
    as_json = as_json or len(wanted) > 1 or not {*chosen.names} <= {*chosen.named}
    with chosen.regions(predictor, groups, "pairs of image and text") as batches:
        for found in batches:
            pairs = [(group, one) for group in found for one in groups[group]]
            probabilities = predictor.match([found[group] for group, _ in pairs], [one for _, one in pairs])
            for (group, one), probability in zip(pairs, probabilities, strict=True):
                record = {**named(group, together), "text": one, "probability": probability}
                print_one(record, [f"{group[0]}: {probability:.3f}"], as_json)


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
    return [image_path(image) for image in images], list(dict.fromkeys(wanted))


def print_one(
    record: Mapping[str, Any],
    lines: Sequence[str],
    as_json: bool,
    explained: "Explanation | None" = None,
    shown: str = "",
) -> None:
    """Print a result as soon as it is ready, as JSON or in lines, and what `shown` rests on."""
    if as_json:
        print(json.dumps({**record, **(as_fields(explained) if explained else {})}), flush=True)
        return
    for line in lines:
        print_text(line)
    if explained is not None:
        print_explanation(explained, shown)
