"""Put the scores of a finished demo into the README and its times into docs/experiments.md.

python tools/write_results.py runs/demo "2-core AMD EPYC (AVX2)" 2026-11-22
python tools/write_results.py runs/full "2-core AMD EPYC (AVX2)" 2026-11-22 --full
python tools/write_results.py runs/real-data "2-core AMD EPYC (AVX-512)" 2026-11-25 --real-data

`results.json` itself is copied to docs/results. With `--full`, the run of configs/scenes/full.yaml, everything goes
into docs/experiments.md and docs/results/full.json. With `--real-data`, results of tools/run_real_data.py go into
docs/real-data.md and docs/results/real-data.json, which also keeps hardware and date.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dimvl.demo_config import load_demo_config
from dimvl.demo_results import goals_of
from dimvl.files import read_json, write_json
from dimvl.training.report import format_seconds

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("hardware")
    parser.add_argument("date")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--full", action="store_true")
    kinds.add_argument("--real-data", action="store_true")
    arguments = parser.parse_args()
    results = read_json(arguments.demo / "results.json")
    if arguments.real_data:
        results |= {"hardware": arguments.hardware, "date": arguments.date}
        write_json(ROOT / "docs" / "results" / "real-data.json", results)
        fill(ROOT / "docs" / "real-data.md", "results", real_data(results))
        return
    log = ROOT / "docs" / "experiments.md"
    name, command, page, mark = "demo", "make demo", ROOT / "README.md", "results"
    if arguments.full:
        name, command, page, mark = "full", "dimvl demo --config configs/scenes/full.yaml", log, "full"
    source = f"`{command}`, seed {results['seed']}, {arguments.hardware}, {arguments.date}"
    minutes = load_demo_config(ROOT / "configs" / "scenes" / f"{name}.yaml").minutes
    fill(page, mark, scores(results, source, minutes))
    fill(log, f"{name}-times", times(results, source))
    shutil.copy(arguments.demo / "results.json", ROOT / "docs" / "results" / f"{name}.json")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    first, *rest = (f"| {' | '.join(cells)} |".replace("  ", " ") for cells in (head, *rows))
    return [first, "|---" * len(head) + "|", *rest]


def scores(results: Mapping[str, Any], source: str, minutes: float) -> str:
    """Scores beside goals, of which `minutes` is the one of wall time, and baselines."""
    vqa = results["vqa"]
    goals = [
        [
            goal.name,
            f"{goal.value:.3f}",
            f"{'at most ' * goal.at_most}{goal.goal:.3f}",
            "met" if goal.met else "not met",
        ]
        for goal in goals_of(results, minutes)
    ]
    kinds = sorted(vqa["by_kind"]["heldout"])
    names = {
        "heldout": "pretrained, held-out",
        "compositional": "pretrained, unseen combinations",
        "ground_truth_boxes": "pretrained, generator's boxes",
        "no_pretraining": "no pretraining",
        "question_only": "question only",
        "majority": "most common answer",
    }
    rows = [
        [name, f"{vqa[key]:.3f}", *(f"{vqa['by_kind'][key][kind]:.3f}" for kind in kinds)]
        for key, name in names.items()
    ]
    lines = [
        f"Synthetic scenes, held-out split; {source}. The goals are our own; what is not met is said. One seed; "
        "docs/experiments.md tells on which scenes the settings were chosen.",
        *["", *table(["score", "reached", "goal", ""], goals), ""],
        *table(["VQA accuracy of", "all", *kinds], rows),
    ]
    if before := results["caption"].get("before_self_critical"):
        facts = ("fact_precision", "attribute_precision", "place_precision", "relation_precision", "fact_recall")
        shown = ", ".join(f"{name.replace('_', ' ')} {before[name]:.3f}" for name in facts)
        lines += ["", f"Captions before self-critical training: {shown}."]
    return "\n".join(lines)


def times(results: Mapping[str, Any], source: str) -> str:
    """Seconds by stage."""
    seconds = {name: value for name, value in results["seconds"].items() if name != "wall"}
    rows = [[name, f"{value:.0f}"] for name, value in seconds.items()]
    work, wall = format_seconds(sum(seconds.values())), format_seconds(results["seconds"]["wall"])
    rows.append(["all, two at a time", f"{work} of work, {wall} in all"])
    measured = f"Measured: {source}; peak memory {results['peak_memory_gb']} GB."
    return "\n".join([measured, "", *table(["stage", "seconds"], rows)])


def real_data(results: Mapping[str, Any]) -> str:
    """Scores of docs/real-data.md beside their baselines."""
    seeds, caption, vqa = results["seeds"], results["caption"], results["vqa"]
    names = {"features": "regions and tags", "text_only": "text only", "raw": "raw pictures, detector of the scenes"}
    metrics = {"Bleu_1": "BLEU-1", "Bleu_4": "BLEU-4", "METEOR": "METEOR", "ROUGE_L": "ROUGE-L", "CIDEr": "CIDEr"}
    captions, answers = [], []
    for name, run in [(names[key], caption[key]) for key in names]:
        means = [f"{sum(found[metric] for found in run['official']) / len(seeds):.3f}" for metric in metrics]
        of_seeds = ", ".join(f"{found['CIDEr']:.3f}" for found in run["official"])
        captions.append([name, *means, *_ranges(run, 3), of_seeds, ", ".join(map(str, run["distinct"]))])
    for name, run in [(names[key], vqa[key]) for key in ("features", "text_only")]:
        of_seeds = ", ".join(f"{found['overall']:.1f}" for found in run["official"])
        answers.append([name, f"{run['interval'][0]:.1f}", *_ranges(run, 1), of_seeds])
    floors = vqa["floors"]
    most, constant = floors["most_frequent_training_answer"], floors["best_constant_answer"]
    allowed = f"the best that the {floors['answers']} training answers allow"
    for name, value in (
        (f'always "{most[0]}", the most frequent training answer', most[1]),
        (f'always "{constant[0]}", the best of all constants', constant[1]),
        (allowed, floors["best_of_the_training_answers"]),
    ):
        answers.append([name, f"{value:.1f}", "", "", ""])
    minutes = sum(results["cpu_seconds"].values()) / 60
    ranges = ["interval", "over text only"]
    lines = [
        f"`python tools/run_real_data.py`, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, one thread of a "
        f"{results['hardware']}, {results['date']}; scores are means over the seeds. An interval is that of 95% of the "
        "means when pictures, or questions, are drawn again and again: it tells how a score hangs on them, not on the "
        "seed.",
        *["", f"Captions of {caption['count']} pictures that were not trained on:", ""],
        *table(["", *metrics.values(), *ranges, "CIDEr by seed", "distinct captions"], captions),
        "",
        f"Answers to {vqa['count']} questions on pictures that were not trained on, official accuracy in percent:",
        *["", *table(["", "accuracy", *ranges, "by seed"], answers)],
        *["", f"All commands of one seed take {minutes:.0f} CPU minutes and {results['peak_memory_gb']} GB."],
    ]
    return "\n".join(lines)


def _ranges(run: Mapping[str, Any], digits: int) -> list[str]:
    """The interval of a score, and its difference to text only with the interval of that."""
    _, low, high = run["interval"]
    interval = f"{low:.{digits}f} to {high:.{digits}f}"
    if "over_text_only" not in run:
        return [interval, ""]
    mean, low, high = run["over_text_only"]
    return [interval, f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"]


def fill(path: Path, mark: str, text: str) -> None:
    """Replace what is between `<!-- mark -->` and `<!-- /mark -->`."""
    content = path.read_text(encoding="utf-8")
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    head, _, rest = content.partition(start)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"{path} has no {start} ... {end}")
    path.write_text(f"{head}{start}\n{text}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
