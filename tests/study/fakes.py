"""Studies whose commands only write what dimvl would, without training."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dimvl.config import read_keys
from dimvl.study import runner
from dimvl.study.config import StudyConfig
from dimvl.study.runner import Runner
from dimvl.study.stages import make_grid

# Appends its words to the file `calls`. A training that cannot be found "fails"; an evaluation answers as many of 20
# questions rightly as its folder's name says: scratch 8, any other 14, and one more for each seed.
PROGRAM = """
import json, pathlib, sys
words = sys.argv[1:]
print(*words, file=open("calls", "a"))
values = dict(word.split("=", 1) for word in words if "=" in word)
if "fail" in values.get("output", "") and not pathlib.Path("mended").exists():
    sys.exit("error: no such regions; give others")
if words[0] != "evaluate":
    pathlib.Path(values["output"]).mkdir(parents=True, exist_ok=True)
    pathlib.Path(values["output"], "steps").write_text(values["training.steps"])
    sys.exit()
folder = pathlib.Path(words[1])
seed, right = int(folder.name[-1]), 8 if "scratch" in words[1] else 14
out = folder / "evaluation"
out.mkdir(parents=True)
items = [
    {"question_id": n, "image_id": n, "question": "?", "answers": ["yes"], "accuracy": float(n < right + seed)}
    for n in range(20)
]
(out / "items.jsonl").write_text("".join(json.dumps(item) + chr(10) for item in items))
(out / "scores.json").write_text(json.dumps({"task": "vqa", "overall": (right + seed) / 20}))
(out / "manifest.json").write_text(json.dumps({"model": {"sha256": words[1]}}))
"""
STUDY: dict[str, Any] = {
    "output": "out",
    "seeds": [0],
    "baseline": "scratch",
    "x": "labels",
    "points": [{"x": 10, "steps": 2}, {"x": 200, "steps": 3}],
    "values": {"run": "{out}/{setting}/{x}-{seed}"},
    "stages": {
        "pretrain": "pretrain {here}/pretrain.yaml output={out}/pretrained-{seed} seed={seed} training.steps=4",
        "answer": "finetune {here}/vqa.yaml initial={initial} output={run} seed={seed} training.steps={steps}",
        "score": "evaluate {run} --regions regions --questions questions.json",
    },
    "settings": {
        "scratch": {"stages": ["answer", "score"], "values": {"initial": "null"}},
        "pretrained": {"stages": ["pretrain", "answer", "score"], "values": {"initial": "{out}/pretrained-{seed}"}},
    },
}


def write_study(folder: Path, **changes: Any) -> Path:
    """A study, the configurations of its trainings, and what they read."""
    training = {"steps": 1, "rows_per_step": 100, "rows_per_micro_batch": 100, "learning_rate": 0.001}
    common = {"output": "run", "regions": "regions", "training": training}
    for name, own in {"pretrain": {"captions": "c.json"}, "vqa": {"questions": "q.json"}}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **own}))
    for name in ("regions", "c.json", "q.json", "questions.json"):
        (folder / name).touch()
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, width=1000, sort_keys=False))
    return path


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str = PROGRAM) -> None:
    """Run studies in a folder, with a program in the place of dimvl."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, "-S", "-c", program))
    monkeypatch.setattr(runner, "POLL", 0.01)


def make_runner(path: Path, *overrides: str) -> Runner:
    """The stages of a study, as the command makes them."""
    config = read_keys(StudyConfig, path, overrides)
    return Runner(make_grid(config, path.parent), config.output)


def read(path: Path) -> StudyConfig:
    return read_keys(StudyConfig, path)


def calls(folder: Path) -> list[str]:
    """Commands that were run, without their options, since the last call."""
    path = folder / "calls"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "out" / "results.json").read_text()))
