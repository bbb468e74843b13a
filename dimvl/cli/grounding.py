"""The command ground: which region a phrase refers to."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimvl.cli.app import Adapter, AsJson, Device, Model, Threads, any_path, app, image_file, print_text
from dimvl.cli.inputs import open_model, refuse_empty, say_synthetic
from dimvl.errors import UserError

if TYPE_CHECKING:
    from dimvl.explanation import Grounding


@app.command()
def ground(
    model: Model,
    image: Annotated[Path, typer.Argument(parser=image_file, help="Image, or its URL (http, https).")],
    phrases: Annotated[list[str], typer.Argument(metavar="PHRASE", help="What to find; one phrase or several.")],
    top: Annotated[int, typer.Option(min=1, help="Number of regions to print for each phrase.")] = 1,
    draw: Annotated[
        Path | None,
        typer.Option(
            parser=any_path, metavar="FILE", help="PNG file to write: the image with the regions drawn on it."
        ),
    ] = None,
    as_json: AsJson = False,
    adapter: Adapter = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Print the region of an image that a phrase refers to, as x1, y1, x2, y2 in pixels.

    Several phrases print one JSON object per line. A model that was trained with phrases that fit no region may answer
    none.

    Example: dimvl ground photo.png "the man with the ball" --model exports/ground --draw found.png

    Example: dimvl ground photo.png "the man" "the ball" --model exports/ground --top 3
    """
    refuse_empty(phrases)
    from dimvl.files import check_writable

    if draw is not None:
        check_writable(draw.parent)
    predictor = open_model(model, device, threads, adapter)
    predictor.check("ground", [(image,)], None)
    say_synthetic(predictor)
    found = predictor.ground(image, phrases, top)
    if not any(one.regions for one in found):
        raise UserError(f"the model finds no region in {image}, so no phrase has one; give another image")
    for phrase, one in zip(phrases, found, strict=True):
        if as_json or len(phrases) > 1:
            print(json.dumps({"image": str(image), "phrase": phrase, **_fields(one)}), flush=True)
            continue
        if fits_none(one):
            print_text(f"no region ({one.nowhere:.3f})")
        for region, probability in zip(one.regions, one.probabilities, strict=True):
            name = " ".join((*region.attributes, region.name)).strip() or "unnamed region"
            box = ", ".join(f"{side:.0f}" for side in region.box)
            print_text(f"{box}  {name} ({probability:.3f})")
    if draw is not None:
        _draw(image, phrases, found, draw)


def fits_none(found: "Grounding") -> bool:
    """Whether it is most probable that no region fits."""
    return found.nowhere > max(found.probabilities, default=0.0)


def _fields(found: "Grounding") -> dict[str, Any]:
    regions = [
        {"box": list(region.box), "name": region.name, "attributes": region.attributes, "probability": probability}
        for region, probability in zip(found.regions, found.probabilities, strict=True)
    ]
    box = None if fits_none(found) else regions[0]["box"]
    return {"box": box, "regions": regions, "no_region": found.nowhere}


def _draw(image: Path, phrases: Sequence[str], found: Sequence["Grounding"], out: Path) -> None:
    """Write the image with the best region of each phrase."""
    from dimvl.drawing import draw_regions, save_png
    from dimvl.image_inputs import image_at

    named: dict[tuple[float, float, float, float], list[str]] = {}
    for phrase, one in zip(phrases, found, strict=True):
        if not fits_none(one):
            named.setdefault(one.regions[0].box, []).append(phrase)
    drawn = draw_regions(image_at(image), list(named), ["; ".join(own) for own in named.values()], 640)
    save_png(drawn, out)
