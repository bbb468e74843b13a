"""What a run keeps of the model that it starts from, what it learns anew, and which other files it holds on to."""

import json

import pytest
import torch

from dimvl.checkpoints import WEIGHTS, latest_checkpoint
from dimvl.data.processor import Processor
from dimvl.errors import UserError
from dimvl.model.convert import read_weights
from dimvl.training.run import run_training
from tests.tiny_runs import make_config

ONE_STEP = {"steps": 1, "learning_rate": 1e-9}
"""Training that moves no weight visibly."""


def weights_of(run):
    return read_weights(latest_checkpoint(run) / WEIGHTS)


def listed(folder, *answers):
    path = folder / f"{'-'.join(answers)}.json"
    path.write_text(json.dumps(list(answers)))
    return path


def answering(data, folder, name, answers, **changes):
    return make_config(data, folder / name, "vqa", answers=answers, training=ONE_STEP, **changes)


def test_an_answer_head_is_kept_for_the_same_answers_and_starts_anew_for_others(data, tmp_path):
    answers, others = listed(tmp_path, "yes", "no", "red"), listed(tmp_path, "red", "no", "yes")
    first = run_training(answering(data, tmp_path, "first", answers, seed=4))
    same = run_training(answering(data, tmp_path, "same", answers, initial=first))
    other = run_training(answering(data, tmp_path, "other", others, initial=first))
    head, kept, fresh = (weights_of(run)["answer_head.outer.weight"] for run in (first, same, other))
    assert torch.allclose(kept, head, atol=1e-6) and not torch.allclose(fresh, head, atol=1e-2)
    adapter = {"prefix": {"length": 2}, "head": False}
    with pytest.raises(UserError, match=r"has no answer_head of this size, with these answers or labels, to keep; set"):
        run_training(answering(data, tmp_path, "adapter", others, initial=first, adapter=adapter))


def test_a_pretrained_model_can_do_what_an_objective_taught_it_or_its_initial_model(data, tmp_path):
    def abilities(name, initial=None, **shares):
        every = dict.fromkeys(("masked_lm", "seq2seq_lm", "masked_object", "matching"), 0) | shares
        config = make_config(
            data, tmp_path / name, objectives={"shares": every}, initial=initial, training={"steps": 1}
        )
        found = Processor.load(run_training(config))
        return [ability for ability in ("captions", "matches", "masked_words") if getattr(found, ability)]

    assert abilities("captions", seq2seq_lm=1) == ["captions"]
    assert abilities("masked", masked_lm=0.5, masked_object=0.5) == ["masked_words"]
    assert abilities("more", initial=tmp_path / "captions", matching=1) == ["captions", "matches"]


def test_a_processor_of_version_0_1_predicts_masked_words_if_it_captions_and_matches(data, tmp_path):
    run = run_training(make_config(data, tmp_path / "run", training={"steps": 1}))
    file = run / "processor.json"
    values = json.loads(file.read_text())
    del values["masked_words"]
    file.write_text(json.dumps(values))
    assert Processor.load(run).masked_words
    file.write_text(json.dumps({**values, "matches": False}))
    assert not Processor.load(run).masked_words


def test_embeddings_that_the_initial_model_lacks_must_not_be_frozen(data, tmp_path):
    first = run_training(make_config(data, tmp_path / "first", training={"steps": 1}, inputs={"concepts": "text"}))
    inputs = {"concepts": "both"}
    frozen = make_config(
        data, tmp_path / "vqa", "vqa", initial=first, inputs=inputs, training={"freeze": {"embeddings": True}}
    )
    with pytest.raises(UserError, match=r"inputs adds regions\.words.*set training.freeze.words=true instead"):
        run_training(frozen)


def test_a_model_that_saw_no_regions_gets_the_statistics_of_their_features(data, tmp_path):
    blind = make_config(data, tmp_path / "blind", "caption", inputs={"max_regions": 0}, training=ONE_STEP)
    config = make_config(data, tmp_path / "seeing", "caption", initial=run_training(blind), training=ONE_STEP)
    assert weights_of(blind.output)["regions.feature_std"].eq(1).all()
    assert not weights_of(run_training(config))["regions.feature_std"].eq(1).all()
    adapter = make_config(data, tmp_path / "adapter", "caption", initial=blind.output, adapter={"layers": 1})
    with pytest.raises(UserError, match="was trained without regions, which an adapter cannot add; set"):
        run_training(adapter)


def test_a_run_does_not_go_on_with_another_list_of_answers(data, tmp_path):
    answers = listed(tmp_path, "yes", "no")
    config = answering(data, tmp_path, "run", answers)
    run_training(config)
    answers.write_text(json.dumps(["no", "yes"]))
    with pytest.raises(UserError, match=r"holds a run with another answers \(the file differs\); give another output"):
        run_training(config)


def test_a_run_says_how_many_images_have_more_regions_than_it_takes(data, tmp_path, caplog):
    caplog.set_level("INFO", logger="dimvl")
    run_training(make_config(data, tmp_path / "run", training={"steps": 1}, inputs={"max_regions": 1}))
    assert "7 of 8 images have over 1 regions (inputs.max_regions); the first are used" in caplog.text


def test_captions_of_which_none_would_be_dropped_are_named(data, tmp_path):
    config = make_config(
        data, tmp_path / "run", "caption", drop_worst={"after": 0, "share": 0.2}, seq2seq={"captions": 5}
    )
    with pytest.raises(UserError, match="of the captions of an image, at most 3 here, is less than one"):
        run_training(config)
