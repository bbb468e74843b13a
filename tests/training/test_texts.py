import json
import shutil

import pytest

from dimvl.errors import UserError
from dimvl.tasks import all_tasks
from dimvl.training.run import run_training
from tests.tiny_runs import make_config
from tests.training.runs import bytes_of, log_of


@pytest.mark.parametrize("task", ["pretrain", "vqa", "caption"])
def test_a_resumed_run_reads_its_tokenised_texts_and_no_annotations(data, tmp_path, monkeypatch, task):
    config = make_config(data, tmp_path / "run", task)
    run_training(config)
    for folder in (config.output / "checkpoints").iterdir():
        shutil.rmtree(folder)  # so that all steps run again
    before, log = (config.output / "match.json").read_bytes(), log_of(config.output)
    again = config.model_copy(update={"cache": config.output / "texts"})
    with monkeypatch.context() as patch:
        patch.setattr(type(all_tasks()[task]), "read", lambda *arguments: pytest.fail("annotations were read"))
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
def test_missing_or_damaged_texts_are_rebuilt_from_the_annotations(data, tmp_path, lose):
    config = make_config(data, tmp_path / "run", "caption", training={"steps": 2})
    run_training(config)
    weights, trained_on = bytes_of(config.output), (config.output / "trained_on.npy").read_bytes()
    for folder in (config.output / "checkpoints").iterdir():
        shutil.rmtree(folder)
    lose(config.output)
    run_training(config)
    assert bytes_of(config.output) == weights and (config.output / "trained_on.npy").read_bytes() == trained_on
    assert (config.output / "texts.json").exists()


def test_the_texts_of_a_run_that_trained_nothing_are_not_reused(data, tmp_path):
    wrong = make_config(data, tmp_path / "run", training={"rows_per_step": 5})
    with pytest.raises(UserError, match="rows_per_step"):
        run_training(wrong)
    assert (tmp_path / "run" / "texts.json").exists()
    right = make_config(data, tmp_path / "run", inputs={"text_tokens": 2})
    run_training(right)
    store = json.loads((tmp_path / "run" / "texts.json").read_text())["store"]
    assert json.loads((tmp_path / "run" / "texts" / store / "manifest.json").read_text())["max_tokens"] == 2
