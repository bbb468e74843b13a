"""The command choose: one of several texts."""

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from dimvl.cli.app import Adapter, AsJson, Device, Model, Threads, app, image_path
from dimvl.cli.explaining import Draw, Explain, check_explaining, predict_one
from dimvl.cli.inputs import Group, Ids, Images, Stores, Together, check_inputs, named, open_model, refuse_empty
from dimvl.cli.prediction import print_one
from dimvl.errors import UserError
from dimvl.fields import check_candidates

if TYPE_CHECKING:
    from dimvl.data.answers import Chosen


@app.command()
def choose(
    model: Model,
    candidate: Annotated[list[str], typer.Option(help="Text to choose from; give it two or more times.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE TEXT",
            help="Images or folders, then a question, or '' to compare the candidates alone. With --regions, only the "
            "question.",
        ),
    ] = None,
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
    """Choose the right one of several texts about an image, such as answers to a question.

    Needs a model trained for multiple choice or matching. The probabilities of the candidates add up to 1. Several
    images print one JSON object per line as they are ready. An image that cannot be read is reported and skipped; the
    exit code is then 1, or 2 if that image was named on the command line.

    Example: dimvl choose photo.png "what is it?" --candidate "a dog" --candidate "a cat" --model exports/choose
    """
    *images, text = arguments or [""]
    candidates = [one.strip() for one in candidate]
    refuse_empty(candidates)
    check_candidates(candidates, "the command")
    if not arguments or (not images and not regions):
        raise UserError("no question is given; give it last, or '' to compare the candidates alone")
    if os.path.exists(text):
        raise UserError(f"{text} is a file or a folder, not a question; give a question last, or ''")
    chosen = Images([image_path(image) for image in images], regions, ids)
    groups = chosen.groups([text], together)
    check_explaining(chosen, groups, explain, draw)
    predictor = open_model(model, device, threads, adapter)
    check_inputs(predictor, "choose", groups)

    def fields(group: Group, found: "Chosen") -> dict[str, object]:
        answer = {"candidate": found.candidate, "place": found.place, "probability": found.probability}
        return {**named(group, together), "text": text, **answer, "probabilities": found.probabilities}

    if chosen.is_single(groups):
        [group] = groups
        found, explained = predict_one(predictor, chosen, groups, explain, draw, "choose", text, candidates=candidates)
        print_one(fields(group, found), [found.candidate], as_json, explained, found.candidate)
        return
    with chosen.regions(predictor, groups, "questions") as batches:
        for batch in batches:
            results = predictor.choose(list(batch.values()), text, candidates)
            for group, found in zip(batch, results, strict=True):
                print(json.dumps(fields(group, found)), flush=True)
