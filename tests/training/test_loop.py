import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dimvl.config import SharesConfig, TrainingConfig
from dimvl.data import epoch_plan
from dimvl.data.examples import ImageReader, collate
from dimvl.errors import Interrupted, NotFiniteError, UserError
from dimvl.files import locked
from dimvl.pretrained import check_checkpoint, latest_checkpoint
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.training import checkpoint, loop
from dimvl.training import run as training_run
from dimvl.training.build import build_task as build_the_task
from dimvl.training.build import read_annotations
from dimvl.training.engine import TorchEngine
from dimvl.training.loop import seed_dropout
from dimvl.training.report import TIMES, RunLog, format_seconds
from dimvl.training.run import run_training
from tests.tiny_runs import make_config, make_data

ROOT = Path(__file__).parents[2]
FILES = ("model.safetensors", "optimiser.safetensors")


def build_task(config, store):
    return build_the_task(config, store, *read_annotations(config, store))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 8, empty=3)


def weights_of(run):
    folder = latest_checkpoint(run)
    return [(folder / name).read_bytes() for name in FILES]


def log_of(run):
    """What was logged, without times."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def stop_at(step, how):
    def progress(report):
        if report.step == step:
            how()

    return progress


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


class Killed(BaseException):
    pass


def kill():
    raise Killed


# --- overfitting one batch


def floor_of_answers(scores):
    """Least possible binary cross entropy of soft scores."""
    return float(torch.special.entr(scores).sum() + torch.special.entr(1 - scores).sum())


def overfit(config, steps=60, rate=2e-2):
    """Losses per target of one batch, at the start and after training on it alone."""
    torch.manual_seed(0)
    task, source = build_task(config, RegionStore(config.regions))
    engine = TorchEngine(task, TrainingConfig(steps=steps, learning_rate=rate, warmup_steps=5, device="cpu"))
    batch = collate([source.build(0, index) for index in range(len(source)) if index != 2], task.shape)
    first = None
    for _ in range(steps):
        losses = engine.losses(batch)
        first = first or {name: loss.item() for name, loss in losses.items()}
        engine.backward(
            sum(loss / max(1, batch.counts()[name.partition("/")[0]]) for name, loss in losses.items()), True
        )
        engine.step()
    last = {name: loss.item() for name, loss in engine.losses(batch).items()}
    counts = {name: batch.counts()[name.partition("/")[0]] for name in last}
    assert engine.learning_rate == 0
    return {name: (first[name] / counts[name], last[name] / counts[name]) for name in last if counts[name]}, batch


@pytest.mark.parametrize("objective", ["masked_lm", "seq2seq_lm", "masked_object", "matching"])
def test_each_pretraining_objective_overfits_one_batch(data, tmp_path, objective):
    shares = {name: float(name == objective) for name in SharesConfig.model_fields}
    config = make_config(
        data,
        tmp_path,
        objectives={"shares": shares, "negative_share": 0.5},
        seq2seq={"captions": 1},
        model={"dropout": 0, "width": 32},
    )
    losses, _ = overfit(config)
    assert losses and all(name.startswith(objective) for name in losses)
    for name, (first, last) in losses.items():
        assert last < 0.05 < 0.2 < first, (name, first, last)


@pytest.mark.parametrize("variant", ["causal", "masked"])
def test_captioning_overfits_one_batch_down_to_the_floor_of_its_smoothing(data, tmp_path, variant):
    config = make_config(
        data,
        tmp_path,
        "caption",
        smoothing=0.1,
        seq2seq={"captions": 1, "variant": variant},
        model={"dropout": 0, "width": 32},
    )
    losses, _ = overfit(config)
    size = json.loads((tmp_path / "config.json").read_text())["vocabulary"]
    share = 0.1 / size
    floor = -(0.9 + share) * math.log(0.9 + share) - (size - 1) * share * math.log(share)
    first, last = losses["captions"]
    assert floor <= last < floor + 0.1 and first > floor + 1


def test_question_answering_overfits_one_batch_down_to_the_floor_of_its_soft_scores(data, tmp_path):
    losses, batch = overfit(make_config(data, tmp_path, "vqa", model={"dropout": 0, "width": 32}))
    scores = batch.targets["answers"].scores
    floor = floor_of_answers(scores) / len(scores)
    assert floor > 0 and scores.sum() > 0
    first, last = losses["answers"]
    assert floor - 1e-4 <= last < floor + 0.05 and first > floor + 0.3


# --- resuming


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """A run of 8 steps with dropout, without interruption."""
    return run_training(make_config(data, tmp_path_factory.mktemp("runs") / "whole", training={"steps": 8}))


@pytest.mark.parametrize("task", ["pretrain", "vqa", "caption"])
def test_the_same_run_twice_gives_the_same_weights_and_log_bit_for_bit(data, tmp_path, task):
    runs = [run_training(make_config(data, tmp_path / name, task)) for name in "ab"]
    assert weights_of(runs[0]) == weights_of(runs[1]) and log_of(runs[0]) == log_of(runs[1])


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bit_for_bit(data, tmp_path, undisturbed):
    config = make_config(data, tmp_path / "run", training={"steps": 8})
    with pytest.raises(Interrupted, match="stopped at step 4 of 8; run the same command") as caught:
        run_training(config, stop_at(4, terminate))
    assert caught.value.signal_number == signal.SIGTERM
    assert check_checkpoint(latest_checkpoint(config.output))["step"] == 4 and len(log_of(config.output)) == 4
    run_training(config)
    assert weights_of(config.output) == weights_of(undisturbed)
    assert log_of(config.output) == log_of(undisturbed)
    assert [line["step"] for line in log_of(config.output)] == list(range(1, 9))


def test_a_signal_before_the_first_step_of_a_call_is_done_ends_it_at_once_and_loses_nothing(
    data, tmp_path, monkeypatch
):
    config, real = make_config(data, tmp_path / "run"), loop.optimise
    with pytest.raises(Interrupted):
        run_training(config, stop_at(2, terminate))

    def hang(*arguments):
        terminate()
        return real(*arguments)

    monkeypatch.setattr(loop, "optimise", hang)
    with pytest.raises(Interrupted, match="stopped at step 2 of 6; run the same command") as caught:
        run_training(config)
    assert caught.value.signal_number == signal.SIGTERM
    assert check_checkpoint(latest_checkpoint(config.output))["step"] == 2 and len(log_of(config.output)) == 2


@pytest.mark.parametrize("cut", ['{"step": 6, "lo', '{"step": 6, "losses": {"matching": 0.5}'])
def test_a_killed_run_goes_on_from_its_last_checkpoint_bit_for_bit(data, tmp_path, undisturbed, cut):
    config = make_config(data, tmp_path / "run", training={"steps": 8, "save_every": 3})
    with pytest.raises(Killed):
        run_training(config, stop_at(5, kill))
    assert check_checkpoint(latest_checkpoint(config.output))["step"] == 3
    with (config.output / "log.jsonl").open("a") as log:
        log.write(cut)  # by the kill
    run_training(config)
    assert weights_of(config.output) == weights_of(undisturbed)
    assert log_of(config.output) == log_of(undisturbed), "each step once"


def test_a_killed_run_by_muon_goes_on_bit_for_bit(data, tmp_path):
    settings = {"steps": 8, "save_every": 3, "muon_rate": 0.01}
    whole = run_training(make_config(data, tmp_path / "whole", training=settings))
    config = make_config(data, tmp_path / "run", training=settings)
    with pytest.raises(Killed):
        run_training(config, stop_at(5, kill))
    run_training(config)
    assert weights_of(config.output) == weights_of(whole) and log_of(config.output) == log_of(whole)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(data, tmp_path, undisturbed):
    config = make_config(data, tmp_path / "run", training={"steps": 8})
    with pytest.raises(Killed):
        run_training(config, stop_at(2, kill))
    assert weights_of(run_training(config)) == weights_of(undisturbed)


def test_by_default_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_once_it_is_removed(
    data, tmp_path, undisturbed
):
    settings = {"steps": 8, "save_every": 3, "keep": TrainingConfig(steps=8).keep}
    config = make_config(data, tmp_path / "run", training=settings)
    with pytest.raises(Interrupted):
        run_training(config, stop_at(5, terminate))
    damaged = latest_checkpoint(config.output)
    (damaged / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"damaged; remove this checkpoint to go on from the one before it"):
        run_training(config)
    shutil.rmtree(damaged)
    assert check_checkpoint(latest_checkpoint(config.output))["step"] == 3
    assert weights_of(run_training(config)) == weights_of(undisturbed)


def test_a_finished_run_is_left_as_it_is(data, tmp_path, undisturbed):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)  # also: a run may be moved
    run_training(make_config(data, run, training={"steps": 8}))
    assert weights_of(run) == weights_of(undisturbed) and log_of(run) == log_of(undisturbed)


def test_worker_processes_change_nothing(data, tmp_path, undisturbed):
    run = run_training(make_config(data, tmp_path / "run", training={"steps": 8, "workers": 2}))
    assert weights_of(run) == weights_of(undisturbed) and log_of(run) == log_of(undisturbed)


CHILD = """
import sys, time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from dimvl.data.sampler import TrainingSteps
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
def test_a_process_that_gets_sigterm_saves_exits_and_is_continued_by_another_bit_for_bit(
    data, tmp_path, undisturbed, workers
):
    run = tmp_path / "run"
    paths = [data.regions, data.captions, data.questions, data.annotations, run]
    command = [sys.executable, "-c", CHILD.replace("WORKERS", str(workers)), *paths]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True) as child:
        assert child.stdout.readline() == "1\n"
        os.killpg(child.pid, signal.SIGTERM)  # as launchers do: the processes that build batches get it too
        rest, _ = child.communicate(timeout=60)
    assert child.returncode == 3 and re.search(r"stopped at step [1-7] of 8", rest)
    run_training(make_config(data, run, training={"steps": 8}))
    assert weights_of(run) == weights_of(undisturbed) and log_of(run) == log_of(undisturbed)


