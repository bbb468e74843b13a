"""Write the scores of a finished demo into the README and its times into docs/experiments.md.

python tools/write_results.py runs/demo "2-core AMD EPYC (AVX2)" 2026-11-22
python tools/write_results.py runs/full "2-core AMD EPYC (AVX2)" 2026-11-22 --full
python tools/write_results.py runs/real-data "2-core AMD EPYC (AVX-512)" 2026-11-25 --real-data
python tools/write_results.py runs/vqa_rad "2-core AMD EPYC (AVX-512)" 2026-11-29 --vqa-rad

Copies `results.json` to docs/results. `--full` is for a run of configs/scenes/full.yaml: everything goes into
docs/experiments.md and docs/results/full.json. `--real-data` is for the output of tools/run_real_data.py, which goes
into docs/real-data.md and docs/results/real-data.json, together with hardware and date; `--vqa-rad` likewise for
tools/run_vqa_rad.py, docs/radiology.md and docs/results/vqa_rad.json.
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimvl.demo.config import load_demo_config, shipped_config
from dimvl.demo.further import FURTHER
from dimvl.demo.results import goals_of
from dimvl.files import read_json, write_json
from dimvl.showing import format_seconds

ROOT = Path(__file__).parents[1]
CAPTION_SCORES = (
    *("fact_precision", "attribute_precision", "place_precision", "relation_precision"),
    *("fact_recall", "place_recall", "relation_recall", "bad_endings", "repeated_phrases"),
)


def main() -> None:
    """Read the demo's results and write both pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("hardware")
    parser.add_argument("date")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--full", action="store_true")
    kinds.add_argument("--real-data", action="store_true")
    kinds.add_argument("--vqa-rad", action="store_true")
    arguments = parser.parse_args()
    if arguments.vqa_rad:
        results = read_json(arguments.demo / "vqa_rad.json")
        results |= {"hardware": arguments.hardware, "date": arguments.date}
        write_json(ROOT / "docs" / "results" / "vqa_rad.json", results)
        fill(ROOT / "docs" / "radiology.md", "results", vqa_rad(results))
        return
    results = read_json(arguments.demo / "results.json")
    if arguments.real_data:
        results |= {"hardware": arguments.hardware, "date": arguments.date}
        write_json(ROOT / "docs" / "results" / "real-data.json", results)
        fill(ROOT / "docs" / "real-data.md", "results", real_data(results))
        return
    command = "dimvl demo --config configs/scenes/full.yaml --out runs/full" if arguments.full else "make demo"
    source = f"`{command}`, seed {results['seed']}, {arguments.hardware}, {arguments.date}"
    log = ROOT / "docs" / "experiments.md"
    name = "full" if arguments.full else "demo"
    minutes = load_demo_config(shipped_config(name)).minutes
    page, mark = (log, "full") if arguments.full else (ROOT / "README.md", "results")
    fill(page, mark, scores(results, source, minutes))
    fill(log, f"{name}-times", times(results, source))
    shutil.copy(arguments.demo / "results.json", ROOT / "docs" / "results" / f"{name}.json")


def scores(results: Mapping[str, Any], source: str, minutes: float) -> str:
    """Tables of the scores beside their goals, one of them `minutes` of wall-clock time, and of the baselines."""
    vqa = results["vqa"]
    lines = [
        f"Synthetic scenes, held-out split; {source}. The goals are our own, and missed ones are marked. One seed; "
        "docs/experiments.md says on which scenes the settings were chosen.",
        "",
    ]
    lines += ["| score | reached | goal | |", "|---|---|---|---|"]
    for goal in goals_of(results, minutes):
        bound = f"{'at most ' * goal.at_most}{goal.goal:.3f}"
        lines.append(f"| {goal.name} | {goal.value:.3f} | {bound} | {'met' if goal.met else 'not met'} |")
    lines += ["", "| labelled questions | pretrained | not | gain | its interval |", "|---|---|---|---|---|"]
    for number, point in vqa["few_labels"].items():
        low, high = point["interval"]
        values = f"{point['pretrained']:.3f} | {point['none']:.3f} | {point['gain']:.3f} | {low:.3f} to {high:.3f}"
        lines.append(f"| {int(number):,} | {values} |")
    lines += ["", "| VQA accuracy of | all | " + " | ".join(kinds := sorted(vqa["by_kind"]["heldout"])) + " |"]
    lines.append("|---" * (len(kinds) + 2) + "|")
    names = {
        "heldout": f"pretrained, {vqa['labels']:,} labels",
        "compositional": "pretrained, unseen combinations",
        "ground_truth_boxes": "pretrained, generator's boxes",
        "zero_shot": "pretrained, no labels (statements)",
        "no_pretraining": f"no pretraining, {vqa['labels']:,} labels",
        "question_only": "question only",
        "majority": "most common answer",
    }
    for key, name in names.items():
        row = " | ".join(f"{vqa['by_kind'][key][kind]:.3f}" for kind in kinds)
        lines.append(f"| {name} | {vqa[key]:.3f} | {row} |")
    return "\n".join([*lines, "", *captions(results["caption"]), *search(results.get("search")), *further(results)])


