"""The tool that measures what bootstrapped captions are worth."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dimvl.config import read_keys
from dimvl.study.config import StudyConfig
from dimvl.tasks import load_config
from tools import measure_bootstrap as tool
from tools.stages import Stage

CONFIGS = Path(__file__).parents[1] / "configs"


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_images_with_clean_captions_have_no_noisy_ones(tmp_path: Path) -> None:
    true = [{"image": n // 2, "caption": f"caption {n}", "noise": "none"} for n in range(40)]
    noisy = [{**line, "caption": "noise", "noise": "swapped"} for line in true]
    tool.lay_out(tmp_path, (true, noisy), tool.SCENES._replace(clean=5))
    parts = {name: lines_of(tmp_path / "captions" / f"{name}.jsonl") for name in ("clean", "truth", "noisy")}
    images = {name: {line["image"] for line in part} for name, part in parts.items()}
    assert len(images["clean"]) == 5 and images["truth"] == images["noisy"] == set(range(20)) - images["clean"]
    assert len(parts["clean"]) == 10 and all(line in true for line in parts["clean"] + parts["truth"])


def test_a_sample_of_the_noisy_captions_is_judged_by_their_noise(tmp_path: Path) -> None:
    true = [{"image": n, "caption": f"caption {n}", "noise": "none"} for n in range(40)]
    noisy = [{**line, "noise": "swapped"} if n % 2 else line for n, line in enumerate(true)]
    tool.lay_out(tmp_path, (true, noisy), tool.FLICKR8K._replace(clean=5, judged=20))
    judged, others = (lines_of(tmp_path / "captions" / f"{name}.jsonl") for name in ("judged", "noisy"))
    assert len(judged) == 20 and {line["label"] for line in judged} == {True, False}
    assert all(
        line["label"] == (line["noise"] == "none") and {k: line[k] for k in others[0]} in others for line in judged
    )


@pytest.mark.parametrize("name", ["scenes", "flickr8k"])
def test_each_setting_of_the_study_gets_its_captions(name: str, tmp_path: Path) -> None:
    for kind in tool.KINDS[name]:
        (tmp_path / "bootstrap" / kind).mkdir(parents=True)
        lines = [{"image": 1, "caption": f"{kind} {origin}", "origin": origin} for origin in ("web", "synthetic")]
        tool.write_lines(tmp_path / "bootstrap" / kind / "captions.jsonl", lines)
    noisy = [{"image": 1, "caption": "b", "noise": "none"}]
    sizes = {"scenes": tool.SCENES, "flickr8k": tool.FLICKR8K}[name]
    tool.lay_out(tmp_path, ([{"image": 1, "caption": "a"}], noisy), sizes._replace(clean=0))
    tool.lay_out_results(tmp_path, tool.KINDS[name])
    found = {path.stem: [line["caption"] for line in lines_of(path)] for path in (tmp_path / "captions").iterdir()}
    assert found["filtered"] == ["separate web"]
    assert found["bootstrapped"] == ["separate web", "separate synthetic"]
    assert found.get("shared", ["shared web", "shared synthetic"]) == ["shared web", "shared synthetic"]
    study = read_keys(StudyConfig, CONFIGS / "studies" / f"{name}-bootstrap.yaml")
    assert study.settings.keys() | {"clean"} | ({"judged"} if sizes.judged else set()) == found.keys()
    assert {*study.scores} <= {*tool.SCORES}


@pytest.mark.parametrize("plan", [tool.train_on_scenes, tool.train_on_flickr8k])
def test_each_training_has_a_valid_configuration_and_starts_from_an_earlier_one(
    plan: Callable[..., list[Stage]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    outputs: list[Path | None] = [None]
    for stage in plan(tool.SCENES, 1):
        _, _, command, path, *values = stage.words
        config = load_config(Path(path), values)
        assert config.command == command and config.initial in outputs
        outputs.append(config.output)
    assert {Path("runs/captioner"), Path("runs/filter")} <= set(outputs)


def test_the_share_of_the_gap_is_that_from_noisy_to_true_captions() -> None:
    means = {"noisy": 0.4, "filtered": 0.45, "bootstrapped": 0.5, "truth": 0.6}
    records = [
        {"evaluation": "answers", "score": "overall", "setting": name, "mean": mean} for name, mean in means.items()
    ]
    found = tool.study_results({"seeds": [0], "intervals": "", "scores": records})
    shares = found["share_of_gap_closed"]["answers: overall"]
    assert shares == pytest.approx({"filtered": 0.25, "bootstrapped": 0.5, "truth": 1.0})
