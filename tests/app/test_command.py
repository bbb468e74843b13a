"""The command `dimvl app`."""

import os
import re
import signal
import socket
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import pytest

import dimvl.cli.browsing
from tests.cli.calls import call, refused

EXPORT = Path("export")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> "partial[object]":
    monkeypatch.chdir(tmp_path)
    EXPORT.mkdir()
    return partial(call, monkeypatch, capfd)


def test_without_its_extra_the_command_says_what_to_install(
    run: "partial[object]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dimvl.cli.browsing, "find_spec", lambda name: None if name == "gradio" else find_spec(name))
    refused(run("app", EXPORT), "gradio", "pip install 'dimvl[app]'")


def test_a_mistake_is_told_before_a_model_is_opened(run: "partial[object]") -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(run("app", EXPORT, "--port", taken.getsockname()[1]), "--port", "give another")
    Path("coco.json").write_text("{}")
    refused(run("app", EXPORT, "--coco", "coco.json"), "--images")
    refused(run("app", "no-export"), "no-export does not exist")
    refused(run("app", EXPORT, "--port", 0), "export lacks")


def test_the_page_is_for_this_machine_only_and_ends_with_an_interruption(exports: object, tmp_path: Path) -> None:
    folder = exports.predictors["all"].trained.weights.parent
    command = [
        sys.executable,
        "-m",
        "dimvl",
        "app",
        str(folder),
        "--port",
        "0",
        "--index",
        str(folder.parent / "index"),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
        # In the background of a script, children ignore interruptions.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    url = re.fullmatch(r"page: (http://127\.0\.0\.1:\d+/)\n", line)
    assert url, process.communicate()
    with urlopen(url[1], timeout=60) as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGINT)
    rest, messages = process.communicate(timeout=60)
    assert (process.returncode, rest) == (130, "") and "Traceback" not in messages
