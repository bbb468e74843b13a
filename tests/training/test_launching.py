"""Runs of several processes through the command line: launchers, lost ranks, and errors printed once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dimvl.checkpoints import check_checkpoint, latest_checkpoint
from dimvl.files import read_sealed, write_sealed
from tests.tiny_runs import make_data
from tests.training.launch import ROOT, environment, finish, free_port, start_ranks
from tests.training.rank_scenarios import TRAINING

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 12)


@pytest.fixture
def config(data, tmp_path):
    """A configuration file; its run is in the folder `run` next to it."""
    content = {"output": str(tmp_path / "run"), "regions": str(data.regions), "captions": str(data.captions)}
    content |= {"inputs": {"max_regions": 10, "concept_tokens": 8, "text_tokens": 12, "vocabulary": 100}}
    content |= {"model": {"layers": 1, "width": 16, "heads": 2, "inner_width": 32}}
    content |= {"training": {**TRAINING, "rows_per_step": 200, "log_every": 1, "save_every": 2}}
    path = tmp_path / "pretrain.yaml"
    path.write_text(yaml.safe_dump({**content, "deepspeed": {"stage": 1, "timeout": 30}}))
    return path


def launch(*command):
    return subprocess.run(
        [str(word) for word in command], env=environment(), capture_output=True, text=True, cwd=ROOT, timeout=240
    )


def started(config, *overrides, ranks=2, **changes):
    return start_ranks(ranks, "-m", "dimvl", "pretrain", config, *overrides, **changes)


def wait_for_step(run, step, processes):
    """Wait until a run has logged a step."""
    log = run / "log.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) >= step):
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.1)


def errors(output):
    return [line for line in output.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "PORT", "-m", "dimvl", "pretrain"),
        ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "PORT", "tools/pretrain.py"),
        (
            "-m",
            "deepspeed.launcher.runner",
            "--num_gpus",
            "2",
            "--master_port",
            "PORT",
            "--module",
            "dimvl",
            "pretrain",
        ),
    ],
    ids=["torchrun", "tools/pretrain.py", "deepspeed"],
)
def test_both_launchers_train_and_only_rank_0_prints(config, command):
    words = [str(free_port()) if word == "PORT" else word for word in command]
    result = launch(sys.executable, *words, config, "training.steps=2")
    assert result.returncode == 0, result.stderr
    run = config.parent / "run"
    assert result.stdout.splitlines().count(f"trained: {run}") == 1
    assert check_checkpoint(latest_checkpoint(run))["ranks"] == 2
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert result.stderr.count("step 2/2 loss") == 1 and "Traceback" not in result.stderr


def test_without_a_launcher_deepspeed_trains_in_one_process(config):
    result = launch(sys.executable, "-m", "dimvl", "pretrain", config, "training.steps=2")
    assert result.returncode == 0 and result.stdout == f"trained: {config.parent / 'run'}\n", result.stderr


def test_a_killed_rank_ends_the_others_soon_and_the_run_resumes_from_its_checkpoint(config):
    run = config.parent / "run"
    processes = started(config, "training.steps=100000")
    wait_for_step(run, 3, processes)
    processes[1].kill()
    start = time.monotonic()
    (code, _, err), _ = finish(processes, timeout=60)
    assert code == 1 and time.monotonic() - start < 30
    (line,) = errors(err)
    assert "rank 0 lost another rank" in line and "resume from the last checkpoint" in line
    step = check_checkpoint(latest_checkpoint(run))["step"]
    shutil.rmtree(run / "texts")  # is rebuilt
    saved = read_sealed(run / "run.json", "")
    saved["config"]["training"]["steps"] = step + 1
    write_sealed(run / "run.json", saved)
    results = finish(started(config, f"training.steps={step + 1}"))
    assert [code for code, _, _ in results] == [0, 0], results
    assert check_checkpoint(latest_checkpoint(run))["step"] == step + 1


def test_a_rank_that_does_not_answer_ends_the_others_after_the_timeout(config):
    processes = started(config, "training.steps=100000", "deepspeed.timeout=5")
    wait_for_step(config.parent / "run", 2, processes)
    processes[1].send_signal(signal.SIGSTOP)
    start = time.monotonic()
    try:
        _, err = processes[0].communicate(timeout=60)
    finally:
        processes[1].kill()
        finish(processes)
    assert processes[0].returncode == 1 and 4 < time.monotonic() - start < 30
    (line,) = errors(err)
    assert "did not answer within 5 seconds" in line


ASLEEP = """
import sys, time
from pathlib import Path
import numpy as np
from dimvl.errors import OtherRankError
from dimvl.training.ranks import open_ranks
from tests.tiny_runs import TinyData, make_config

