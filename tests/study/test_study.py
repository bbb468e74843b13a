"""`dimvl study`: what runs, what is skipped, and what it makes of scores."""

import json
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dimvl.errors import Interrupted
from dimvl.study import runner
from tests.cli.calls import Result, call, refused
from tests.study.fakes import STUDY, calls, make_runner, pretend, results, write_study


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """`dimvl study` in an empty folder, whose stages write what dimvl would."""
    pretend(monkeypatch, tmp_path)

    def run(*words: object, **changes: Any) -> Result:
        return call(monkeypatch, capfd, "study", write_study(tmp_path, **changes), *words)

    return run


def test_each_stage_runs_once_and_none_again_with_the_same_words(study: Any, tmp_path: Path) -> None:
    assert study().code == 0
    assert Counter(line.split()[0] for line in calls(tmp_path)) == {"pretrain": 1, "finetune": 4, "evaluate": 4}
    before = results(tmp_path)
    assert study().code == 0 and calls(tmp_path) == []
    assert results(tmp_path) == before
    more = [{"x": 10, "steps": 2}, {"x": 200, "steps": 3}, {"x": 30, "steps": 2}]
    assert study(points=more).code == 0 and len(calls(tmp_path)) == 4, "only the new point"
    (tmp_path / "out/scratch/10-0/evaluation").rename(tmp_path / "lost")
    assert study().code == 0 and len(calls(tmp_path)) == 1, "what has been removed is made again"


def test_a_stage_whose_words_changed_runs_again_with_all_that_need_it_and_the_old_one_is_kept(
    study: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert study().code == 0
    calls(tmp_path)
    stages = {**STUDY["stages"], "pretrain": STUDY["stages"]["pretrain"].replace("steps=4", "steps=5")}
    assert study(stages=stages).code == 0
    again = ["pretrain", "finetune", "evaluate", "finetune", "evaluate"]
    assert [line.split()[0] for line in calls(tmp_path)] == again, "scratch has not changed"
    assert (tmp_path / "out/pretrained-0/steps").read_text() == "5"
    assert (tmp_path / "out/replaced/pretrained-0-1/steps").read_text() == "4"
    assert "pretrained-0 runs again, since it was another command; its earlier folder is now out/" in caplog.text


def test_a_configuration_that_changed_is_another_command_too(study: Any, tmp_path: Path) -> None:
    path = write_study(tmp_path)
    make_runner(path).run(2)
    assert len(make_runner(path).ended) == 9
    config = tmp_path / "pretrain.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
    left = set(make_runner(path).grid.stages) - make_runner(path).ended
    assert len(left) == 5 and not any("scratch" in name for name in left)


def test_a_stage_that_fails_is_told_and_stops_only_those_that_need_it(
    study: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = {**STUDY["stages"], "pretrain": STUDY["stages"]["pretrain"].replace("pretrained-", "fail-")}
    settings = {**STUDY["settings"]}
    settings["pretrained"] = {**settings["pretrained"], "values": {"initial": "{out}/fail-{seed}"}}
    result = study("--jobs", 2, stages=stages, settings=settings)
    assert result.code == 1
    assert "fail-0 failed with exit code 1: error: no such regions; give others; the command was: dimvl" in caplog.text
    assert "1 stage failed, 4 others that need it left out; see out/logs/fail-0.txt" in result.err
    found = results(tmp_path)
    assert len(found["left_out"]) == 5 and {record["setting"] for record in found["scores"]} == {"scratch"}
    assert len(calls(tmp_path)) == 1 + 4
    (tmp_path / "mended").touch()
    assert study("--jobs", 2, stages=stages, settings=settings).code == 0
    assert len(calls(tmp_path)) == 5, "those that failed or waited, and no others"


def test_a_study_that_was_stopped_stops_its_stages_and_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    waiting = """
import signal, sys, time, pathlib
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("saved").touch(), sys.exit(143)))
pathlib.Path("begun").touch()
time.sleep(30)
"""
    pretend(monkeypatch, tmp_path, waiting)
    path = write_study(tmp_path)

    def stop(line: str, must: bool) -> None:
        if Path("begun").exists():
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="run the same command to resume it"):
        make_runner(path).run(1, stop)
    assert (tmp_path / "saved").exists(), "its stage was asked to save a checkpoint"
    assert make_runner(path).ended == set()
    pretend(monkeypatch, tmp_path)
    again = make_runner(path)
    again.run(4)
    assert len(again.ended) == 9 and not (tmp_path / "out/replaced").exists()


def test_no_more_stages_run_at_a_time_than_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path)
    lines: list[str] = []
    make_runner(write_study(tmp_path)).run(2, lambda line, must: lines.append(line))
    numbers = [line.partition("now ")[2].partition(", about")[0].partition(", more")[0].count("(") for line in lines]
    assert max(numbers) == 2 and "0 of 9 stages, now scratch/10-0 (0:00)" in lines[0]
    assert all("fail" not in line for line in lines)