def test_a_run_plans_anew_whatever_a_killed_one_has_left_and_leaves_no_plan_itself(
    data, tmp_path, monkeypatch, undisturbed
):
    monkeypatch.setattr(epoch_plan, "PIECE", 4)  # eight examples are worth a file then
    left = tmp_path / training_run.PLANS / "epoch-0"
    left.mkdir(parents=True)
    for name, array in (("order", [0, 0]), ("costs", [1, 1]), ("starts", [0, 2])):
        np.save(left / f"{name}.npy", np.array(array))
    run_training(make_config(data, tmp_path, training={"steps": 8, "workers": 2}))
    assert weights_of(tmp_path) == weights_of(undisturbed) and not left.parent.exists()


def test_a_second_process_does_not_train_in_the_same_folder_and_leaves_the_first_one_alone(
    data, tmp_path, monkeypatch, undisturbed
):
    monkeypatch.setattr(training_run, "PATIENCE", 0.2)
    config = make_config(data, tmp_path, training={"steps": 8})
    refused = []

    def again():
        with pytest.raises(UserError, match=f"another process trains in {tmp_path}; wait for it or end it") as caught:
            run_training(config)
        refused.append(caught.value)

    run_training(config, stop_at(2, again))
    assert len(refused) == 1 and weights_of(tmp_path) == weights_of(undisturbed)