def search(scores: Mapping[str, Any] | None) -> list[str]:
    """Return a table of the recall of a search by captions, if there was one."""
    if scores is None:
        return []
    rows = {
        "one caption": scores["one_caption"],
        "one caption, by embedding alone": scores["one_caption"]["embedding_only"],
        "all captions of an image": scores["all_captions"],
        "all captions, by embedding alone": scores["all_captions"]["embedding_only"],
        "all captions, by shared words and names": scores["bag_of_words"],
    }
    lines = ["", f"| search of {scores['images']} images by | R@1 | R@5 | R@10 |", "|---|---|---|---|"]
    return lines + [f"| {name} | {own['r1']:.3f} | {own['r5']:.3f} | {own['r10']:.3f} |" for name, own in rows.items()]


def further(results: Mapping[str, Any]) -> list[str]:
    """Return a table of the scores of further tasks, if there were some."""
    tasks = {task: results[task] for task in FURTHER if task in results}
    if not tasks:
        return []
    lines = ["", "| task | number | accuracy | its interval | beside it | by kind |", "|---|---|---|---|---|---|"]
    for task, scores in tasks.items():
        beside = {name: value for name, value in scores.items() if name != "accuracy" and isinstance(value, float)}
        cells = [
            task,
            f"{scores['count']:,}",
            f"{scores['accuracy']:.3f}",
            "{:.3f} to {:.3f}".format(*scores["interval"]),
        ]
        cells += [_listed(beside), _listed(scores.get("by_kind", {}))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _listed(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items())


def captions(scores: Mapping[str, Any]) -> list[str]:
    """Return a table of caption scores: by cross entropy alone, after self-critical training, and of references."""
    reference = {"fact_recall": "reference_recall"}
    reference |= {f"{kind}_recall": f"reference_{kind}_recall" for kind in ("place", "relation")}
    before = scores.get("before_self_critical")
    rows = {"cross entropy": scores} if before is None else {"cross entropy": before, "self-critical training": scores}
    rows["one reference"] = {name: scores[key] for name, key in reference.items()}
    lines = [f"| captions by | {' | '.join(name.replace('_', ' ') for name in CAPTION_SCORES)} |"]
    lines.append("|---" * (len(CAPTION_SCORES) + 1) + "|")
    for row, found in rows.items():
        values = (f"{found[name]:.3f}" if name in found else "" for name in CAPTION_SCORES)
        lines.append(f"| {row} | {' | '.join(values)} |")
    return lines


def times(results: Mapping[str, Any], source: str) -> str:
    """Return the seconds by stage as a sentence."""
    seconds = {name: value for name, value in results["seconds"].items() if name != "wall"}
    stages = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    work, wall = format_seconds(sum(seconds.values())), format_seconds(results["seconds"]["wall"])
    return (
        f"Measured: {source}; peak memory {results['peak_memory_gb']} GB. Seconds by stage: {stages}. "
        f"Together {work} of work, done in {wall}, two stages at a time."
    )


def real_data(results: Mapping[str, Any]) -> str:
    """Scores of docs/real-data.md beside their baselines."""
    seeds, caption, vqa = results["seeds"], results["caption"], results["vqa"]
    names = {"features": "regions and tags", "text_only": "text only", "raw": "raw images, scene detector"}
    metrics = {"Bleu_1": "BLEU-1", "Bleu_4": "BLEU-4", "METEOR": "METEOR", "ROUGE_L": "ROUGE-L", "CIDEr": "CIDEr"}
    lines = [
        f"`python tools/run_real_data.py`, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, one thread of a "
        f"{results['hardware']}, {results['date']}; scores are means over the seeds. Intervals are 95% "
        "bootstrap intervals over images or questions; they say nothing about the seed.",
        "",
        f"Captions of {caption['count']} images that were not trained on:",
        "",
        f"| | {' | '.join(metrics.values())} | interval | over text only | CIDEr by seed | distinct captions |",
        "|---" * (len(metrics) + 5) + "|",
    ]
    for key, name in names.items():
        run = caption[key]
        means = [f"{sum(scores[metric] for scores in run['official']) / len(seeds):.3f}" for metric in metrics]
        of_seeds = ", ".join(f"{scores['CIDEr']:.3f}" for scores in run["official"])
        distinct = ", ".join(map(str, run["distinct"]))
        lines.append(f"| {name} | {' | '.join(means)} | {_ranges(run, 3)} | {of_seeds} | {distinct} |")
    lines += [
        "",
        f"Answers to {vqa['count']} questions about images that were not trained on, official accuracy in percent:",
        "",
        "| | accuracy | interval | over text only | by seed |",
        "|---|---|---|---|---|",
    ]
    for key in ("features", "text_only"):
        run = vqa[key]
        of_seeds = ", ".join(f"{scores['overall']:.1f}" for scores in run["official"])
        lines.append(f"| {names[key]} | {run['interval'][0]:.1f} | {_ranges(run, 1)} | {of_seeds} |")
    floors = vqa["floors"]
    frequent, constant = floors["most_frequent_training_answer"], floors["best_constant_answer"]
    lines += [
        f'| always "{frequent[0]}", the most frequent training answer | {frequent[1]:.1f} | | | |',
        f'| always "{constant[0]}", the best constant answer | {constant[1]:.1f} | | | |',
        f"| upper bound with the {floors['answers']} training answers | "
        f"{floors['best_of_the_training_answers']:.1f} | | | |",
    ]
    seconds = sum(results["cpu_seconds"].values())
    lines += ["", f"All commands of one seed take {seconds / 60:.0f} CPU minutes and {results['peak_memory_gb']} GB."]
    return "\n".join(lines)


def _ranges(run: Mapping[str, Any], digits: int) -> str:
    """Two columns: the interval of a score, and its difference from text only with the interval of that."""
    _, low, high = run["interval"]
    interval = f"{low:.{digits}f} to {high:.{digits}f}"
    if "over_text_only" not in run:
        return f"{interval} |"
    mean, low, high = run["over_text_only"]
    return f"{interval} | {mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def vqa_rad(results: Mapping[str, Any]) -> str:
    """Table of the scores on VQA-RAD: with images, of the baseline, and the gain, with their intervals."""
    names = ("closed", "open", "overall")
    seeds = f"{len(results['seeds'])} seed{'s' * (len(results['seeds']) > 1)}"
    source = f"`{results['command']}`, {results['hardware']}, {results['date']}"
    lines = [f"Accuracy, mean of {seeds}, and its 95% interval by the bootstrap over images; {source}.", ""]
    lines += ["| questions | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for part, scores in (("", results), (", not rephrased", results["not_rephrased"])):
        rows = {"with images": scores, "question only": scores["question_only"], "gain": scores["minus_question_only"]}
        for row, own in rows.items():
            ends = own["interval_of_images"]
            cells = [f"{own[name]:.3f} ({ends[name][0]:.3f} to {ends[name][1]:.3f})" for name in names]
            lines.append(f"| {row}{part} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fill(path: Path, mark: str, text: str) -> None:
    """Replace the text between `<!-- mark -->` and `<!-- /mark -->`."""
    content = path.read_text(encoding="utf-8")
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    head, _, rest = content.partition(start)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"{path} has no {start} ... {end}")
    path.write_text(f"{head}{start}\n{text}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
