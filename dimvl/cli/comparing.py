"""The command `compare`."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimvl.cli.app import AsJson, app, input_folder, print_text
from dimvl.errors import UserError
from dimvl.showing import counted

if TYPE_CHECKING:
    from dimvl.metrics.comparison import Difference, Estimate
    from dimvl.metrics.intervals import Interval

Groups = dict[str, Sequence[Path]]
COLUMNS = ("score", "baseline", "this", "difference", "over images", "over seeds", "")


@app.command()
def compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(
            metavar="EVALUATION...",
            help="Folders that `dimvl evaluate` wrote, the baseline first; the seeds of one setting as "
            "NAME=FOLDER,FOLDER,...",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Compare evaluations of the same annotations: differences from the first, with 95% intervals.

    Intervals over images are by the paired bootstrap, after averaging the seeds of a setting; those over seeds by
    Welch's t, if both settings have three or more. A difference is claimed if each of these intervals excludes zero.

    Example: dimvl compare none=runs/a0/evaluation,runs/a1/evaluation pretrained=runs/b0/evaluation,runs/b1/evaluation
    """
    named = _groups(evaluations)
    from dimvl.metrics.comparison import differences, estimate
    from dimvl.metrics.evaluations import common_measures, read_groups
    from dimvl.metrics.measures import score_name, units_of

    groups = read_groups(named)
    _, partial = common_measures(groups)
    estimates = estimate(groups)
    baseline, *others = (group.name for group in groups)
    if not as_json:
        items = [*groups[0].seeds[0].items.values()]
        images = counted(len(set(units_of(items))), "image")
        print_text(f"{counted(len(items), 'item')} of {images}; 95% intervals")
        print_text(f"baseline: {_title(baseline, named)}")
    for name in others:
        found = differences(estimates[baseline], estimates[name])
        records = [
            _record(baseline, name, score_name(place), estimates[baseline][place], estimates[name][place], difference)
            for place, difference in found.items()
        ]
        for record in records if as_json else ():
            print(json.dumps(record))
        for line in () if as_json else ("", _title(name, named), *_table(records)):
            print_text(line)
    if partial:
        left_out = ", ".join(map(score_name, partial))
        print_text(f"left out: {left_out}, which not all evaluations have", error=True)
        raise typer.Exit(1)


def _groups(words: Sequence[str]) -> Groups:
    """Read the arguments: name -> folders. A folder whose name has `=` or `,` is that folder."""
    if len(words) < 2:
        raise UserError(f"{words[0]} is the only evaluation; give those to compare it with after it")
    found: Groups = {}
    for word in words:
        name, equals, folders = word.partition("=")
        if os.path.isdir(word) or not equals:
            name, parts = word, [word]
        else:
            parts = folders.split(",")
        if not name or not all(parts):
            raise UserError(f"{word} is not of the form NAME=FOLDER,FOLDER; name the setting and each folder")
        if name in found:
            raise UserError(f"{name} is named twice; give all seeds of a setting as {name}=FOLDER,FOLDER")
        found[name] = [input_folder(part) for part in parts]
    return found


def _title(name: str, named: Groups) -> str:
    return f"{name} ({counted(len(named[name]), 'seed')})"


def _record(
    baseline: str, name: str, score: str, before: "Estimate", after: "Estimate", difference: "Difference"
) -> dict[str, Any]:
    """Return a difference for JSON."""
    return {
        "baseline": baseline,
        "setting": name,
        "score": score,
        "baseline_value": before.mean,
        "value": after.mean,
        "difference": difference.value,
        "over_images": difference.over_images,
        "over_seeds": difference.over_seeds,
        "verdict": difference.verdict,
    }


def _table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table, with a head."""
    rows = [COLUMNS]
    for record in records:
        values = f"{record['baseline_value']:.4f}", f"{record['value']:.4f}", f"{record['difference']:+.4f}"
        intervals = _shown(record["over_images"], "undefined"), _shown(record["over_seeds"], "needs 3 seeds")
        rows.append((record["score"], *values, *intervals, record["verdict"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _shown(interval: "Interval | None", otherwise: str) -> str:
    return otherwise if interval is None else f"{interval.low:+.4f} to {interval.high:+.4f}"