def test_a_run_that_waited_for_another_one_does_not_take_its_folder_over(data, tmp_path):
    run_training(make_config(data, tmp_path / "first"))
    config = make_config(data, tmp_path / "run", seed=4)
    with ExitStack() as holding:
        holding.enter_context(locked(config.output))

        def claim_and_end():
            shutil.copy(tmp_path / "first" / "run.json", config.output)
            holding.close()

        threading.Timer(0.5, claim_and_end).start()
        with pytest.raises(UserError, match=r"holds a run with another seed \(3, not 4\)"):
            run_training(config)


def test_what_a_user_keeps_under_plans_in_the_folder_of_a_run_stays(data, tmp_path):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "summer").write_text("sea")
    run_training(make_config(data, tmp_path))
    assert (tmp_path / "plans" / "summer").read_text() == "sea" and not (tmp_path / training_run.PLANS).exists()


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


def test_loader_processes_of_a_killed_run_end_even_if_the_pipe_to_it_is_full():
    process = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "started\n"
    process.kill()
    process.communicate(timeout=20)  # waits for all that hold its output, as the loader processes do


@pytest.mark.parametrize("saved", [True, False])
def test_a_run_that_fails_leaves_its_folder_to_another_configuration_only_without_a_checkpoint(data, tmp_path, saved):
    def fail():
        raise UserError("a mistake")

    every = {"save_every": 2 if saved else 100}
    with pytest.raises(UserError, match="a mistake"):
        run_training(make_config(data, tmp_path, training=every), stop_at(3, fail))
    other = make_config(data, tmp_path, training=every | {"learning_rate": 1e-4})
    if saved:
        with pytest.raises(UserError, match=r"holds a run with another training\.learning_rate"):
            run_training(other)
    else:
        run_training(other)


