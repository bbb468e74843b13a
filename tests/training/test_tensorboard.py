"""The TensorBoard log, read back as TensorBoard reads it."""

import sys

import pytest

from dimvl.checkpoints import read_log
from dimvl.errors import UserError
from dimvl.training.run import run_training
from tests.tiny_runs import make_config
from tests.training.runs import Killed, at_step, kill

pytest.importorskip("tensorboard")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")]


def config_of(data, run, tensorboard=True, steps=8, **changes):
    training = {"steps": steps, "save_every": 3, "tensorboard": tensorboard}
    return make_config(data, run, training=training, **changes)


def curves(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def logged(run, name):
    return [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in read_log(run / "log.jsonl") if name in line]


def test_each_number_of_the_log_is_there_once_with_its_step_also_after_a_kill(data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Killed):
        run_training(config_of(data, run), at_step(5, kill))
    assert [step for step, _ in curves(run)["loss"]] == [1, 2, 3, 4, 5]
    run_training(config_of(data, run))  # from the checkpoint after step 3
    found = curves(run)
    assert [step for step, _ in found["loss"]] == list(range(1, 9))
    for name in ("loss", "learning_rate", "gradient_norm"):
        assert found[name] == logged(run, name)
    losses = {f"loss/{name}" for line in read_log(run / "log.jsonl") for name in line["losses"]}
    assert losses <= found.keys() and "step" not in found


def test_a_run_that_turns_it_on_when_it_resumes_has_the_earlier_steps_too(data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Killed):
        run_training(config_of(data, run, tensorboard=False), at_step(7, kill))
    assert not (run / "tensorboard").exists()
    run_training(config_of(data, run))
    assert curves(run)["loss"] == logged(run, "loss")


def test_without_the_package_one_sentence_names_the_extra(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        UserError, match=r"needs the package tensorboard; install it with pip install 'dimvl\[tensorboard\]'"
    ):
        run_training(config_of(data, tmp_path / "run", steps=1))
