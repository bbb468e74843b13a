"""Agreement between ranks, simulated by threads; real ranks are in test_deepspeed.py and test_launching.py."""

import os
import threading

import numpy as np
import pytest
import torch

from dimvl.checkpoints import check_checkpoint, latest_checkpoint
from dimvl.data.prefixes import ImageReader
from dimvl.errors import OtherRankError, UserError
from dimvl.training import run_folder
from dimvl.training.loading import prefetch
from dimvl.training.ranks import (
    SingleProcess,
    _choose_gpu,
    all_ranks,
    any_rank,
    check_same,
    fail_together,
    on_rank_zero,
)
from dimvl.training.report import Meter
from dimvl.training.run import run_training
from tests.tiny_runs import make_config, make_data


class Thread:
    """One of several threads that simulate ranks."""

    waited = 0.0

    def __init__(self, rank, size, meeting):
        self.rank, self.size, self.meeting = rank, size, meeting

    def gather(self, value):
        barrier, values = self.meeting
        values[self.rank] = value
        barrier.wait(timeout=20)
        found = list(values)
        barrier.wait(timeout=20)
        return found

    def sum(self, values):
        return np.sum(self.gather(values), axis=0)


def on_threads(size, action):
    """What each of several ranks returned or raised."""
    meeting = (threading.Barrier(size), [None] * size)
    results = [None] * size

    def run(rank):
        try:
            results[rank] = action(Thread(rank, size, meeting))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive(), "a rank hangs"
    return results


def test_a_failure_of_one_rank_ends_the_block_on_all_with_its_message_and_code():
    def action(ranks):
        with fail_together(ranks):
            if ranks.rank == 1:
                raise UserError("no such file")
        return "continued"

    first, second, third = on_threads(3, action)
    assert isinstance(second, UserError) and second.reported
    for other in (first, third):
        assert isinstance(other, OtherRankError) and str(other) == "rank 1: no such file" and other.code == 2


def test_a_bug_on_one_rank_ends_all_ranks_and_keeps_its_traceback():
    def action(ranks):
        with fail_together(ranks):
            if ranks.rank == 0:
                raise KeyError("weights")

    first, second = on_threads(2, action)
    assert isinstance(first, KeyError) and str(second) == "rank 0: KeyError: 'weights'" and second.code == 1


def test_a_result_of_rank_0_reaches_all_ranks():
    done = []
    assert on_threads(3, lambda ranks: on_rank_zero(ranks, lambda: done.append(ranks.rank) or "found")) == ["found"] * 3
    assert done == [0]


def test_flags_are_combined_over_ranks():
    assert on_threads(2, lambda ranks: any_rank(ranks, ranks.rank == 1)) == [True, True]
    assert on_threads(2, lambda ranks: all_ranks(ranks, ranks.rank == 1)) == [False, False]
    assert on_threads(2, lambda ranks: any_rank(ranks, False)) == [False, False]
    assert on_threads(2, lambda ranks: all_ranks(ranks, True)) == [True, True]
    assert any_rank(SingleProcess(), True) and not all_ranks(SingleProcess(), False)


def test_the_first_difference_between_ranks_is_named_on_all_of_them():
    results = on_threads(3, lambda ranks: check_same(ranks, {"a": 1, "version of torch": f"2.{ranks.rank // 2}"}))
    for error in results:
        assert isinstance(error, UserError) and error.reported
        words = "rank 2 has a different version of torch from rank 0 ('2.1', not '2.0'); start every"
        assert str(error).startswith(words)
    assert on_threads(2, lambda ranks: check_same(ranks, {"a": [1]})) == [None, None]


def test_ranks_on_different_kinds_of_cpu_are_refused(tmp_path, monkeypatch):
    here = threading.local()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: here.kind)
    config = make_config(make_data(tmp_path / "data", 8), tmp_path / "run")
    described = run_folder.describe(config)

    def start(ranks):
        here.kind = ("AVX512", "AVX2")[ranks.rank]
        run_folder.check_ranks(ranks, config, described)

    for error in on_threads(2, start):
        assert isinstance(error, UserError)
        assert "rank 1 has a different kind of CPU (vector instructions) from rank 0" in str(error)


def test_ranks_with_different_code_are_refused(tmp_path):
    config = make_config(make_data(tmp_path / "data", 8), tmp_path / "run")
    described = run_folder.describe(config)

    def start(ranks):
        run_folder.check_ranks(ranks, config, described | {"git_revision": ("1234", "5678")[ranks.rank]})

    for error in on_threads(2, start):
        assert isinstance(error, UserError)
        assert "rank 1 has a different git revision of dimvl from rank 0 ('5678', not '1234')" in str(error)


def test_a_number_of_processes_that_is_not_a_number_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two' and must be a whole number; unset it"):
        run_training(make_config(make_data(tmp_path / "data", 8), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_empty_number_of_processes_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    run_training(make_config(make_data(tmp_path / "data", 8), tmp_path / "run", training={"steps": 1}))
    assert check_checkpoint(latest_checkpoint(tmp_path / "run"))["ranks"] == 1


def test_srun_processes_that_would_train_independently_are_refused(tmp_path, monkeypatch):
    data = make_data(tmp_path / "data", 8)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(UserError, match=r"srun started 8 processes without RANK.*as tools/slurm_pretrain.sbatch does"):
        run_training(make_config(data, tmp_path / "run", deepspeed={}))
    assert not (tmp_path / "run").exists()


def test_more_processes_than_gpus_are_refused_and_others_take_one_each(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for place in ("0", "3", "4"):
        monkeypatch.setenv("LOCAL_RANK", place)
        if place == "4":
            with pytest.raises(UserError, match="process 5 of this node has no GPU, since the node has 4; start at mo"):
                _choose_gpu()
        else:
            _choose_gpu()
    assert taken == [0, 3]


# Torch raises when the child dies, wherever the main process is, even between opening a file and its first use.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dead_worker_process_is_reported_with_the_remedy_and_the_checkpoint_stays(tmp_path, monkeypatch):
    real, parent = ImageReader.read, os.getpid()

    def read(self, positions):
        if os.getpid() != parent and latest_checkpoint(tmp_path / "run") is not None:
            os._exit(9)
        return real(self, positions)

    monkeypatch.setattr(ImageReader, "read", read)
    settings = {"workers": 1, "save_every": 1, "steps": 2000}
    config = make_config(make_data(tmp_path / "data", 8), tmp_path / "run", training=settings)
    with pytest.raises(UserError, match=r"a data-loader worker died .*lower training\.workers; run the same"):
        run_training(config)
    assert check_checkpoint(latest_checkpoint(tmp_path / "run"))["step"] >= 1


def test_a_dead_worker_process_of_one_rank_is_raised_on_all_with_the_remedy():
    class Steps:
        def __init__(self, ranks):
            self.ranks = ranks

        def __len__(self):
            return 3

        def __getitem__(self, number):
            if self.ranks.rank == 1:
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")  # as torch reports it
            return number

    first, second = on_threads(
        2, lambda ranks: list(prefetch(Steps(ranks), 0, 0, torch.device("cpu"), Meter(ranks), ranks))
    )
    assert isinstance(second, UserError) and "lower training.workers" in str(second)
    assert isinstance(first, OtherRankError) and str(first) == f"rank 1: {second}" and first.code == 2
