"""Paths of every command: looked for before torch is imported, and `~` as a shell reads it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.calls import Run, refused

CODE = """
import sys
from dimvl.cli import main

for words in CALLS:
    sys.argv = ["dimvl", *words]
    try:
        main()
    except SystemExit as end:
        print(end.code, "torch" in sys.modules)
"""

CALLS = [
    ("caption", "none.png", "--model", "folder"),
    ("caption", "dangling.png", "none.png", "--model", "folder"),
    ("caption", "file.yaml", "--model", "none"),
    ("answer", "none.png", "what?", "--model", "folder"),
    ("answer", "file.yaml", "what?", "--model", "a/b/none"),
    ("match", "none.png", "a cat", "--model", "folder"),
    ("export", "none", "out"),
    ("export", "folder", "out", "--scores", "none.json"),
    ("evaluate", "none", "--regions", "folder", "--questions", "file.yaml"),
    ("evaluate", "folder", "--regions", "none", "--questions", "file.yaml"),
    ("evaluate", "folder", "--regions", "folder", "--questions", "none.json"),
    ("score", "vqa", "--questions", "none.json", "--predictions", "file.yaml"),
    ("score", "caption", "--annotations", "file.yaml", "--predictions", "none.json"),
    ("extract", "none", "out"),
    ("extract", "folder", "out", "--boxes", "none.json"),
    ("import", "none", "out"),
    ("import", "folder", "out", "--classes", "none.txt"),
    ("inspect", "none"),
    ("verify", "none"),
    ("pretrain", "none.yaml"),
    ("plan", "none.yaml"),
    ("profile", "none.yaml"),
    ("demo", "--config", "none.yaml"),
    ("pretrain", "file.yaml"),
    ("profile", "file.yaml"),
    ("finetune", "vqa.yaml", "answers=none.json"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "file.yaml").write_text(
        "output: run\nregions: none\ncaptions: [none.json, none.csv]\ntraining: {steps: 1}\n"
    )
    (tmp_path / "vqa.yaml").write_text(
        "task: vqa\noutput: run\nregions: folder\nquestions: file.yaml\ntraining: {steps: 1}\n"
    )
    return tmp_path


def test_a_path_that_does_not_exist_is_told_before_torch_is_imported(folder: Path) -> None:
    code = CODE.replace("CALLS", repr(CALLS))  # in one fresh process, since each takes half a second
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    told, codes = done.stderr.splitlines(), done.stdout.splitlines()
    assert codes == ["2 False"] * len(CALLS), done.stderr
    for words, line in zip(CALLS, told, strict=True):
        assert line.startswith("error: ") and "not exist" in line and "; " in line, (words, line)
    for part in ("none does not exist (regions)", "none.json does not exist (captions)", "none.csv does not exist"):
        assert part in told[-3], "all at once"


def test_a_home_folder_is_replaced_and_a_variable_refused_in_arguments(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    # As bash passes --out=~/x, and words in quotes.
    assert run("scenes", "~/scenes", "--train", 1, "--heldout", 1, "--compositional", 1).code == 0
    assert (folder / "scenes").is_dir() and not (folder / "~").exists()
    refused(run("plan", "output=x"), "output=x is an override; give the configuration")
    refused(run("inspect", "~/scenes/none"), f"{folder}/scenes/none does not exist")
    refused(run("caption", "file.yaml", "--model=~/none"), "~/none does not exist")
    refused(run("scenes", "$HOME/scenes"), "contains $HOME, which is not replaced here")
    refused(run("scenes", "~no-such-user/scenes"), "begins with ~ but names no user; correct it, or write")
    refused(run("scenes", ""), "a path is empty")
    refused(run("inspect", "file.yaml"), "file.yaml is a file; give a folder")
    refused(run("pretrain", "folder"), "folder is a folder; give a file")
    assert not (folder / "$HOME").exists()
