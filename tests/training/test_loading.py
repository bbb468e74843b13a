import subprocess
import sys

import pytest

from dimvl.training.run import run_training
from tests.tiny_runs import make_config
from tests.training.runs import ROOT, bytes_of, log_of


def test_the_number_of_worker_processes_changes_nothing(data, tmp_path, undisturbed):
    run = run_training(make_config(data, tmp_path / "run", training={"steps": 8, "workers": 2}))
    assert bytes_of(run) == bytes_of(undisturbed) and log_of(run) == log_of(undisturbed)


ORPHANS = """
import time
import torch
from dimvl.training.loading import prefetch
from dimvl.training.ranks import SingleProcess
from dimvl.training.report import Meter

class Steps:
    def __len__(self):
        return 9

    def __getitem__(self, number):
        return bytes(10**6)

steps = prefetch(Steps(), 0, 2, torch.device("cpu"), Meter(SingleProcess()), SingleProcess())
next(steps)
print("started", flush=True)
time.sleep(60)
"""


def test_worker_processes_of_a_killed_run_end_even_if_the_pipe_to_it_is_full():
    process = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "started\n"
    process.kill()
    process.communicate(timeout=20)  # waits for every process with this output, so for the workers too


FAULTY = """
from dimvl.cli import main
from dimvl.errors import UserError
from dimvl.tasks.pretraining.training import PretrainSource

def build_from(self, regions, epoch, index):
    raise WRONG

PretrainSource.build_from = build_from
main()
"""


@pytest.mark.parametrize(
    ("wrong", "code", "last"),
    [
        ("UserError('shard 7 is damaged; extract it again')", 2, "error: shard 7 is damaged; extract it again"),
        ("KeyError('a bug')", 1, "KeyError: 'a bug'"),
    ],
)
def test_a_user_error_in_a_worker_process_is_one_sentence_and_ends_the_run(data, tmp_path, wrong, code, last):
    config = make_config(data, tmp_path / "run", training={"workers": 2})
    file = tmp_path / "config.json"  # JSON is YAML
    file.write_text(config.model_dump_json(exclude_none=True))
    command = [sys.executable, "-c", FAULTY.replace("WRONG", wrong), "pretrain", file]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == code and done.stderr.strip().splitlines()[-1] == last
    assert ("Traceback" in done.stderr) == (code == 1)
