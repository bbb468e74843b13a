"""The option --explain of the commands that predict: the regions behind a result."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimvl.cli.app import print_text
from dimvl.cli.inputs import Groups, Images
from dimvl.errors import UserError

if TYPE_CHECKING:
    from dimvl.explanation import Explanation, RegionDrop

Explain = Annotated[
    bool, typer.Option("--explain", help="Print how much the probability of the result drops without each region.")
]


def refuse_several(chosen: Images, groups: Groups, explain: bool) -> None:
    """Refuse to explain the results of several inputs."""
    if explain and not chosen.is_single(groups):
        raise UserError("--explain needs one image and one question or text; omit it")


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
        print_text("region whose removal costs each word most:")
    for place, word in enumerate(explanation.words if explanation.regions else ()):
        region = max(explanation.regions, key=lambda one: one.word_drops[place])
        print_text(f"{region.word_drops[place]:+.3f}  {word}: {_described(region)}")


def _described(region: "RegionDrop") -> str:
    name = " ".join((*region.attributes, region.name)) or "unnamed region"
    return f"{name} ({region.score:.2f}) at {', '.join(f'{side:.0f}' for side in region.box)}"
