"""The command align: which region is which word."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dimvl.cli.app import Adapter, AsJson, Device, Model, Threads, any_path, app, image_file, print_text
from dimvl.cli.inputs import open_model
from dimvl.errors import UserError

if TYPE_CHECKING:
    from dimvl.explanation import Alignment


@app.command()
def align(
    model: Model,
    image: Annotated[Path, typer.Argument(parser=image_file, help="Image, or its URL (http, https).")],
    text: Annotated[str, typer.Argument(help="Text.")],
    draw: Annotated[
        Path | None,
        typer.Option(
            parser=any_path, metavar="FILE", help="PNG file to write: the image with these regions drawn on it."
        ),
    ] = None,
    as_json: AsJson = False,
    adapter: Adapter = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Print which region of an image is most similar to each word of a text.

    Needs a model trained with contrastive alignment. --json prints all similarities.

    Example: dimvl align photo.png "a dog beside a red ball" --model exports/retrieve --draw aligned.png
    """
    if not text.strip():
        raise UserError("the text is empty; give some words")
    from dimvl.files import check_writable

    if draw is not None:
        check_writable(draw.parent)
    predictor = open_model(model, device, threads, adapter)
    found = predictor.align(image, text)
    if not found.regions:
        raise UserError(f"the model finds no region in {image}, so no word has one; give another image")
    best = found.similarities.argmax(axis=1).tolist()
    if as_json:
        regions = [region.record() | {"box": list(region.box)} for region in found.regions]
        for region in regions:
            del region["probability_drop"], region["image"]
        record = {"image": str(image), "text": text, "words": found.words, "regions": regions}
        print(json.dumps({**record, "similarities": found.similarities.tolist(), "best": best}))
    else:
        for word, place, similar in zip(found.words, best, found.similarities, strict=True):
            region = found.regions[place]
            name = " ".join((*region.attributes, region.name)).strip() or "unnamed region"
            box = ", ".join(f"{side:.0f}" for side in region.box)
            print_text(f"{word}: {name} at {box} ({similar[place]:.3f})")
    if draw is not None:
        _draw(image, found, best, draw)


def _draw(image: Path, found: "Alignment", best: list[int], out: Path) -> None:
    """Write the image with the best region of each word, labelled with its words."""
    from dimvl.drawing import draw_regions, save_png
    from dimvl.image_inputs import image_at

    words: dict[int, list[str]] = {}
    for word, place in zip(found.words, best, strict=True):
        words.setdefault(place, []).append(word)
    boxes = [found.regions[place].box for place in words]
    drawn = draw_regions(image_at(image), boxes, [" ".join(own) for own in words.values()], 640)
    save_png(drawn, out)
