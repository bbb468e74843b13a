"""The options --explain and --draw of the commands that predict: the regions behind a result."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimvl.cli.app import any_path, print_text
from dimvl.cli.inputs import Groups, Images
from dimvl.errors import UserError

if TYPE_CHECKING:
    from dimvl.explanation import Explanation, RegionDrop
    from dimvl.predictor import Predictor

Explain = Annotated[
    bool, typer.Option("--explain", help="Print how much the probability of the result drops without each region.")
]


Draw = Annotated[
    Path | None,
    typer.Option(
        "--draw",
        parser=any_path,
        metavar="FILE",
        help="With --explain: PNG file to write; the larger the drop, the clearer the region.",
    ),
]


def check_explaining(chosen: Images, groups: Groups, explain: bool, draw: Path | None) -> None:
    """Refuse to explain the results of several inputs, and to draw what cannot be drawn or written."""
    if draw is not None and not explain:
        raise UserError(f"--draw {draw} is for the regions of --explain; give both, or omit it")
    if explain and not chosen.is_single(groups):
        raise UserError("--explain needs one image and one question or text; omit it")
    if draw is None:
        return
    if chosen.store is not None:
        raise UserError(f"--draw {draw} needs image files, which a region store does not have; omit it")
    from dimvl.files import check_writable

    check_writable(draw.parent)


def predict_one(
    predictor: "Predictor",
    chosen: Images,
    groups: Groups,
    explain: bool,
    draw: Path | None,
    verb: str,
    text: str | None = None,
    **options: Any,
) -> tuple[Any, "Explanation | None"]:
    """Return the result of `Predictor.predict` for the only input, and what it rests on if it is to be explained."""
    image = chosen.single(predictor, groups)
    if not explain:
        return predictor.predict(verb, image, text, **options)[0], None
    explained = predictor.explain(image, text, verb, **options)
    if draw is not None:
        from dimvl.drawing import draw_explanation, save_png
        from dimvl.image_inputs import image_at

        [group] = groups
        save_png(draw_explanation([image_at(name) for name in group], explained), draw)
    return explained.result, explained


def as_fields(explanation: "Explanation") -> dict[str, Any]:
    """Return an explanation as fields of a JSON object."""
    words = {"words": list(explanation.words)} if explanation.words else {}
    return words | {"regions": [region.record(explanation.logarithms) for region in explanation.regions]}


def print_explanation(explanation: "Explanation", shown: str) -> None:
    """Print an explanation; `shown` is the result in a line."""
    kind = "log-probability" if explanation.logarithms else "probability"
    print_text(f"{kind} of {shown!r}: {explanation.probability:.3f}")
    print_text(f"{kind} drop when the region is removed:")
    for region in explanation.regions:
        print_text(f"{region.probability_drop:+.3f}  {_described(region)}")
    if explanation.words and explanation.regions:
        print_text("region that each word depends on most:")
    for place, word in enumerate(explanation.words if explanation.regions else ()):
        region = max(explanation.regions, key=lambda one: one.word_drops[place])
        print_text(f"{region.word_drops[place]:+.3f}  {word}: {_described(region)}")


def _described(region: "RegionDrop") -> str:
    name = " ".join((*region.attributes, region.name)) or "unnamed region"
    return f"{name} ({region.score:.2f}) at {', '.join(f'{side:.0f}' for side in region.box)}"
