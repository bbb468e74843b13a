import errno
import fcntl
import os
import resource
import threading
import warnings
from collections import UserDict
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors import SafetensorError

from dimvl import checkpoints
from dimvl.checkpoints import (
    best_checkpoint,
    check_checkpoint,
    checkpoint_folder,
    latest_checkpoint,
    read_best_checkpoint,
)
from dimvl.config import TrainingConfig
from dimvl.errors import UserError
from dimvl.files import sha256, weights
from dimvl.model.convert import read_weights
from dimvl.tasks.pretraining.config import ObjectivesConfig
from dimvl.tasks.pretraining.training import PretrainModule
from dimvl.training import checkpoint
from dimvl.training.checkpoint import Saver
from dimvl.training.engine import TorchEngine
from dimvl.training.ranks import SingleProcess
from dimvl.training.state import State, read_state, shapes_of
from tests.factories import CLASSES, make_model, make_processor


class SmallEngine:
    """Has one number as its state; `fail` is called between the two files that it is written to."""

    ranks = SingleProcess()

    def __init__(self, number=0, fail=lambda: None):
        self.number, self.fail = number, fail

    def state(self):
        engine = self

        class Failing(UserDict):
            def keys(self):
                engine.fail()
                return super().keys()

        return State({"w": torch.tensor(self.number)}, Failing(), 3)


def save_checkpoint(run, engine, step, keep):
    """Save, and wait until the checkpoint is written."""
    saver = Saver(run, engine, keep)
    saver.save(step)
    saver.wait()
    return checkpoint_folder(run, step)


def number_in(folder):
    return int(read_weights(folder / "model.safetensors")["w"])


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (2, 10, 100):
        assert save_checkpoint(tmp_path, SmallEngine(), step, keep=2) == latest_checkpoint(tmp_path)
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    assert check_checkpoint(latest_checkpoint(tmp_path))["step"] == 100


def test_every_file_is_on_disk_before_the_folder_of_a_checkpoint_appears(tmp_path, monkeypatch):
    on_disk, sync, replace = set(), os.fsync, os.replace

    def note(number):
        on_disk.add(os.fstat(number).st_ino)
        sync(number)

    def check(old, new):
        if Path(new) == checkpoint_folder(tmp_path, 1):
            files = list(Path(old).iterdir())
            assert len(files) == 3 and {file.stat().st_ino for file in files} <= on_disk
            on_disk.add("checked")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", check)
    save_checkpoint(tmp_path, SmallEngine(), 1, keep=1)
    assert "checked" in on_disk


def test_a_run_without_checkpoints_has_no_latest_one(tmp_path):
    assert latest_checkpoint(tmp_path) is None


KILLED_AT = {
    "between the files": (SmallEngine, "fail"),
    "before the checksums": (checkpoint, "sha256"),
    "before state.json": (checkpoint, "write_sealed"),
    "before the rename": (os, "replace"),
    "before old ones are removed": (checkpoint, "checkpoint_folders"),
    "while old ones are removed": (checkpoint.shutil, "rmtree"),
}