def test_scores_have_means_intervals_and_differences_from_the_baseline(study: Any, tmp_path: Path) -> None:
    result = study("--jobs", 2, "seeds=[0,1,2]", scores=["overall"])
    found = results(tmp_path)
    by_place = {(record["setting"], record["x"]): record for record in found["scores"]}
    scratch, pretrained = by_place["scratch", 10], by_place["pretrained", 10]
    assert scratch["by_seed"] == {"0": 0.4, "1": 0.45, "2": 0.5} and "minus_baseline" not in scratch
    assert pretrained["mean"] == pytest.approx(0.75) and pretrained["minus_baseline"]["value"] == pytest.approx(0.3)
    minus = pretrained["minus_baseline"]
    half = 2.776 * 0.05 * (2 / 3) ** 0.5  # Welch's t; both have standard deviation .05
    assert minus["over_seeds"] == pytest.approx([0.3 - half, 0.3 + half])
    assert minus["over_images"][0] > 0 and minus["verdict"] == "higher"
    assert (found["baseline"], found["seeds"], found["left_out"]) == ("scratch", [0, 1, 2], [])
    assert set(found["seconds"]) == set(make_runner(tmp_path / "study.yaml", "seeds=[0,1,2]").grid.stages)
    table = (tmp_path / "out/results.md").read_text().splitlines()
    assert len(table) == 2 + 4 and table[0].startswith("| setting | labels | score | seeds | mean |")
    assert "| pretrained | 10 | overall | 3 | 0.7500 |" in table[3] and table[3].endswith("| higher |")
    assert all(line in result.out for line in table)
    figure = (tmp_path / "out/figure.svg").read_text()
    assert ">labels</text>" in figure and ">pretrained</text>" in figure and ">200</text>" in figure
    (tmp_path / "out/figure.svg").unlink()
    assert study("seeds=[0,1,2]", scores=["overall"]).code == 0 and (tmp_path / "out/figure.svg").read_text() == figure


def test_an_evaluation_that_cannot_be_compared_is_refused_and_the_scores_of_the_others_are_written(
    study: Any, tmp_path: Path
) -> None:
    assert study().code == 0
    items = tmp_path / "out/pretrained/200-0/evaluation/items.jsonl"
    items.write_text(items.read_text().replace('"?"', '"another?"'))
    (tmp_path / "out/results.json").unlink()
    result = study()
    assert result.code == 2 and "error: question 0 differs in question between out/pretrained/200-0" in result.err
    assert {record["x"] for record in results(tmp_path)["scores"]} == {10}


def test_a_study_of_some_settings_runs_and_shows_no_other(study: Any, tmp_path: Path) -> None:
    result = study("only=[scratch]")
    assert result.code == 0 and not any("pretrain" in call for call in calls(tmp_path))
    assert {record["setting"] for record in results(tmp_path)["scores"]} == {"scratch"}
    assert study().code == 0 and len(results(tmp_path)["seconds"]) == 9, "the others can follow"


def test_a_stage_that_took_no_time_has_its_seconds_too(study: Any, tmp_path: Path) -> None:
    assert study().code == 0
    for mark in (tmp_path / "out/done").rglob("*.json"):
        mark.write_text(json.dumps(json.loads(mark.read_text()) | {"seconds": 0.0}))
    assert study().code == 0 and list(results(tmp_path)["seconds"].values()) == [0.0] * 9


def test_a_study_without_points_has_a_row_for_each_setting(study: Any, tmp_path: Path) -> None:
    values = {"run": "{out}/{setting}/{seed}", "steps": 2}
    assert study(points=[], values=values).code == 0
    figure = (tmp_path / "out/figure.svg").read_text()
    assert ">scratch</text>" in figure and ">overall</text>" in figure
    assert (tmp_path / "out/results.md").read_text().splitlines()[0].startswith("| setting | score | seeds |")


def test_a_dry_run_lists_the_work_and_does_none(study: Any, tmp_path: Path) -> None:
    first = study("--dry-run")
    assert first.code == 0 and calls(tmp_path) == [] and not (tmp_path / "out").exists()
    lines = first.out.splitlines()
    assert len(lines) == 9 + 2 and "to run pretrained-0 (4 steps, 400 rows): dimvl pretrain" in first.out
    assert lines[-2] == "9 of 9 stages to run: 5 trainings with 14 steps and 1,400 rows, 4 evaluations"
    assert "the time is unknown until a stage has finished" in lines[-1]
    make_runner(tmp_path / "study.yaml").run(2)
    assert make_runner(tmp_path / "study.yaml", "seeds=[0,1]").seconds_left()[1], "one stage of each kind has ended"
    assert "9 of 18 stages to run" in study("seeds=[0,1]", "--dry-run").out


def test_data_that_no_stage_writes_must_exist_unless_the_stages_that_read_it_have_ended(
    study: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert study().code == 0 and calls(tmp_path)
    again = partial(call, monkeypatch, capfd, "study", tmp_path / "study.yaml")
    for name, message in {
        "regions": "error: stage 'answer': regions does not exist (regions); correct the path, relative to",
        "questions.json": "error: stage 'score': questions.json does not exist (--questions); correct the path",
    }.items():
        (tmp_path / name).unlink()
        for words in ((), ("--dry-run",)):
            refused(again("seeds=[1]", *words), message)
        assert again().code == 0 and calls(tmp_path) == []
        (tmp_path / name).touch()


def test_what_is_wrong_is_one_sentence(study: Any, tmp_path: Path) -> None:
    refused(study("seed=[0]"), "unknown key 'seed'; did you mean 'seeds'?")
    refused(study("include=[a.yaml]"), "include works in files only")
    one = {"scratch": STUDY["settings"]["scratch"]}
    unknown = study(scores=["CIDEr"], settings=one)
    assert unknown.code == 2 and "scores names 'CIDEr', which the evaluations do not have; name some of overall" in (
        unknown.err
    )
    mark = tmp_path / "out/done/scratch/10-0.json"
    mark.write_text("{}")
    refused(study(settings=one), "10-0.json is damaged or of another version", "remove it, and the stage runs again")
    mark.unlink()
    with runner.locked(tmp_path / "out"):
        held = study(settings=one)
    assert held.code == 2 and "another study runs in out; wait for it or stop it" in held.err
