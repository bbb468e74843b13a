"""Calls of the command line in this process, and what they give."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import dimvl.cli
from tests.tiny_runs import TinyData, make_config


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


def call(monkeypatch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """`dimvl ARGUMENTS` in this process."""
    monkeypatch.setattr(sys, "argv", ["dimvl", *map(str, arguments)])
    code = 0
    try:
        dimvl.cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        logging.getLogger("dimvl").setLevel(logging.NOTSET)
    return Result(code, *captured.readouterr())


def refused(result: Result, *words: str) -> None:
    """Check for one sentence on stderr, nothing on stdout and exit code 2."""
    lines = result.err.strip().splitlines()
    assert result.code == 2, result
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    assert result.out == ""
    for word in words:
        assert word in lines[0]


def write_config(tmp_path: Path, data: TinyData, task: str) -> Path:
    made = make_config(data, tmp_path / "runs" / task, task, training={"save_every": 2})
    path = tmp_path / f"{task}.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json")))
    return path