def test_a_run_waits_for_the_loader_processes_of_one_that_was_killed(data, tmp_path, undisturbed):
    config = make_config(data, tmp_path, training={"steps": 8})
    holding, held = ExitStack(), []
    holding.enter_context(locked(tmp_path))
    holding.callback(held.append, False)
    threading.Timer(0.5, holding.close).start()
    run_training(config, lambda report: held.append(True))
    assert held[0] is False and weights_of(tmp_path) == weights_of(undisturbed)


def test_dropout_is_keyed_by_seed_step_micro_batch_and_rank():
    def draw(*key):
        seed_dropout(*key)
        return torch.rand(4).tolist()

    keys = [(1, 2, 3, 0), (2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)]
    assert draw(*keys[0]) == draw(*keys[0]) and len({tuple(draw(*key)) for key in keys}) == 5


def test_a_second_signal_ends_a_run_that_waits_for_its_checkpoint(data, tmp_path, monkeypatch):
    held = threading.Event()
    monkeypatch.setattr(checkpoint, "write_state", lambda folder, state: held.wait(timeout=60))

    def twice():
        terminate()
        threading.Timer(0.5, terminate).start()

    with pytest.raises(KeyboardInterrupt):
        run_training(make_config(data, tmp_path), stop_at(2, twice))
    held.set()


