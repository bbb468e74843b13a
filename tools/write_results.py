"""Put the scores of a finished demo into the README and its times into docs/experiments.md.

python tools/write_results.py runs/demo "2-core AMD EPYC (AVX2)" 2026-11-22
python tools/write_results.py runs/full "2-core AMD EPYC (AVX2)" 2026-11-22 --full

`results.json` itself is copied to docs/results. With `--full` everything goes into docs/experiments.md and
docs/results/full.json: it is the run of configs/scenes/full.yaml.
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimvl.demo_results import goals_of
from dimvl.files import read_json
from dimvl.training.report import format_seconds

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Read the demo, write both pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("hardware")
    parser.add_argument("date")
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    results = read_json(arguments.demo / "results.json")
    command = "dimvl demo --config configs/scenes/full.yaml" if arguments.full else "make demo"
    source = f"`{command}`, seed {results['seed']}, {arguments.hardware}, {arguments.date}"
    log = ROOT / "docs" / "experiments.md"
    name = "full" if arguments.full else "demo"
    fill(
        log if arguments.full else ROOT / "README.md", "full" if arguments.full else "results", scores(results, source)
    )
    fill(log, f"{name}-times", times(results, source))
    shutil.copy(arguments.demo / "results.json", ROOT / "docs" / "results" / f"{name}.json")


def scores(results: Mapping[str, Any], source: str) -> str:
    """Scores beside goals and baselines."""
    vqa = results["vqa"]
    lines = [
        f"Synthetic scenes, held-out split; {source}. The goals are our own; what is not met is said. One seed; "
        "docs/experiments.md tells on which scenes the settings were chosen.",
        "",
    ]
    lines += ["| score | reached | goal | |", "|---|---|---|---|"]
    for goal in goals_of(results):
        lines.append(f"| {goal.name} | {goal.value:.3f} | {goal.goal:.3f} | {'met' if goal.met else 'not met'} |")
    lines += ["", "| VQA accuracy of | all | " + " | ".join(kinds := sorted(vqa["by_kind"]["heldout"])) + " |"]
    lines.append("|---" * (len(kinds) + 2) + "|")
    names = {
        "heldout": "pretrained, held-out",
        "compositional": "pretrained, unseen combinations",
        "ground_truth_boxes": "pretrained, generator's boxes",
        "no_pretraining": "no pretraining",
        "question_only": "question only",
        "majority": "most common answer",
    }
    for key, name in names.items():
        row = " | ".join(f"{vqa['by_kind'][key][kind]:.3f}" for kind in kinds)
        lines.append(f"| {name} | {vqa[key]:.3f} | {row} |")
    if before := results["caption"].get("before_self_critical"):
        names = ("fact_precision", "attribute_precision", "relation_precision", "fact_recall")
        shown = ", ".join(f"{name.replace('_', ' ')} {before[name]:.3f}" for name in names)
        lines += ["", f"Captions before self-critical training: {shown}."]
    return "\n".join(lines)


def times(results: Mapping[str, Any], source: str) -> str:
    """Seconds by stage."""
    seconds = {name: value for name, value in results["seconds"].items() if name != "wall"}
    lines = [f"Measured: {source}; peak memory {results['peak_memory_gb']} GB.", "", "| stage | seconds |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in seconds.items()]
    work = format_seconds(sum(seconds.values()))
    return "\n".join(
        [*lines, f"| all, two at a time | {work} of work, {format_seconds(results['seconds']['wall'])} in all |"]
    )


def fill(path: Path, mark: str, text: str) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- /mark -->`."""
    content = path.read_text(encoding="utf-8")
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    head, _, rest = content.partition(start)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"{path} has no {start} ... {end}")
    path.write_text(f"{head}{start}\n{text}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
