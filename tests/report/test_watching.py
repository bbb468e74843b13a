"""A run in the terminal: how far it is, its curves, and how it ended."""

import json
import re
from threading import Thread

import numpy as np
import pytest

from dimvl.cli import watching as command
from dimvl.errors import Interrupted, NotFiniteError, UserError
from dimvl.files import is_locked, locked
from dimvl.report import watching
from dimvl.report.watching import ASCII, BLOCKS, chart, look
from dimvl.training.run import run_training
from tests.cli.calls import call
from tests.tiny_runs import make_config, make_data
from tests.training.runs import at_step, terminate


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def config_of(data, run, steps=8, **changes):
    return make_config(data, run, training={"steps": steps, "save_every": 3, "log_every": 1, **changes})


@pytest.fixture(scope="module")
def seen(data, tmp_path_factory):
    """What was seen of a run in each of its steps, and at its end."""
    run, views = tmp_path_factory.mktemp("runs") / "run", []
    run_training(config_of(data, run), lambda report: views.append(look(run)))
    return run, [*views, look(run)]


def test_a_run_that_trains_shows_its_newest_step_and_the_time_left(seen):
    _, views = seen
    assert [(one.state, one.newest["step"]) for one in views[:-1]] == [("training", step) for step in range(1, 9)]
    assert re.fullmatch(
        r"run, training, step 3 of 8, loss \d+\.\d{3}, \d+ examples/s, \d+:\d\d left", views[2].summary()
    )
    assert (views[-1].state, views[-1].age < 60) == ("finished", True)
    assert re.fullmatch(r"run, finished, step 8 of 8, loss [\d.]+", views[-1].summary())


def test_lines_fit_the_terminal_and_have_a_curve_for_each_loss(seen):
    *_, view = seen[1]
    for width, height, blocks in ((40, 24, BLOCKS), (100, 60, ASCII), (20, 5, BLOCKS)):
        lines = view.lines(width, height, blocks)
        assert max(map(len, lines)) <= width and all(line.isprintable() for line in lines)
        named = [line for line in lines if line.startswith("matching")]
        assert named and lines.count(blocks[-1] * width) == 1, "all steps are done"
        assert " ".join(lines[: lines.index(blocks[-1] * width)]) == view.summary()
        assert len(lines) <= max(height, 3 + 2 * len(view.losses))


def test_a_curve_goes_from_its_lowest_to_its_highest_value_and_a_spike_is_seen():
    assert chart(np.arange(8.0), 8, 1) == ["▁▂▃▄▅▆▇█"] and chart(np.zeros(3), 8, 1) == ["▁▁▁▁▁▁"]
    assert chart(np.array([0.0, 1.0]), 2, 2) == [" █", "▁█"]
    assert chart(np.arange(100.0), 10, 1, ASCII)[0][0] == "." and len(chart(np.arange(100.0), 10, 3)[0]) == 10


def failing():
    raise NotFiniteError("the loss is not finite\nat step 5")


def breaking():
    raise UserError("the disk is full; free space")


def test_a_run_says_how_it_ended(data, tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    for fault, words in (
        (failing, "failed (the loss is not finite)"),
        (breaking, "failed (the disk is full; free space)"),
    ):
        with pytest.raises((NotFiniteError, UserError)):
            run_training(config_of(data, run), at_step(5, fault))
        result = call(monkeypatch, capfd, "watch", run)
        assert result.code == 1 and words in result.out and "step 5 of 8" in result.out
    (run / "ended.json").unlink()  # as a kill leaves it
    result = call(monkeypatch, capfd, "watch", run)
    assert result.code == 1 and "stopped (no process is training it; start it again to resume)" in result.out
    run_training(config_of(data, run))
    result = call(monkeypatch, capfd, "watch", run)
    assert result.code == 0 and result.out.startswith("run, finished, step 8 of 8")
    assert json.loads((run / "ended.json").read_text()) == {"how": "finished", "reason": ""}


def test_a_run_that_fails_before_its_first_checkpoint_still_says_so(data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(NotFiniteError):
        run_training(config_of(data, run), at_step(1, failing))
    assert not (run / "run.json").exists() and look(run).state == "failed"


def test_a_run_is_followed_live_until_it_is_asked_to_stop(data, tmp_path, monkeypatch):
    run, lines = tmp_path / "run", []
    monkeypatch.setattr(command, "INTERVAL", 0.01)
    monkeypatch.setattr(command, "print_text", lines.append)
    watcher = Thread(target=command._follow_plainly, args=(run,))
    begin_and_stop = {1: watcher.start, 4: terminate}
    with pytest.raises(Interrupted):
        run_training(config_of(data, run), lambda report: begin_and_stop.get(report.step, lambda: None)())
    watcher.join(60)
    assert lines[0].startswith("run, training, step ") and not watcher.is_alive()
    assert lines[-1].startswith("run, stopped (") and "step 4 of 8" in lines[-1]


def test_once_shows_the_curves_and_a_folder_that_is_no_run_is_refused(seen, tmp_path, monkeypatch, capfd):
    result = call(monkeypatch, capfd, "watch", seen[0], "--once")
    assert result.code == 0 and result.out.startswith("run, finished") and "matching: " in result.out
    assert command._follow(seen[0]).state == "finished"  # in place
    shown = capfd.readouterr().out
    assert "matching: " in shown and BLOCKS[-1] in shown
    result = call(monkeypatch, capfd, "watch", tmp_path)
    assert result.code == 2 and "is not a run of dimvl" in result.err


def test_a_name_from_outside_cannot_command_the_terminal(seen, tmp_path):
    view = seen[1][-1]
    hostile = watching.View("\x1b[2Jrun", "failed", "a\x1b]0;b", view.newest, 8, 0.0, view.losses, [])
    assert "\x1b" not in "".join(hostile.lines(80, 24))


def test_the_lock_of_a_folder_is_seen_and_not_taken(tmp_path):
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
    with locked(tmp_path, "busy; wait"):
        pass