SLOW_DISK = """
import sys, threading, time
from pathlib import Path
from dimvl.training import checkpoint, loop
from dimvl.training import run as training_run
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


def test_a_second_signal_ends_a_process_at_once_though_its_checkpoint_is_being_written(data, tmp_path):
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


@pytest.mark.parametrize("step", [2, 6])
def test_a_run_whose_last_checkpoint_cannot_be_written_does_not_say_that_it_stopped_or_is_done(
    data, tmp_path, monkeypatch, step
):
    def full(folder, state):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_state", full)
    with pytest.raises(UserError, match=rf"cannot write .*step-0000000{step}: No space left on device; free space"):
        run_training(make_config(data, tmp_path), stop_at(2, terminate) if step == 2 else None)


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
        run_training(config, stop_at(5, wait_for_it))
    assert len(log_of(tmp_path)) == 5 and check_checkpoint(latest_checkpoint(tmp_path))["step"] == 2


def test_a_log_that_the_disk_has_no_room_for_ends_the_run_in_one_sentence_and_goes_on_later(
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
    assert weights_of(tmp_path) == weights_of(undisturbed) and log_of(tmp_path) == log_of(undisturbed)


def test_a_gpu_that_is_too_small_is_one_sentence_with_what_to_lower(data, tmp_path, monkeypatch):
    def losses(engine, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nand more")

    monkeypatch.setattr(TorchEngine, "losses", losses)
    sentence = r"too small \(CUDA out of memory.* 9.00 GiB.\); lower training.rows_per_micro_batch \(80\), set training"
    with pytest.raises(UserError, match=sentence):
        run_training(make_config(data, tmp_path))


# --- one run, one configuration


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 4}, "seed (3, not 4)"),
        ({"training": {"steps": 9}}, "training.steps (8, not 9)"),
        ({"model": {"width": 32}}, "model.width (16, not 32)"),
        ({"seq2seq": {"captions": 1}}, "seq2seq.captions (2, not 1)"),
    ],
)
def test_another_configuration_in_the_same_folder_is_refused(data, tmp_path, undisturbed, changes, name):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    changes = {"training": {"steps": 8}, **changes}
    with pytest.raises(UserError, match=f"holds a run with another {re.escape(name)};"):
        run_training(make_config(data, run, **changes))
    assert weights_of(run) == weights_of(undisturbed)


@pytest.mark.parametrize("name", ["scenes.json", "manifest.json", "demo.json"])
def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(data, tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"{tmp_path} holds .*, which a run would be mixed into; give another output"):
        run_training(make_config(data, tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_where_and_how_a_run_goes_on_may_change(data, tmp_path, undisturbed):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    shutil.copytree(data.regions, tmp_path / "copy")
    run_training(make_config(data, run, training={"steps": 8}, regions=tmp_path / "copy"))
    free = {"steps": 8, "workers": 1, "threads": 1, "device": "cpu", "log_every": 2, "save_every": 5, "keep": 2}
    run_training(make_config(data, run, training=free))
    run_training(make_config(data, run, training={"steps": 8, "rows_per_micro_batch": 40}))


def test_other_annotations_under_the_same_name_are_refused(data, tmp_path, undisturbed):
    run, moved = tmp_path / "run", tmp_path / "data"
    shutil.copytree(undisturbed, run)
    shutil.copytree(data.captions.parent, moved)
    described = json.loads((run / "run.json").read_text())
    described["config"]["captions"] = [str(moved / "c.json")]
    (run / "run.json").write_text(json.dumps(described))
    copied = type(data)(moved / "regions", moved / "c.json", moved / "q.json", moved / "a.json")
    config = make_config(copied, run, training={"steps": 8})
    run_training(config)
    config.captions[0].write_text(config.captions[0].read_text().replace("star", "circle", 1))
    with pytest.raises(UserError, match=r"another captions\.sha256"):
        run_training(config)


# --- accounting


def test_the_size_of_micro_batches_changes_the_weights_only_by_rounding(data, tmp_path):
    runs = []
    for rows in (50, 200):
        training = {"rows_per_micro_batch": rows, "learning_rate": 1e-3}
        run = run_training(make_config(data, tmp_path / str(rows), model={"dropout": 0}, training=training))
        runs.append(torch.nn.utils.parameters_to_vector(load(run).values()))
        logs = log_of(run)
    small, large = runs
    # Adam divides tiny gradients by their own size: fp32 rounding grows to a small part of a step of 1e-3
    assert (small - large).abs().max() < 2e-4
    assert (small - large).abs().mean() < 1e-6
    for one, other in zip(log_of(tmp_path / "50"), logs, strict=True):
        assert one["counts"] == other["counts"] and one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def load(run):
    from safetensors.torch import load_file

    return load_file(latest_checkpoint(run) / "model.safetensors")


def test_the_logged_loss_is_the_weighted_sum_of_means_per_target(data, tmp_path):
    config = make_config(data, tmp_path, objectives={"weights": {"matching": 0.5, "object_class": 3}})
    run_training(config)
    weights = {
        "masked_lm": 1,
        "seq2seq_lm": 1,
        "masked_object/class": 3,
        "masked_object/feature": 1,
        "matching": 0.5,
    }
    for line in log_of(tmp_path):
        assert line["losses"].keys() == weights.keys()
        assert line["loss"] == pytest.approx(sum(weights[name] * loss for name, loss in line["losses"].items()))
        for name, loss in line["losses"].items():
            assert (loss > 0) == (line["counts"][name.partition("/")[0]] > 0)


def test_gradients_are_clipped_to_the_largest_norm_and_the_norm_before_is_told(data, tmp_path, monkeypatch):
    norms = []
    real = torch.optim.AdamW.step

    def step(self, *arguments):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return real(self, *arguments)

    step.hooked = True  # else torch wraps it once more
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run_training(make_config(data, tmp_path, training={"clip": 0.25}))
    told = [line["gradient_norm"] for line in log_of(tmp_path)]
    assert len(norms) == 6 and all(norm > 0.3 for norm in told)
    assert norms == pytest.approx([0.25] * 6, rel=1e-3)


def test_the_rate_of_each_step_is_logged(data, tmp_path):
    run_training(make_config(data, tmp_path, training={"warmup_steps": 2, "schedule": "linear"}))
    assert [line["learning_rate"] for line in log_of(tmp_path)] == pytest.approx(
        [0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025]
    )


# --- what is not finite


def test_a_loss_that_is_not_finite_stops_the_run_with_its_name_step_and_images_and_saves_nothing(
    data, tmp_path, monkeypatch
):
    real = ImageReader.read

    def read(self, positions):
        found = real(self, positions)
        for position, regions in zip(positions.tolist(), found, strict=True):
            if self.store.image_id(position) == "5":
                regions.features[1, 2] = np.nan  # the store's writer would refuse it
        return found

    monkeypatch.setattr(ImageReader, "read", read)
    shares = {"masked_lm": 1, "seq2seq_lm": 0, "masked_object": 0, "matching": 0}
    training = {"save_every": 1, "rows_per_step": 60}
    config = make_config(data, tmp_path, training=training, objectives={"shares": shares})
    with pytest.raises(NotFiniteError) as caught:
        run_training(config)
    found = re.fullmatch(
        r"the loss masked_lm is not finite at step (\d+), in (.*); nothing was saved", str(caught.value)
    )
    assert "image 5" in found[2].split(", ")
    saved = latest_checkpoint(tmp_path)
    assert (check_checkpoint(saved)["step"] if saved else 0) == int(found[1]) - 1 == len(log_of(tmp_path))


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(data, tmp_path, monkeypatch):
    real = TorchEngine.backward

    def backward(self, loss, is_last):
        real(self, loss, is_last)
        if self.schedule.last_epoch == 2:
            self.task.model.tokens.word.weight.grad[0, 0] = float("nan")

    monkeypatch.setattr(TorchEngine, "backward", backward)
    config = make_config(data, tmp_path, training={"save_every": 1})
    with pytest.raises(NotFiniteError, match=r"gradient is not finite at step 3, in image .*nothing was saved"):
        run_training(config)
    assert check_checkpoint(latest_checkpoint(tmp_path))["step"] == 2
    monkeypatch.setattr(TorchEngine, "backward", real)
    run_training(config)
    assert all(tensor.isfinite().all() for tensor in load(tmp_path).values())


# --- mistakes that show late


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rows_per_step": 10}, "above training.rows_per_step 10"),
        ({"freeze": {"layers": 5}}, "training.freeze.layers is 5"),
    ],
)
def test_a_run_that_has_trained_nothing_leaves_its_folder_to_the_mended_configuration(data, tmp_path, wrong, said):
    with pytest.raises(UserError, match=said):
        run_training(make_config(data, tmp_path, training={"steps": 2, **wrong}))
    run_training(make_config(data, tmp_path, training={"steps": 2}))
    with pytest.raises(UserError, match=r"another training\.clip"):  # what was trained keeps its folder
        run_training(make_config(data, tmp_path, training={"steps": 2, "clip": 2.0}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="device cuda is no mistake here")
def test_a_device_that_is_not_there_is_told_before_anything_is_written(data, tmp_path):
    with pytest.raises(UserError, match="no CUDA device is available"):
        run_training(make_config(data, tmp_path / "run", training={"device": "cuda"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [[], 5, {"config": []}])
def test_a_damaged_description_of_a_run_is_told(data, tmp_path, content):
    run_training(make_config(data, tmp_path, training={"steps": 1}))
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"run.json is damaged"):
        run_training(make_config(data, tmp_path, training={"steps": 1}))


# --- standardised features


def test_scale_and_origin_of_the_features_change_nothing(data, tmp_path):
    """Twice the features plus 4, exact in float16 but for the last bits: hence the tolerance."""
    store = RegionStore(data.regions)
    with RegionStoreWriter(tmp_path / "moved", store.extractor) as writer:
        for place in range(len(store)):
            regions = store.read(place)
            writer.add(replace(regions, features=(2 * regions.features + 4).astype(np.float16)))
    plain, moved = make_config(data, tmp_path / "a"), make_config(data, tmp_path / "b", regions=tmp_path / "moved")
    for config in (plain, moved):
        run_training(config)
    losses = [[line["loss"] for line in log_of(run)] for run in (tmp_path / "a", tmp_path / "b")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


# --- the report


def test_wandb_offline_writes_a_run(data, tmp_path):
    pytest.importorskip("wandb")
    run_training(make_config(data, tmp_path, training={"wandb": "offline"}))
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb")) and (tmp_path / "wandb_id").read_text()


def test_times_are_told_in_hours_minutes_and_seconds():
    assert [format_seconds(s) for s in (0.4, 59.6, 3599.4, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]


def test_signal_handlers_are_put_back_after_training(data, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run_training(make_config(data, tmp_path))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_run_does_not_go_on_with_other_regions_under_the_same_path(data, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(data.regions, store)
    config = make_config(data, tmp_path / "run", regions=store, training={"save_every": 2})
    with pytest.raises(Killed):
        run_training(config, stop_at(3, kill))
    before = weights_of(tmp_path / "run")
    regions = [RegionStore(data.regions).read(place) for place in range(len(RegionStore(data.regions)))]
    shutil.rmtree(store)
    other = replace(RegionStore(data.regions).extractor, name="another", fingerprint="f" * 64)
    with RegionStoreWriter(store, other) as writer:
        for found in regions:
            writer.add(replace(found, features=-found.features))
    with pytest.raises(UserError, match="another content of the region store"):
        run_training(config)
    assert weights_of(tmp_path / "run") == before


# --- the annotations


@pytest.mark.parametrize("task", ["pretrain", "vqa", "caption"])
def test_a_run_that_goes_on_reads_its_tokenised_texts_and_no_annotations(data, tmp_path, monkeypatch, task):
    config = make_config(data, tmp_path / "run", task)
    run_training(config)
    for folder in (config.output / "checkpoints").iterdir():
        shutil.rmtree(folder)  # so that all steps are done again
    before, log = (config.output / "match.json").read_bytes(), log_of(config.output)
    again = config.model_copy(update={"cache": config.output / "texts"})
    with monkeypatch.context() as patch:
        for name in ("read_captions", "read_questions"):
            patch.setattr(f"dimvl.training.build.{name}", lambda *arguments: pytest.fail("annotations were read"))
        run_training(again)
    assert log_of(config.output) == log and (config.output / "match.json").read_bytes() == before


@pytest.mark.parametrize(
    "lose",
    [
        lambda run: shutil.rmtree(run / "texts"),
        lambda run: next((run / "texts").glob("*/token_ids.npy")).write_bytes(b"damaged"),
        lambda run: (run / "texts.json").write_text("{}"),
        lambda run: (run / "texts.json").unlink(),
        lambda run: (run / "trained_on.npy").unlink(),
    ],
)
def test_texts_that_are_gone_or_damaged_are_made_again_from_the_annotations(data, tmp_path, lose):
    config = make_config(data, tmp_path / "run", "caption", training={"steps": 2})
    run_training(config)
    weights, trained_on = weights_of(config.output), (config.output / "trained_on.npy").read_bytes()
    for folder in (config.output / "checkpoints").iterdir():
        shutil.rmtree(folder)
    lose(config.output)
    run_training(config)
    assert weights_of(config.output) == weights and (config.output / "trained_on.npy").read_bytes() == trained_on
    assert (config.output / "texts.json").exists()


def test_the_texts_of_a_run_that_trained_nothing_are_not_those_of_the_mended_one(data, tmp_path):
    wrong = make_config(data, tmp_path / "run", training={"rows_per_step": 5})
    with pytest.raises(UserError, match="rows_per_step"):
        run_training(wrong)
    assert (tmp_path / "run" / "texts.json").exists()
    right = make_config(data, tmp_path / "run", inputs={"text_tokens": 2})
    run_training(right)
    store = json.loads((tmp_path / "run" / "texts.json").read_text())["store"]
    assert json.loads((tmp_path / "run" / "texts" / store / "manifest.json").read_text())["max_tokens"] == 2


def test_what_takes_time_beside_the_steps_is_told(data, tmp_path):
    told = []
    validation = {"questions": data.questions, "annotations": data.annotations, "every": 3}
    config = make_config(data, tmp_path / "run", "vqa", validation=validation)
    run_training(config, working=lambda *work: told.append(work))
    assert told[0] == ("texts tokenised", 16, 16)
    batches = [work for work in told if work[0] == "batches validated"]
    assert batches == 2 * [("batches validated", done, batches[-1][2]) for done in range(1, batches[-1][2] + 1)]
    assert len(batches) >= 4


MISTAKEN = """
from dimvl.cli import main
from dimvl.errors import UserError
from dimvl.tasks.pretraining import PretrainSource

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
def test_a_mistake_that_a_worker_process_finds_is_one_sentence_and_ends_the_run(data, tmp_path, wrong, code, last):
    config = make_config(data, tmp_path / "run", training={"workers": 2})
    file = tmp_path / "config.json"  # JSON is YAML
    file.write_text(config.model_dump_json(exclude_none=True))
    command = [sys.executable, "-c", MISTAKEN.replace("WRONG", wrong), "pretrain", file]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == code and done.stderr.strip().splitlines()[-1] == last
    assert ("Traceback" in done.stderr) == (code == 1)
