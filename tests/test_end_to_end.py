"""The whole way through the real command line, each step a fresh process, at a size that only proves that it works."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TRAINING = {"steps": 4, "rows_per_step": 600, "rows_per_micro_batch": 600, "learning_rate": 1e-3, "log_every": 1}
COMMON = {
    "regions": "regions",
    "inputs": {"text_tokens": 30},
    "model": {"layers": 1, "width": 32, "heads": 2, "inner_width": 64},
    "training": TRAINING,
}


def dimvl(folder: Path, *arguments: str) -> str:
    """Run a command in a folder; return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    command = [sys.executable, "-W", "error::UserWarning", "-m", "dimvl", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"dimvl {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def write_config(path: Path, **values: str) -> None:
    path.write_text(yaml.safe_dump({**COMMON, **values}))


@pytest.mark.slow
def test_from_scenes_to_an_answer_with_only_the_export_left(tmp_path: Path) -> None:
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    work.mkdir()
    elsewhere.mkdir()
    scenes = ("--train", "12", "--heldout", "3", "--compositional", "0", "--questions-per-image", "5")
    dimvl(work, "scenes", "scenes", *scenes)
    for split in ("train", "heldout"):
        files = (f"scenes/{split}/images", "regions", "--coco", f"scenes/{split}/instances.json")
        dimvl(work, "extract", *files, "--where", "scenes")
    write_config(work / "pretrain.yaml", output="pretrain", captions="scenes/train/captions.json")
    files = {"questions": "scenes/train/questions.json", "annotations": "scenes/train/annotations.json"}
    write_config(work / "vqa.yaml", task="vqa", output="vqa", initial="pretrain", **files)
    captions = {"captions": "scenes/train/captions.json"}
    write_config(work / "caption.yaml", task="caption", output="caption", initial="pretrain", **captions)
    dimvl(work, "pretrain", "pretrain.yaml")
    held = "scenes/heldout"
    files_held = ("--questions", f"{held}/questions.json", "--annotations", f"{held}/annotations.json")
    for task, given in (("vqa", files_held), ("caption", ("--captions", f"{held}/captions.json"))):
        dimvl(work, "finetune", f"{task}.yaml", "training.steps=3")
        scores = json.loads(dimvl(work, "evaluate", task, "--regions", "regions", "--out", f"scores-{task}", *given))
        assert scores["data"]["synthetic"] and scores["count"] == {"vqa": 15, "caption": 3}[task]
        dimvl(work, "export", task, f"../elsewhere/{task}", "--scores", f"scores-{task}/scores.json")
    image_file = min((work / held / "images").iterdir())
    shutil.copy(image_file, elsewhere / "image.png")
    predicted = {str(record["image_id"]): record for record in read(work / "scores-caption" / "predictions.json")}
    image_id = str(int(image_file.stem))
    asked = read(work / held / "questions.json")["questions"]
    question = next(question for question in asked if str(question["image_id"]) == image_id)
    answers = {record["question_id"]: record["answer"] for record in read(work / "scores-vqa" / "predictions.json")}
    shutil.rmtree(work)

    found = json.loads(
        dimvl(elsewhere, "answer", "image.png", question["question"], "--model", "vqa", "--json", "--explain")
    )
    assert found["answer"] == answers[question["question_id"]], "the export answers as the run did"
    assert found["regions"] and {"box", "probability_drop"} <= set(found["regions"][0])
    caption = dimvl(elsewhere, "caption", "image.png", "--model", "caption")
    assert caption.rstrip("\n") == predicted[image_id]["caption"]
    assert "synthetic" in (elsewhere / "vqa" / "README.md").read_text()


def read(path: Path) -> dict:
    return json.loads(path.read_text())
