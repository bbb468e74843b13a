"""The wandb log in offline mode, without a network: what was written is read back from wandb's own files."""

import json
import os
import subprocess
import sys
import time

import pytest

from dimvl.checkpoints import read_log
from dimvl.errors import UserError
from dimvl.training.report import Log, open_log
from dimvl.training.run import run_training
from dimvl.training.wandb_files import offline_records, offline_rows
from tests.tiny_runs import make_config
from tests.training.runs import ROOT, Killed, at_step, kill

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")  # in case a test forgets to set it
    monkeypatch.setenv("HOME", str(tmp_path))  # no login of the user
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def config_of(data, output, task="pretrain", mode="offline", steps=8, **changes):
    training = {"steps": steps, "save_every": 3, "wandb": mode}
    return make_config(data, output, task, training=training, **changes)


def lines(run, name="log.jsonl"):
    return read_log(run / name)


def records(run):
    """All records of a run's last start, which wandb may still be writing when it returns."""
    until = time.monotonic() + 30
    while True:
        found = list(offline_records(files(run)[-1]))
        if (found and found[-1].WhichOneof("record_type") == "exit") or time.monotonic() > until:
            return found
        time.sleep(0.2)


def rows(run):
    records(run)
    return list(offline_rows(run, (run / "wandb_id").read_text()))


def files(run):
    return sorted(run.glob("wandb/offline-run-*/run-*.wandb"))


def test_every_step_is_in_wandb_with_the_values_of_the_runs_own_log(data, tmp_path):
    run = run_training(config_of(data, tmp_path / "run"))
    assert [row["_step"] for row in rows(run)] == list(range(1, 9))
    for row, line in zip(rows(run), lines(run), strict=True):
        assert row["loss"] == line["loss"] and row["learning_rate"] == line["learning_rate"]
        assert {name: row[f"loss/{name}"] for name in line["losses"]} == line["losses"]