with open_ranks(make_config(TinyData(*[Path(".")] * 4), Path("."), deepspeed={"timeout": 4})) as ranks:
    ranks.sum(np.zeros(1))
    print("met", flush=True)
    if ranks.rank == 1:
        time.sleep(120)
    ranks.sum(np.zeros(1))
"""


def test_agreement_between_ranks_does_not_wait_longer_than_the_timeout():
    processes = start_ranks(2, "-c", ASLEEP)
    try:
        assert processes[0].stdout.readline() == "met\n"
        _, err = processes[0].communicate(timeout=60)
    finally:
        processes[1].kill()
        finish(processes)
    assert "did not answer within 4 seconds" in err


def test_torchrun_ends_all_ranks_when_one_is_killed(config):
    agent = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"),
            *(str(free_port()), "-m", "dimvl", "pretrain", str(config), "training.steps=100000"),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    wait_for_step(config.parent / "run", 2, [agent])
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    ranks = [pid for pid in children if b"dimvl" in Path("/proc", pid, "cmdline").read_bytes()]
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    ((code, _, _),) = finish([agent], timeout=90)
    assert code != 0 and not any(Path("/proc", pid).exists() for pid in ranks)


def test_a_mistake_in_the_data_is_printed_once_by_rank_0(config):
    results = finish(started(config, "captions=no.json"))
    assert [code for code, _, _ in results] == [2, 2]
    assert errors(results[0][2]) == ["error: no.json does not exist; check the path"]
    assert errors(results[1][2]) == []
    assert not any("Traceback" in err or out for _, out, err in results)


def test_a_warning_about_data_that_all_ranks_have_is_printed_once_by_rank_0(config, data):
    content = yaml.safe_load(config.read_text())
    asked = {"questions": str(data.questions), "annotations": str(data.annotations)}
    content = {name: value for name, value in content.items() if name != "captions"} | asked
    config.write_text(yaml.safe_dump({**content, "task": "vqa", "validation": {"every": 1, **asked}}))
    results = finish(start_ranks(2, "-m", "dimvl", "finetune", config, "training.steps=1"))
    assert [code for code, _, _ in results] == [0, 0], results
    warned = [[line for line in err.splitlines() if "are trained on" in line] for _, _, err in results]
    assert len(warned[0]) == 1 and warned[1] == []


def test_several_processes_without_a_deepspeed_section_are_refused(config):
    for rank, (code, out, err) in enumerate(finish(started(config, "deepspeed=null"))):
        (line,) = errors(err)
        assert code == 2 and not out
        assert line.startswith("error: " + ("" if rank == 0 else f"rank {rank}: ") + "a launcher started 2 processes")


def test_a_port_in_use_is_reported_with_the_remedy(config):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ((code, _, err),) = finish(started(config, "deepspeed.timeout=5", ranks=1, MASTER_PORT=port))
    (line,) = errors(err)
    assert code == 2 and f"port {port} is in use by another program" in line and "--master_port" in line


def test_ranks_that_cannot_connect_are_reported_within_the_timeout(config):
    ((code, _, err),) = finish(started(config, "deepspeed.timeout=4", ranks=1, WORLD_SIZE=2))
    (line,) = errors(err)
    assert code == 2 and "the 2 ranks cannot connect at 127.0.0.1:" in line


def test_an_incomplete_launcher_environment_is_refused(config):
    ((code, _, err),) = finish(started(config, ranks=1, MASTER_PORT=""))
    (line,) = errors(err)
    assert code == 2 and "RANK is set but MASTER_PORT is not; start the run with torchrun or deepspeed" in line