@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_save_killed_at_any_moment_leaves_a_complete_checkpoint(tmp_path, moment):
    save_checkpoint(tmp_path, SmallEngine(1), 1, keep=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking next to threads
        child = os.fork()
    if not child:
        place, name = KILLED_AT[moment]
        real = getattr(place, name, None)

        def die(*arguments, **_):
            if place is os and Path(arguments[1]) != checkpoint_folder(tmp_path, 2):
                return real(*arguments)
            os._exit(9)

        if place is SmallEngine:
            save_checkpoint(tmp_path, SmallEngine(2, fail=die), 2, keep=1)
        setattr(place, name, die)
        save_checkpoint(tmp_path, SmallEngine(2), 2, keep=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = latest_checkpoint(tmp_path)
    state = check_checkpoint(left)
    assert state["step"] == (2 if "old ones" in moment else 1)
    assert number_in(left) == (2 if "old ones" in moment else 1)
    save_checkpoint(tmp_path, SmallEngine(3), 3, keep=1)
    assert names(tmp_path) == ["step-00000003"], "nothing is left of the killed one"


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on")]
)
def test_a_full_disk_is_one_clear_sentence_and_the_previous_checkpoint_survives(tmp_path, monkeypatch, error):
    save_checkpoint(tmp_path, SmallEngine(1), 1, keep=1)
    monkeypatch.setattr(weights, "save_file", Mock(side_effect=error))
    with pytest.raises(
        UserError, match=r"cannot write \S*/step-00000002/model\.safetensors: No space left on.*; free space"
    ):
        save_checkpoint(tmp_path, SmallEngine(2), 2, keep=1)
    assert names(tmp_path) == ["step-00000001"]
    check_checkpoint(latest_checkpoint(tmp_path))


def test_a_bug_is_not_reported_as_a_full_disk(tmp_path):
    def mistake():
        raise KeyError("weights")

    with pytest.raises(KeyError):
        save_checkpoint(tmp_path, SmallEngine(fail=mistake), 1, keep=1)


@contextmanager
def no_file_above(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def make_engine(seed=0, **changes):
    model = make_model(seed, word_head=True, match_head=True, classes=len(CLASSES), **changes).train()
    return TorchEngine(
        PretrainModule(model, make_processor(), ObjectivesConfig()),
        TrainingConfig(steps=10, warmup_steps=4, device="cpu"),
    )


def restore(engine, folder):
    engine.restore(read_state(folder, shapes_of(engine.task.model)))


def take_steps(engine, count):
    for step in range(count):
        generator = torch.Generator().manual_seed(engine.schedule.last_epoch)
        for parameter in engine.task.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        assert engine.step() > 0, step


def test_a_refused_write_leaves_the_previous_checkpoint_of_a_real_engine(tmp_path):
    engine = make_engine()
    take_steps(engine, 1)
    save_checkpoint(tmp_path, engine, 1, keep=1)
    for limit in (1_000, 60_000):  # the weights fail, or the larger optimiser state after them
        with no_file_above(limit), pytest.raises(UserError, match=r"cannot write .*step-00000002"):
            save_checkpoint(tmp_path, engine, 2, keep=1)
    assert names(tmp_path) == ["step-00000001"]
    check_checkpoint(latest_checkpoint(tmp_path))


def test_a_restored_engine_continues_like_the_saved_one(tmp_path):
    saved, loaded = make_engine(0), make_engine(1)
    saved.task.model.regions.feature_mean.fill_(0.5)  # a buffer, which training does not change
    take_steps(saved, 3)
    folder = save_checkpoint(tmp_path, saved, 3, keep=1)
    restore(loaded, folder)
    assert loaded.learning_rate == saved.learning_rate
    for engine in (saved, loaded):
        take_steps(engine, 4)
    assert loaded.learning_rate == saved.learning_rate
    for one, other in zip(*(engine.task.model.state_dict().values() for engine in (saved, loaded)), strict=True):
        assert torch.equal(one, other)


# --- while another process reads


def test_a_checkpoint_that_is_being_read_is_removed_after_it_was_read(tmp_path):
    save_checkpoint(tmp_path, SmallEngine(1), 1, keep=1)

    def read(folder, digest):
        save_checkpoint(tmp_path, SmallEngine(2), 2, keep=1)
        assert sha256(folder / "model.safetensors") == digest
        return number_in(folder)

    assert read_best_checkpoint(tmp_path, read) == 1
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    save_checkpoint(tmp_path, SmallEngine(3), 3, keep=1)
    assert names(tmp_path) == ["step-00000003"]


@pytest.mark.parametrize("moment", ["chosen", "described", "checked"])
def test_where_nothing_can_be_pinned_the_next_checkpoint_is_read(tmp_path, monkeypatch, moment):
    """The run replaces the first checkpoint after it was chosen, after its state was read, or after its check."""
    monkeypatch.setattr(fcntl, "flock", full)
    save_checkpoint(tmp_path, SmallEngine(1), 1, keep=1)
    calls, real = [], checkpoints.check_checkpoint

    def check(*arguments):
        place = len(calls)
        calls.append(arguments)
        if place == {"chosen": 0, "described": 1}.get(moment):
            save_checkpoint(tmp_path, SmallEngine(2), 2, keep=1)
        found = real(*arguments)
        if place == 1 and moment == "checked":
            save_checkpoint(tmp_path, SmallEngine(2), 2, keep=1)
        return found

    monkeypatch.setattr(checkpoints, "check_checkpoint", check)
    assert read_best_checkpoint(tmp_path, lambda folder, digest: number_in(folder)) == 2


def test_a_checkpoint_that_is_damaged_is_not_read_again_and_again(tmp_path):
    (save_checkpoint(tmp_path, SmallEngine(), 1, keep=1) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model\.safetensors"):
        best_checkpoint(tmp_path)


# --- while training continues


@pytest.fixture
def held(monkeypatch):
    """An event that lets checkpoints be written once it is set."""
    held, real = threading.Event(), checkpoint.write_state

    def write(folder, state):
        assert held.wait(timeout=60)
        real(folder, state)

    monkeypatch.setattr(checkpoint, "write_state", write)
    yield held
    held.set()


def test_the_state_of_the_step_is_written_although_training_continues(tmp_path, held):
    saved, other, undisturbed = make_engine(), make_engine(1), make_engine()
    take_steps(saved, 2)
    with Saver(tmp_path, saved, keep=1) as saver:
        saver.save(2)
        take_steps(saved, 3)
        assert latest_checkpoint(tmp_path) is None
        held.set()
    restore(other, latest_checkpoint(tmp_path))
    take_steps(undisturbed, 2)
    for engine in (other, undisturbed):
        take_steps(engine, 1)  # equal only if the optimiser's state is also that of its step
    assert all(torch.equal(a, b) for a, b in zip(other.task.parameters(), undisturbed.task.parameters(), strict=True))


def test_a_save_waits_for_the_previous_one(tmp_path, held):
    saver = Saver(tmp_path, SmallEngine(1), keep=2)
    saver.save(1)
    threading.Timer(0.2, held.set).start()
    saver.save(2)
    assert held.is_set() and "step-00000001" in names(tmp_path)
    saver.wait()
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_failed_write_is_raised_once_by_the_next_save(tmp_path):
    saver = Saver(tmp_path, SmallEngine(fail=full), keep=1)
    before = threading.enumerate()
    saver.save(1)
    for writing in set(threading.enumerate()) - set(before):
        writing.join()
    assert saver.failed, "so the run stops before its next checkpoint is due"
    with pytest.raises(UserError, match=r"cannot write .*step-00000001: No space left"):
        saver.save(2)
    assert not saver.failed
    saver.wait()
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [None, KeyError, UserError, SystemExit])
def test_leaving_the_saver_waits_for_the_last_checkpoint(tmp_path, held, error):
    threading.Timer(0.2, held.set).start()
    with pytest.raises(error) if error else nullcontext(), Saver(tmp_path, SmallEngine(), keep=1) as saver:
        saver.save(1)
        if error:
            raise error
    assert check_checkpoint(latest_checkpoint(tmp_path))["step"] == 1


def test_a_failed_write_does_not_hide_another_error(tmp_path, caplog):
    with pytest.raises(KeyError, match="weights"), Saver(tmp_path, SmallEngine(fail=full), keep=1) as saver:
        saver.save(1)
        raise KeyError("weights")
    assert "cannot write" in caplog.text


def test_a_second_signal_does_not_wait_for_the_checkpoint(tmp_path, held):
    threading.Timer(1, held.set).start()
    before = threading.enumerate()
    with pytest.raises(KeyboardInterrupt), Saver(tmp_path, SmallEngine(), keep=1) as saver:
        saver.save(1)
        [writing] = set(threading.enumerate()) - set(before)
        assert writing.daemon, "Python does not wait for it at exit either"
        raise KeyboardInterrupt
    assert latest_checkpoint(tmp_path) is None and not held.is_set()


# --- damage


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flipped bit", "cut off", "missing"])
def test_a_damaged_checkpoint_is_named(tmp_path, name, damage):
    folder = save_checkpoint(tmp_path, SmallEngine(), 7, keep=1)
    file, content = folder / name, (folder / name).read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        flipped = content.replace(b"7", b"6", 1) if name == "state.json" else bytes([content[0] ^ 1]) + content[1:]
        file.write_bytes(flipped if damage == "flipped bit" else content[: len(content) // 2])
    with pytest.raises(UserError, match=r"step-00000007.*; (remove|check)") as caught:
        check_checkpoint(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("damage", ["flipped bit", "missing"])
def test_a_damaged_optimiser_state_does_not_affect_the_weights(tmp_path, damage):
    folder = save_checkpoint(tmp_path, SmallEngine(), 7, keep=1)
    file = folder / "optimiser.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"\1" + file.read_bytes()[1:])
    assert best_checkpoint(tmp_path) == folder
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        best_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "state",
    ["{}", "[]", '{"step": 7, "checksums": {}}', '{"step": 7, "checksums": 3}', '{"step": null, "checksums": {}}'],
)
def test_a_state_file_with_other_content_counts_as_damaged(tmp_path, state):
    folder = save_checkpoint(tmp_path, SmallEngine(), 7, keep=1)
    (folder / "state.json").write_text(state)
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        check_checkpoint(folder)


@pytest.mark.parametrize("changes", [{"width": 32}, {"layers": 1}, {"layers": 3}])
def test_a_checkpoint_of_another_model_is_refused(tmp_path, changes):
    folder = save_checkpoint(tmp_path, make_engine(), 1, keep=1)
    with pytest.raises(UserError, match="saved with another configuration"):
        restore(make_engine(**changes), folder)


def test_nothing_in_a_checkpoint_is_pickled_and_colleagues_can_read_it(tmp_path):
    engine = make_engine()
    take_steps(engine, 1)
    folder = save_checkpoint(tmp_path, engine, 1, keep=1)
    assert sorted(file.name for file in folder.iterdir()) == [
        "model.safetensors",
        "optimiser.safetensors",
        "state.json",
    ]
    assert oct(folder.stat().st_mode)[-3:] == "755"
    assert {oct(file.stat().st_mode)[-3:] for file in folder.iterdir()} == {"644"}
