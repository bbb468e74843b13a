"""What a study found: scores of its settings and differences from the baseline, as JSON, a table and a figure."""

import logging
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import machine
from typing import Any

from dimvl.errors import UserError
from dimvl.files import atomic_path, git_revision, write_json
from dimvl.metrics.comparison import differences, estimate
from dimvl.metrics.evaluations import common_measures, read_groups
from dimvl.metrics.measures import score_name
from dimvl.study.config import StudyConfig, Value
from dimvl.study.figure import Point, study_svg
from dimvl.study.runner import Runner
from dimvl.study.stages import Grid

logger = logging.getLogger(__name__)
RESULTS, TABLE, FIGURE = "results.json", "results.md", "figure.svg"
Record = dict[str, Any]
INTERVALS = (
    "95%; over_images: bootstrap over images, the same samples for all settings, means of seeds; over_seeds: Student's "
    "t, of differences Welch's; verdict: claimed only if each interval excludes zero"
)


def write_results(config: StudyConfig, runner: Runner, command: str) -> list[str]:
    """Write the results of the stages that have ended into the study's folder.

    Args:
        config: the study.
        runner: its stages.
        command: how it was run.

    Returns:
        The lines of the table; none if no setting has been evaluated.

    Raises:
        UserError: evaluations cannot be compared, or `scores` names one that there is not; the other scores are written
            to results.json before.

    """
    records: list[Record] = []
    refused: UserError | None = None
    for place in _places(runner.grid):
        try:
            records += _records(config, runner, *place)
        except UserError as error:
            refused = refused or error
    seconds = {
        name: mark.seconds for name, mark in runner.marks.items() if mark is not None and mark.seconds is not None
    }
    content = {
        "command": command,
        "machine": f"{machine()}, {os.cpu_count()} cores",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("dimvl", "torch", "numpy")},
        "git_revision": git_revision(),
        "seeds": config.seeds,
        "baseline": config.baseline,
        "intervals": INTERVALS,
        "scores": records,
        "seconds": seconds,
        "left_out": [name for name in runner.grid.stages if name not in runner.ended],
    }
    write_json(config.output / RESULTS, content)
    if refused is not None:
        raise refused
    if not records:
        return []
    wanted = _wanted(config, records)
    lines = table(config, [record for record in records if record["score"] in wanted])
    with atomic_path(config.output / TABLE) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with atomic_path(config.output / FIGURE) as temporary:
        points = _points(config, [record for record in records if record["score"] == wanted[0]])
        temporary.write_text(study_svg(points, config.x if config.points else "", wanted[0]), encoding="utf-8")
    return lines


def _places(grid: Grid) -> list[tuple[Value | None, str]]:
    """Return points and names of evaluations, each pair once."""
    return list(dict.fromkeys((cell.x, evaluation) for cell in grid.cells for evaluation in cell.evaluations))


def _records(config: StudyConfig, runner: Runner, x: Value | None, evaluation: str) -> list[Record]:
    """Return the scores of the settings at a point, beside the baseline where that has ended."""
    seeds: dict[str, dict[int, Path]] = {}
    for cell in runner.grid.cells:
        stage = runner.grid.stages.get(cell.evaluations.get(evaluation, ""))
        if cell.x == x and stage is not None and stage.name in runner.ended:
            seeds.setdefault(cell.setting, {})[cell.seed] = stage.output
    if not seeds:
        return []
    first = {config.baseline: seeds.pop(config.baseline)} if config.baseline in seeds else {}
    seeds = first | seeds
    groups = read_groups({name: [*folders.values()] for name, folders in seeds.items()})
    if partial := common_measures(groups)[1]:
        names = ", ".join(map(score_name, partial))
        logger.warning("left out: %s, which not all evaluations of stage %r have", names, evaluation)
    estimates = estimate(groups)
    records = []
    for setting, found in estimates.items():
        compared = differences(estimates[config.baseline], found) if first and setting != config.baseline else {}
        for score, own in found.items():
            record: Record = {
                "setting": setting,
                "x": x,
                "evaluation": evaluation,
                "score": score_name(score),
                "mean": own.mean,
            }
            record |= {"by_seed": {str(seed): value for seed, value in zip(seeds[setting], own.by_seed, strict=True)}}
            record |= {"over_images": own.over_images, "over_seeds": own.over_seeds}
            if score in compared:
                record["minus_baseline"] = {**compared[score]._asdict(), "verdict": compared[score].verdict}
            records.append(record)
    return records


def _wanted(config: StudyConfig, records: Sequence[Record]) -> list[str]:
    """Return the names of the scores to show."""
    known = list(dict.fromkeys(record["score"] for record in records))
    if unknown := [name for name in config.scores if name not in known]:
        raise UserError(
            f"scores names {unknown[0]!r}, which the evaluations do not have; name some of {', '.join(known)} and run "
            "the same command again: nothing is trained again"
        )
    return config.scores or known[:1]


def table(config: StudyConfig, records: Sequence[Record]) -> list[str]:
    """Return a table in Markdown: each score of each setting, and what it is above the baseline."""
    several = len({record["evaluation"] for record in records}) > 1
    head = ["setting", *([config.x] if config.points else []), "score", "seeds", "mean", "over images", "over seeds"]
    head += [f"minus {config.baseline}", "over images", "over seeds", ""]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for record in records:
        minus = record.get("minus_baseline")
        score = f"{record['evaluation']}: {record['score']}" if several else record["score"]
        cells = [
            record["setting"],
            *([f"{record['x']:,}"] if config.points else []),
            score,
            str(len(record["by_seed"])),
        ]
        cells += [f"{record['mean']:.4f}", _shown(record["over_images"]), _shown(record["over_seeds"])]
        if minus is None:
            cells += [""] * 4
        else:
            intervals = (_shown(minus[name], "+") for name in ("over_images", "over_seeds"))
            cells += [f"{minus['value']:+.4f}", *intervals, minus["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _shown(interval: Sequence[float] | None, sign: str = "") -> str:
    return "" if interval is None else " to ".join(f"{end:{sign}.4f}" for end in interval)


def _points(config: StudyConfig, records: Sequence[Record]) -> Mapping[str, list[Point]]:
    """Return what is drawn: for each setting, or of several evaluations each with its name, its points."""
    several = len({record["evaluation"] for record in records}) > 1
    found: dict[str, list[Point]] = {}
    for name in config.chosen:
        for record in records:
            if record["setting"] == name:
                line = f"{name}, {record['evaluation']}" if several else name
                low, high = record["over_seeds"] or record["over_images"] or (record["mean"],) * 2
                found.setdefault(line, []).append(Point(record["x"], record["mean"], low, high))
    return found