def test_a_truncated_file_yields_its_complete_records(data, tmp_path):
    whole = records(run_training(config_of(data, tmp_path / "run", steps=1)))
    content = files(tmp_path / "run")[-1].read_bytes()
    for end in range(7, len(content), max(1, len(content) // 200)):
        (tmp_path / "cut").write_bytes(content[:end])
        found = list(offline_records(tmp_path / "cut"))
        assert found == whole[: len(found)] and len(found) < len(whole)


def test_wandb_knows_the_run_its_group_configuration_and_revision(data, tmp_path):
    run = run_training(config_of(data, tmp_path / "run", steps=1))
    (sent,) = [record.run for record in records(run) if record.WhichOneof("record_type") == "run"]
    assert (sent.project, sent.display_name, sent.run_group, sent.job_type) == ("dimvl", "run", "run", "pretrain")
    assert sent.run_id == (run / "wandb_id").read_text()
    values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in sent.config.update}
    assert values["model"]["width"] == 16 and values["seed"] == 3
    assert values["git_revision"] == json.loads((run / "run.json").read_text())["git_revision"]


KILLED = """
import os, signal, sys
from pathlib import Path
from dimvl.training.run import run_training
from tests.tiny_runs import TinyData
from tests.training.test_wandb import config_of, vqa

*paths, output, task, last = sys.argv[1:]

def progress(report):
    if report.step == int(last):
        os.kill(os.getpid(), signal.SIGKILL)

data = TinyData(*map(Path, paths))
run_training(config_of(data, Path(output), task, **(vqa(data) if task == "vqa" else {})), progress)
"""


def kill_after(data, run, step, task="pretrain"):
    paths = [data.regions, data.captions, data.questions, data.annotations, run, task, str(step)]
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # not that of this process
    command = [sys.executable, "-c", KILLED, *paths]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr
    wait_for_silence(run)


def wait_for_silence(run):
    """Wait until wandb's own process, which outlives the run, has written what it has."""
    size = -1
    while size != (size := sum(file.stat().st_size for file in files(run))):
        time.sleep(1)


@pytest.mark.parametrize("steps", [(5,), (5, 7)])
def test_a_killed_run_has_every_step_once_and_in_order_in_one_wandb_run(data, tmp_path, steps):
    run = tmp_path / "run"
    for step in steps:
        kill_after(data, run, step)
    identity = (run / "wandb_id").read_text()
    before = [row["_step"] for row in offline_rows(run, identity)]
    assert before == list(range(1, len(before) + 1)) and len(before) < steps[-1], "wandb had not written all"
    run_training(config_of(data, run))
    assert [row["_step"] for row in rows(run)] == list(range(1, 9))
    assert [row["loss"] for row in rows(run)] == [line["loss"] for line in lines(run)]
    assert (run / "wandb_id").read_text() == identity and len(files(run)) == len(steps) + 1


def test_steps_repeated_after_a_checkpoint_are_not_sent_twice(data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Killed):  # wandb finishes, so everything is on disk
        run_training(config_of(data, run), at_step(5, kill))
    assert [row["_step"] for row in rows(run)] == [1, 2, 3, 4, 5]
    run_training(config_of(data, run))
    assert [row["_step"] for row in rows(run)] == list(range(1, 9)) and len(files(run)) == 2


def test_a_second_start_within_one_second_is_read_too(data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Killed):
        run_training(config_of(data, run), at_step(5, kill))
    run_training(config_of(data, run))
    first, second = (file.parent for file in files(run))
    if second.name != f"{first.name}-1":
        second.rename(first.with_name(f"{first.name}-1"))  # as wandb would name it
    assert [row["_step"] for row in rows(run)] == list(range(1, 9))


def vqa(data):
    return {"validation": {"questions": data.questions, "annotations": data.annotations, "every": 2}}


def tables(run):
    """The table of predictions of each step, from the files that wandb has written."""
    found = {}
    for row in rows(run):
        if "predictions/path" in row:
            file, *_ = run.glob(f"wandb/offline-run-*/files/{row['predictions/path']}")  # with a checksum in its name
            found[row["_step"]] = json.loads(file.read_text())
    return found


def test_predictions_for_a_fixed_sample_of_questions_are_in_the_run_and_in_wandb(data, tmp_path):
    run = run_training(config_of(data, tmp_path / "run", "vqa", **vqa(data)))
    validated = lines(run, "predictions.jsonl")
    assert [line["step"] for line in validated] == [2, 4, 6, 8]
    assert len({tuple(item["question_id"] for item in line["predictions"]) for line in validated}) == 1
    for item in validated[-1]["predictions"]:
        assert set(item) == {"question_id", "image_id", "question", "answers", "truth"}
        assert item["truth"][0] in ("yes", "no", "red") and len(item["answers"]) == 3
        probabilities = [probability for _, probability in item["answers"]]
        assert probabilities == sorted(probabilities, reverse=True)
    written = tables(run)
    assert list(written) == [2, 4, 6, 8]
    for line in validated:
        table = written[line["step"]]
        assert table["columns"] == list(line["predictions"][0])
        assert [row[0] for row in table["data"]] == [item["question_id"] for item in line["predictions"]]
    scores = {row["_step"]: row["validation"] for row in rows(run) if "validation" in row}
    assert scores == {line["step"]: line["validation"] for line in lines(run) if "validation" in line}


def test_predicted_captions_and_their_references_are_in_the_run_even_without_wandb(data, tmp_path):
    section = {"captions": data.captions, "every": 4}
    config = config_of(data, tmp_path / "run", "caption", "disabled", validation=section)
    run = run_training(config)
    validated = lines(run, "predictions.jsonl")
    assert [line["step"] for line in validated] == [4, 8] and not (run / "wandb").exists()
    validations = [line["validation"] for line in lines(run) if "validation" in line]
    for line, score in zip(validated, validations, strict=True):
        assert len(line["predictions"]) == 8 and all(item["references"] for item in line["predictions"])
        mean = sum(item["cider"] for item in line["predictions"]) / 8
        assert mean == pytest.approx(score, abs=1e-4)  # rounded to 4 digits


def test_a_killed_run_has_the_predictions_of_each_validation_once(data, tmp_path):
    whole = run_training(config_of(data, tmp_path / "whole", "vqa", "disabled", **vqa(data)))
    run = tmp_path / "run"
    kill_after(data, run, 7, "vqa")
    run_training(config_of(data, run, "vqa", **vqa(data)))
    assert lines(run, "predictions.jsonl") == lines(whole, "predictions.jsonl")
    assert list(tables(run)) == [2, 4, 6, 8]
    assert [row["_step"] for row in rows(run)] == list(range(1, 9))


def test_wandb_is_imported_only_if_it_is_used(data, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom dimvl.training.run import run_training\n"
        "from tests.tiny_runs import make_config, make_data\nfolder = Path(sys.argv[1])\n"
        "run_training(make_config(make_data(folder), folder / 'run', training={'steps': 1}))\n"
        "assert 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "data"], cwd=ROOT, check=True)


def test_online_without_a_login_is_one_sentence_and_leaves_the_log_unchanged(data, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    config = config_of(data, tmp_path / "run", mode="online")
    with pytest.raises(
        UserError, match=r"wandb is 'online' but wandb does not start \(No API key.*training\.wandb=offline"
    ):
        run_training(config)
    run_training(config_of(data, tmp_path / "run", mode="disabled"))
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 9))


def test_other_ranks_log_nothing(data, tmp_path):
    class Second:
        rank, size, waited = 1, 2, 0.0

        def gather(self, value):
            return [value, value]

        def sum(self, values):
            return values

    with open_log(tmp_path, config_of(data, tmp_path), 0, Second()) as log:
        assert type(log) is Log
    assert not list(tmp_path.glob("wandb*")) and not (tmp_path / "log.jsonl").exists()
