"""The command classify: labels of images, and of texts about them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimvl.cli.app import Adapter, AsJson, Device, Model, Threads, app, input_file
from dimvl.cli.explaining import Draw, Explain, check_explaining, predict_one
from dimvl.cli.inputs import Group, Ids, Images, Stores, Together, check_inputs, named, open_model
from dimvl.cli.prediction import ImagePaths, print_one
from dimvl.errors import UserError

if TYPE_CHECKING:
    from dimvl.explanation import Explanation
    from dimvl.predictor import Labelled, Predictor


@app.command()
def classify(
    model: Model,
    images: ImagePaths = None,
    text: Annotated[str, typer.Option(help="Text about the images, for a model that was trained with texts.")] = "",
    labels: Annotated[
        Path | None,
        typer.Option(
            parser=input_file,
            help="File of class names, one per line, for a model that aligns; commas separate synonyms.",
        ),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(parser=input_file, help="File of sentences, one per line, in which {} stands for the class name."),
    ] = None,
    regions: Stores = None,
    ids: Ids = None,
    together: Together = False,
    top: Annotated[int, typer.Option(min=1, help="Number of labels to print.")] = 1,
    explain: Explain = False,
    draw: Draw = None,
    as_json: AsJson = False,
    adapter: Adapter = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Print the labels of images, or of a text about them: the model's own labels, or those of a file.

    A model that was trained to classify has its own labels. A model that aligns images and texts takes any as --labels;
    their probabilities add up to 1, so one is always the most probable, even if none fits. Labels of several images are
    printed as they are ready. An image that cannot be read is reported and skipped; the exit code is then 1, or 2 if
    that image was named on the command line.

    Example: dimvl classify left.png right.png --together --text "both show a dog" --model exports/nlvr2

    Example: dimvl classify photos --labels animals.txt --model exports/retrieve --json

    Example: dimvl classify --regions stores/val --images 17 --labels animals.txt --top 3 --model exports/retrieve
    """
    from dimvl.tasks.retrieval.labels import TEMPLATES, read_labels, read_templates

    if labels is None and templates is not None:
        raise UserError(f"--templates {templates} is for the labels of a file; omit it, or give --labels")
    if labels is not None and text:
        raise UserError(f"--labels {labels} and --text are for different models; omit one of them")
    classes = None if labels is None else read_labels(labels)
    sentences = TEMPLATES if templates is None else read_templates(templates)
    chosen = Images(images or [], regions, ids)
    groups = chosen.groups([None], together)
    check_explaining(chosen, groups, explain, draw)
    predictor = open_model(model, device, threads, adapter)
    _check_verb(predictor, labels)
    verb = "classify" if labels is None else "classify by labels"
    check_inputs(predictor, verb, groups)
    if classes is not None:
        from dimvl.tasks.retrieval.zero_shot import embed_classes

        known = embed_classes(predictor.trained, classes, sentences)
    else:
        known = None

    def show(group: Group, found: "Labelled", alone: bool, explained: "Explanation | None" = None) -> None:
        shown = ", ".join(name if top == 1 else f"{name} ({probability:.3f})" for name, probability in found)
        record = {**named(group, together), **({"text": text} if text else {})}
        record |= {"label": found[0][0], "probability": found[0][1], "top": found}
        print_one(record, [shown if alone else f"{group[0]}: {shown}"], as_json, explained, found[0][0])

    if together or chosen.is_single(groups):
        [group] = groups
        asked: dict[str, Any] = {"text": text} if known is None else {"labels": known}
        found, explained = predict_one(predictor, chosen, groups, explain, draw, verb, top=top, **asked)
        show(group, found, alone=True, explained=explained)
        chosen.report()
        return
    with chosen.regions(predictor, groups) as batches:
        for batch in batches:
            every = predictor.classify(list(batch.values()), known, top, text=text)
            for group, found in zip(batch, every, strict=True):
                show(group, found, alone=False)


def _check_verb(predictor: "Predictor", labels: Path | None) -> None:
    """Say which option a model lacks or does not take.

    Raises:
        UserError: a model that aligns has no labels, or one that was trained to classify has some.

    """
    processor = predictor.trained.processor
    if labels is None and processor.aligns and not processor.labels:
        raise UserError("the model has no labels of its own; give a file of class names as --labels")
    if labels is not None and processor.labels and not processor.aligns:
        raise UserError(f"the model was trained to classify by its own labels; omit --labels {labels}")
