import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from dimvl.checkpoints import check_checkpoint, latest_checkpoint
from dimvl.config import TrainingConfig
from dimvl.data import epoch_plan
from dimvl.errors import Interrupted, UserError
from dimvl.training import run_folder
from dimvl.training.run import run_training
from tests.tiny_runs import make_config
from tests.training.runs import ROOT, Killed, at_step, bytes_of, kill, log_of, terminate


@pytest.mark.parametrize("task", ["pretrain", "vqa", "caption"])
def test_two_identical_runs_have_the_same_weights_and_log_bit_for_bit(data, tmp_path, task):
    runs = [run_training(make_config(data, tmp_path / name, task)) for name in "ab"]
    assert bytes_of(runs[0]) == bytes_of(runs[1]) and log_of(runs[0]) == log_of(runs[1])


def test_a_stopped_run_saves_and_resumes_bit_for_bit(data, tmp_path, undisturbed, caplog):
    caplog.set_level("INFO")
    config = make_config(data, tmp_path / "run", training={"steps": 8})
    with pytest.raises(Interrupted, match="stopped at step 4 of 8; run the same command") as caught:
        run_training(config, at_step(4, terminate))
    assert caught.value.signal_number == signal.SIGTERM
    assert check_checkpoint(latest_checkpoint(config.output))["step"] == 4 and len(log_of(config.output)) == 4
    assert "resuming" not in caplog.text
    run_training(config)
    assert f"resuming {config.output} from step 4 of 8" in caplog.text and "finished" not in caplog.text
    assert bytes_of(config.output) == bytes_of(undisturbed)
    assert log_of(config.output) == log_of(undisturbed)
    run_training(config)
    assert f"{config.output} is finished, after step 8 of 8; to train again, give another output" in caplog.text
    assert [line["step"] for line in log_of(config.output)] == list(range(1, 9))


@pytest.mark.parametrize("cut", ['{"step": 6, "lo', '{"step": 6, "losses": {"matching": 0.5}'])
def test_a_killed_run_resumes_from_its_last_checkpoint_bit_for_bit(data, tmp_path, undisturbed, cut):
    config = make_config(data, tmp_path / "run", training={"steps": 8, "save_every": 3})
    with pytest.raises(Killed):
        run_training(config, at_step(5, kill))
    assert check_checkpoint(latest_checkpoint(config.output))["step"] == 3
    with (config.output / "log.jsonl").open("a") as log:
        log.write(cut)  # as a kill leaves it
    run_training(config)
    assert bytes_of(config.output) == bytes_of(undisturbed)
    assert log_of(config.output) == log_of(undisturbed), "each step is logged once"


def test_a_damaged_line_of_the_log_is_set_aside_and_the_run_resumes(data, tmp_path, undisturbed, caplog):
    config = make_config(data, tmp_path / "run", training={"steps": 8, "save_every": 3})
    with pytest.raises(Killed):
        run_training(config, at_step(5, kill))
    log = config.output / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"2", b"3", 1)
    log.write_bytes(b"".join(lines))
    run_training(config)
    assert "log.jsonl: 1 damaged lines are moved to log.jsonl.damaged" in caplog.text
    assert (config.output / "log.jsonl.damaged").read_bytes() == lines[1]
    assert bytes_of(config.output) == bytes_of(undisturbed)
    assert log_of(config.output) == [line for line in log_of(undisturbed) if line["step"] != 2]


def test_a_killed_run_with_muon_and_concept_dropout_resumes_bit_for_bit(data, tmp_path):
    settings = {"steps": 8, "save_every": 3, "muon_rate": 0.01}
    inputs = {"concepts": "both", "concept_dropout": 0.5}
    whole = run_training(make_config(data, tmp_path / "whole", training=settings, inputs=inputs))
    config = make_config(data, tmp_path / "run", training=settings, inputs=inputs)
    with pytest.raises(Killed):
        run_training(config, at_step(5, kill))
    run_training(config)
    assert bytes_of(config.output) == bytes_of(whole) and log_of(config.output) == log_of(whole)


def test_a_run_killed_before_its_first_checkpoint_starts_from_scratch(data, tmp_path, undisturbed):
    config = make_config(data, tmp_path / "run", training={"steps": 8})
    with pytest.raises(Killed):
        run_training(config, at_step(2, kill))
    assert bytes_of(run_training(config)) == bytes_of(undisturbed)


def test_a_run_resumes_from_the_previous_checkpoint_once_the_damaged_newest_one_is_removed(data, tmp_path, undisturbed):
    settings = {"steps": 8, "save_every": 3, "keep": TrainingConfig(steps=8).keep}
    config = make_config(data, tmp_path / "run", training=settings)
    with pytest.raises(Interrupted):
        run_training(config, at_step(5, terminate))
    damaged = latest_checkpoint(config.output)
    (damaged / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"damaged; remove this checkpoint to continue from the one before it"):
        run_training(config)
    shutil.rmtree(damaged)
    assert check_checkpoint(latest_checkpoint(config.output))["step"] == 3
    assert bytes_of(run_training(config)) == bytes_of(undisturbed)


def test_starting_a_finished_run_again_changes_nothing(data, tmp_path, undisturbed):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)  # a run may also be moved
    run_training(make_config(data, run, training={"steps": 8}))
    assert bytes_of(run) == bytes_of(undisturbed) and log_of(run) == log_of(undisturbed)


CHILD = """
import sys, time
from pathlib import Path
from dimvl.errors import Interrupted
from dimvl.training.run import run_training
from tests.tiny_runs import TinyData, make_config

*paths, output = map(Path, sys.argv[1:])

def progress(report):
    print(report.step, flush=True)
    time.sleep(0.2)

try:
    run_training(make_config(TinyData(*paths), output, training={"steps": 8, "workers": WORKERS}), progress)
except Interrupted as stopped:
    print(stopped)
    sys.exit(3)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_stopped_by_sigterm_saves_and_another_one_resumes_bit_for_bit(data, tmp_path, undisturbed, workers):
    run = tmp_path / "run"
    paths = [data.regions, data.captions, data.questions, data.annotations, run]
    command = [sys.executable, "-c", CHILD.replace("WORKERS", str(workers)), *paths]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True) as child:
        assert child.stdout.readline() == "1\n"
        os.killpg(child.pid, signal.SIGTERM)  # as launchers do: worker processes receive it too
        rest, _ = child.communicate(timeout=60)
    assert child.returncode == 3 and re.search(r"stopped at step [1-7] of 8", rest)
    run_training(make_config(data, run, training={"steps": 8}))
    assert bytes_of(run) == bytes_of(undisturbed) and log_of(run) == log_of(undisturbed)


def test_a_run_ignores_the_epoch_plans_of_a_killed_one_and_removes_its_own(data, tmp_path, monkeypatch, undisturbed):
    monkeypatch.setattr(epoch_plan, "PIECE", 4)  # so that eight examples get a file
    left = tmp_path / run_folder.PLANS / "epoch-0"
    left.mkdir(parents=True)
    for name, array in (("order", [0, 0]), ("costs", [1, 1]), ("starts", [0, 2])):
        np.save(left / f"{name}.npy", np.array(array))
    run_training(make_config(data, tmp_path, training={"steps": 8, "workers": 2}))
    assert bytes_of(tmp_path) == bytes_of(undisturbed) and not left.parent.exists()
