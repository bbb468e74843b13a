import io

import pytest
from rich.console import Console

from dimvl.demo.config import DemoPaths
from dimvl.demo.runner import finish, run_demo, run_stages
from dimvl.demo.stages import Stage
from dimvl.errors import UserError
from dimvl.files import locked, read_json, write_json


def test_the_quick_demo_says_on_the_terminal_and_on_its_page_that_it_is_too_short_to_learn(config, results, tmp_path):
    paths, console = DemoPaths(tmp_path), Console(file=io.StringIO(), width=200)
    for group in ("vqa", "caption", "matching"):
        write_json(paths.scores / f"{group}.json", results[group])
    for file, content in (("detector", {}), ("examples", [])):
        write_json(paths.scores / f"{file}.json", content)
    write_json(paths.wall, {"seconds": 100.0})
    finish(config, paths, [], "dimvl demo --quick", console)
    note = "too short to learn, so its goals are not meant to be met"
    assert note in console.file.getvalue() and note in paths.report.read_text()


def record_call(config, paths, progress):
    with (paths.out / "calls").open("a") as file:
        file.write("x")


def refuse(config, paths, progress):
    raise UserError("the image is missing; draw it")


def test_finished_stages_are_not_repeated_and_stages_after_a_failed_one_do_not_start(config, tmp_path):
    paths = DemoPaths(tmp_path)
    one, three = Stage("one", record_call, (), ""), Stage("three", record_call, ("two",), "")
    for _ in range(2):
        with pytest.raises(UserError, match="stage two: the image is missing; draw it"):
            run_stages(config, paths, [one, Stage("two", refuse, ("one",), ""), three])
    assert (tmp_path / "calls").read_text() == "x"
    run_stages(config, paths, [one, Stage("two", record_call, ("one",), ""), three])
    assert (tmp_path / "calls").read_text() == "xxx"
    assert read_json(paths.stages / "three.json")["seconds"] >= 0


def test_a_demo_that_another_process_runs_is_refused_and_unchanged(tmp_path):
    with (
        locked(tmp_path / "demo"),
        pytest.raises(UserError, match="another process runs a demo in"),
    ):
        run_demo(None, tmp_path / "demo", quick=True)
    assert not list((tmp_path / "demo").iterdir())
