"""The commands and the Python of docs/tutorial.md and of pages that need no data run, at a small size."""

import re
import shlex
from pathlib import Path

import pytest

from dimvl.tasks import load_config
from dimvl.tasks.pretraining.config import PretrainConfig
from tests.test_docs import ROOT, blocks
from tests.test_real_data import call

CONFIGS = ROOT / "configs" / "tutorial"
MODEL = ["model.layers=1", "model.width=24", "model.heads=2", "model.inner_width=32"]
ROWS = ["training.rows_per_step=300", "training.rows_per_micro_batch=300"]
TRAINING = ["training.steps=2", "training.warmup_steps=0", *ROWS, *MODEL]
SMALL = {
    "scenes": ["--train", "14", "--heldout", "16", "--compositional", "0", "--questions-per-image", "2"],
    "pretrain": TRAINING,
    "finetune": TRAINING,
}


def run(monkeypatch: pytest.MonkeyPatch, text: str) -> list[list[str]]:
    """Run the commands of a block, in which NAME=VALUE sets a variable; return them."""
    text = text.replace("\\\n", " ")
    while given := re.match(r"(\w+)=(\S+?)(?:;\s*|\n)", text):
        text = text[given.end() :].replace(f"${given[1]}", given[2])
    words = [shlex.split(line) for line in text.splitlines()]
    for program, *rest in words:
        assert program == "dimvl", program
        call(monkeypatch, [*rest, *SMALL.get(rest[0], [])])
    return words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_tutorial_and_what_the_readme_does_with_the_same_models(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "tutorial.md"
    for block in blocks(page, ""):
        run(monkeypatch, block)
    assert (folder / "explained.png").stat().st_size > 1000
    readme = ROOT / "README.md"
    for name, place in (("scenes", "scenes"), ("regions", "stores"), ("exports", "exports")):  # as `make demo` has them
        (folder / "runs/demo").mkdir(exist_ok=True)
        (folder / "runs/demo" / name).symlink_to(folder / place)
    (search,) = (block for block in blocks(readme, "") if "dimvl " in block)
    image = folder / "scenes/heldout/images/000002000001.png"
    assert image.exists()
    run(monkeypatch, search)
    assert "<img" in (folder / "found.html").read_text()
    capfd.readouterr()
    for code in (*blocks(page, "python"), *blocks(readme, "python")):
        exec(code, {})
    assert len(capfd.readouterr().out.splitlines()) > 4


def test_the_fine_tuning_of_the_tutorial_uses_the_inputs_and_the_model_of_its_pretraining() -> None:
    pretrain, vqa, caption = (load_config(CONFIGS / f"{name}.yaml") for name in ("pretrain", "vqa", "caption"))
    assert isinstance(pretrain, PretrainConfig)
    for config in (vqa, caption):
        assert (config.initial, config.inputs, config.regions) == (pretrain.output, pretrain.inputs, pretrain.regions)
        assert config.model.model_copy(update={"dropout": 0}) == pretrain.model


def test_the_commands_about_scenes_and_about_plans_need_no_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in ("scenes.md", "scaling.md"):
        for block in blocks(ROOT / "docs" / page, ""):
            run(monkeypatch, block)
    assert (folder / "scenes/train/captions.json").exists() and (folder / "more/train/noisy.jsonl").exists()
