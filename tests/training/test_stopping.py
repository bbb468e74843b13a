import errno
import signal
import subprocess
import sys
import threading
import time

import pytest

from dimvl.checkpoints import check_checkpoint, latest_checkpoint
from dimvl.errors import Interrupted, UserError
from dimvl.training import checkpoint, loop
from dimvl.training.report import RunLog
from dimvl.training.run import run_training
from tests.tiny_runs import make_config
from tests.training.runs import ROOT, at_step, bytes_of, log_of, terminate


def test_a_signal_before_the_first_new_step_stops_at_once_and_loses_nothing(data, tmp_path, monkeypatch):
    config, real = make_config(data, tmp_path / "run"), loop.optimise
    with pytest.raises(Interrupted):
        run_training(config, at_step(2, terminate))

    def hang(*arguments):
        terminate()
        return real(*arguments)

    monkeypatch.setattr(loop, "optimise", hang)
    with pytest.raises(Interrupted, match="stopped at step 2 of 6; run the same command") as caught:
        run_training(config)
    assert caught.value.signal_number == signal.SIGTERM
    assert check_checkpoint(latest_checkpoint(config.output))["step"] == 2 and len(log_of(config.output)) == 2


def test_a_second_signal_ends_a_run_that_waits_for_its_checkpoint(data, tmp_path, monkeypatch):
    held = threading.Event()
    monkeypatch.setattr(checkpoint, "write_state", lambda folder, state: held.wait(timeout=60))

    def twice():
        terminate()
        threading.Timer(0.5, terminate).start()

    with pytest.raises(KeyboardInterrupt):
        run_training(make_config(data, tmp_path), at_step(2, twice))
    held.set()


SLOW_DISK = """
import sys, time
from pathlib import Path
from dimvl.training import checkpoint
from dimvl.training.run import run_training
from tests.tiny_runs import TinyData, make_config

*paths, output = map(Path, sys.argv[1:])

def write(folder, state):
    print("writing", flush=True)
    time.sleep(120)

def progress(report):
    if report.step == 2:
        time.sleep(60)

checkpoint.write_state = write
run_training(make_config(TinyData(*paths), output, training={"save_every": 1}), progress)
"""


def test_a_second_signal_ends_the_process_while_a_checkpoint_is_being_written(data, tmp_path):
    paths = [data.regions, data.captions, data.questions, data.annotations, tmp_path / "run"]
    command, start = [sys.executable, "-c", SLOW_DISK, *paths], time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout.readline() == "writing\n"
        for _ in range(2):
            time.sleep(0.5)
            child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=90)
    assert "KeyboardInterrupt" in err and child.returncode != 0 and time.monotonic() - start < 90
    assert latest_checkpoint(tmp_path / "run") is None


def test_signal_handlers_are_restored_after_training(data, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run_training(make_config(data, tmp_path))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("step", [2, 6])
def test_a_run_whose_last_checkpoint_cannot_be_written_reports_that_and_no_success(data, tmp_path, monkeypatch, step):
    def full(folder, state):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_state", full)
    with pytest.raises(UserError, match=rf"cannot write .*step-0000000{step}: No space left on device; free space"):
        run_training(make_config(data, tmp_path), at_step(2, terminate) if step == 2 else None)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_the_next_step(data, tmp_path, monkeypatch):
    tried, real = threading.Event(), checkpoint.write_state

    def write(folder, state):
        if state.steps == 4:
            tried.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder, state)

    def wait_for_it():
        assert tried.wait(timeout=60)
        time.sleep(0.2)

    monkeypatch.setattr(checkpoint, "write_state", write)
    config = make_config(data, tmp_path, training={"steps": 8, "save_every": 2})
    with pytest.raises(UserError, match=r"cannot write .*step-00000004: No space left on device; free space"):
        run_training(config, at_step(5, wait_for_it))
    assert len(log_of(tmp_path)) == 5 and check_checkpoint(latest_checkpoint(tmp_path))["step"] == 2


def test_a_log_that_cannot_be_written_is_one_sentence_and_the_run_resumes_later(
    data, tmp_path, undisturbed, monkeypatch
):
    real = RunLog._write

    def write(log, record, *predictions):
        if record["step"] == 5:
            log._file.close()
            log._file = open("/dev/full", "w")  # noqa: SIM115 - the log closes it
        real(log, record, *predictions)

    monkeypatch.setattr(RunLog, "_write", write)
    config = make_config(data, tmp_path, training={"steps": 8, "save_every": 2})
    with pytest.raises(UserError, match=r"cannot write .*log.jsonl: No space left on device; free space"):
        run_training(config)
    assert check_checkpoint(latest_checkpoint(tmp_path))["step"] == 4
    monkeypatch.undo()
    run_training(config)
    assert bytes_of(tmp_path) == bytes_of(undisturbed) and log_of(tmp_path) == log_of(undisturbed)
