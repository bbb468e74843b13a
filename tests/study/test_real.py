"""A study of tiny models by the commands themselves, in this process."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import dimvl.cli
from dimvl.config import read_keys
from dimvl.files import read_json
from dimvl.study import runner
from dimvl.study.config import StudyConfig
from dimvl.study.results import write_results
from tests.study.fakes import make_runner
from tests.tiny_runs import make_config, make_data


class InThisProcess:
    """A command that runs when it is started."""

    def __init__(self, command: list[str], **options: Any) -> None:
        before, sys.argv = sys.argv, ["dimvl", *command[len(runner.PROGRAM) :]]
        try:
            dimvl.cli.main()
            self.returncode = 0
        except SystemExit as end:
            self.returncode = int(end.code or 0)
        finally:
            sys.argv = before

    def poll(self) -> int:
        return self.returncode


def test_a_study_trains_evaluates_and_compares_with_the_commands_of_dimvl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(Popen=InThisProcess, DEVNULL=subprocess.DEVNULL))
    data = make_data(tmp_path / "data")
    for name in ("pretrain", "vqa"):
        config = make_config(data, tmp_path / "run", name).model_dump(mode="json")
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    files = f"--questions {data.questions} --annotations {data.annotations}"
    study = {
        "output": "out",
        "seeds": [1],
        "baseline": "scratch",
        "points": [{"x": 4}, {"x": 12}],
        "stages": {
            "pretrain": "pretrain pretrain.yaml output={out}/pretrained-{seed} seed={seed} training.steps=2",
            "answer": "finetune vqa.yaml initial={initial} output={run} seed={seed} training.steps=2 subset={x}",
            "score": f"evaluate {{run}} --regions {data.regions} {files} --allow-trained-images",
        },
        "values": {"run": "{out}/{setting}/{x}-{seed}"},
        "settings": {
            "scratch": {"stages": ["answer", "score"], "values": {"initial": "null"}},
            "pretrained": {"stages": ["pretrain", "answer", "score"], "values": {"initial": "{out}/pretrained-{seed}"}},
        },
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study, width=1000))
    made = make_runner(path)
    made.run(1)
    assert not made.failed and len(made.ended) == 1 + 8
    assert read_json(tmp_path / "out/scratch/4-1/match.json")["texts_used"] == 4
    write_results(read_keys(StudyConfig, path), made, "dimvl study study.yaml")
    scores = read_json(tmp_path / "out/results.json")["scores"]
    assert {(record["setting"], record["x"]) for record in scores} == {
        *(("scratch", 4), ("scratch", 12), ("pretrained", 4), ("pretrained", 12))
    }
    assert all(set(record["by_seed"]) == {"1"} for record in scores)
