"""tools/stages.py: how tools go on, and that each of them can be started as its page says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dimvl.files import read_json
from tools.stages import ROOT, Stage, argument_parser, minutes, run, save_results, typed


def test_a_stage_that_has_ended_is_not_run_again_and_one_that_failed_is(tmp_path: Path) -> None:
    log = "open('log', 'a').write('x')"
    stage = Stage("seed-0/caption", ["-c", log])
    for _ in range(2):
        run(stage, tmp_path)
    assert (tmp_path / "log").read_text() == "x"
    run(stage._replace(words=["-c", f"{log}; 1"]), tmp_path)
    assert (tmp_path / "log").read_text() == "xx", "other words are another command"

    failing = Stage("seed-0/scores", ["-c", f"{log}; raise SystemExit(3)"])
    for _ in range(2):
        with pytest.raises(
            SystemExit, match="seed-0/scores failed with exit code 3; run the same command again to go on"
        ):
            run(failing, tmp_path)
    assert (tmp_path / "log").read_text() == "xxxx"
    assert minutes(tmp_path, [stage]) == {"seed-0/caption": 0.0}
    assert {path.name for path in (tmp_path / "done").iterdir()} == {"seed-0-caption.json"}, "not those that failed"


def test_a_file_of_results_says_what_they_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/home/me/photos/", str(tmp_path), "--hardware", "a CPU", "--seeds", "0", "1"]
    arguments = argument_parser("", "it.json", data="a folder").parse_args(words)
    monkeypatch.setattr(sys, "argv", ["it.py", *words])
    assert typed(arguments, "-m", "tools.it") == "python -m tools.it DATA OUT --seeds 0 1", "no places of this machine"
    stage = Stage("seed-0/it", ["-c", ""])
    run(stage, tmp_path)
    save_results(arguments, "python it", [stage], {"accuracy": 0.5}, "numpy")
    found = read_json(tmp_path / "it.json")
    assert list(found) == ["command", "hardware", "date", "versions", "accuracy", "minutes"]
    assert (found["command"], found["hardware"], found["accuracy"]) == ("python it", "a CPU", 0.5)
    assert list(found["versions"]) == ["dimvl", "torch", "numpy"] and found["minutes"] == {"seed-0/it": 0.0}


@pytest.mark.parametrize("name", ["run_flickr8k", "run_real_data"])
def test_the_scripts_of_the_pages_start_from_any_folder(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), "--help"]
    ended = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True)
    assert ended.returncode == 0 and "--seeds" in ended.stdout, ended.stderr
