"""Runs of version 0.1, committed as they were after 3 of 6 steps: this version resumes, exports and loads them.

`tests/runs_0_1/` was written by version 0.1 (commit fe53033) from `make_data(folder, 8, empty=3)`, with the folder's
name replaced by FOLDER; `log.jsonl` has all six steps.
"""

import json
import shutil
from pathlib import Path

import pytest

from dimvl.checkpoints import best_checkpoint
from dimvl.config import RunConfig
from dimvl.errors import UserError
from dimvl.export import check_export, export
from dimvl.tasks import CONFIGS, abilities_of
from dimvl.trained_model import load_model
from dimvl.training.run import run_training
from tests.tiny_runs import make_data

RUNS = Path(__file__).parent / "runs_0_1"
ABILITIES = {
    "pretrain": {"answer by statements", "caption", "choose", "match"},
    "vqa": {"answer"},
    "caption": {"caption"},
    "self_critical": {"caption"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs, and the data that they were trained on."""
    folder = tmp_path_factory.mktemp("old")
    make_data(folder / "data", 8, empty=3)
    for run in RUNS.iterdir():
        shutil.copytree(run, folder / run.name)
        for file in (folder / run.name).glob("*.json"):
            file.write_text(file.read_text().replace("FOLDER", str(folder)))
    return folder


def config_of(run: Path) -> RunConfig:
    values = json.loads((run / "run.json").read_text())["config"]
    return CONFIGS[values["task"]].model_validate(values)


def losses(lines: str) -> list[float]:
    return [line["loss"] for line in map(json.loads, lines.splitlines()) if "loss" in line]


@pytest.mark.parametrize("name", ABILITIES)
def test_a_run_of_version_0_1_loads_exports_and_resumes_with_the_losses_that_it_had(folder, tmp_path, name):
    run = shutil.copytree(folder / name, tmp_path / "run")
    assert abilities_of(load_model(run).processor).keys() == ABILITIES[name]
    check_export(export(run, tmp_path / "export", "none"))
    config = config_of(run).model_copy(update={"output": run})
    run_training(config)
    # Sums in another order move a loss by less than this, as in tests/test_golden_curves.py.
    assert losses((run / "log.jsonl").read_text()) == pytest.approx(
        losses((RUNS / name / "log.jsonl").read_text()), rel=1e-5
    )
    assert best_checkpoint(run) is not None and (run / "checkpoints" / "step-00000006").is_dir()


@pytest.mark.parametrize(("inputs", "named"), [({"times": True}, "times"), ({"max_images": 6}, "max_images")])
def test_an_adapter_gives_a_base_of_version_0_1_no_inputs_that_it_lacks(folder, tmp_path, inputs, named):
    old = config_of(folder / "vqa").model_dump(exclude_unset=True)
    changes = {"output": tmp_path / "run", "initial": folder / "pretrain", "adapter": {"head": True}}
    config = CONFIGS["vqa"].model_validate({**old, **changes, "inputs": {**old.get("inputs", {}), **inputs}})
    with pytest.raises(UserError, match=f"inputs.{named} makes .* but the base .* has .*; set inputs.{named}"):
        run_training(config)
