import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from dimvl.checkpoints import check_checkpoint, latest_checkpoint
from dimvl.data.annotations import read_captions, read_questions
from dimvl.data.trained_on import NOTHING
from dimvl.decoding import DecodingOptions
from dimvl.errors import NotFiniteError, UserError
from dimvl.metrics.cider import CiderD, plain_words
from dimvl.metrics.vqa import vqa_accuracy
from dimvl.model.convert import read_weights
from dimvl.regions.store import RegionStore
from dimvl.tasks.answering.prediction import answer_questions
from dimvl.tasks.captioning.config import DropWorstConfig
from dimvl.tasks.captioning.prediction import caption_images
from dimvl.tasks.task import ValidationScore
from dimvl.trained_model import load_model
from dimvl.training import run as run_module
from dimvl.training.run import run_training
from dimvl.training.validation import Best, Validation
from tests.tiny_runs import make_config, make_data
from tests.training.runs import Killed, at_step, kill, log_of


def vqa_config(data, output, training=None, **validation):
    section = {"questions": data.questions, "annotations": data.annotations, "every": 2, **validation}
    return make_config(data, output, "vqa", validation=section, training=training or {})


def caption_config(data, output, training=None, **validation):
    section = {"captions": data.captions, "every": 2, **validation}
    return make_config(data, output, "caption", validation=section, training=training or {})


def validations(run):
    return [(line["step"], line["validation"]) for line in log_of(run) if "validation" in line]


def checkpoints(run):
    """The bytes of every file of every checkpoint of a run."""
    folders = sorted((run / "checkpoints").iterdir())
    return {f.name: {file.name: file.read_bytes() for file in f.iterdir()} for f in folders}


def scripted(monkeypatch, scores, every=1, patience=0):
    """Make validation return these scores one after the other."""
    left = iter(scores)
    validation = Validation(lambda: ValidationScore(next(left)), every, patience)
    monkeypatch.setattr(run_module, "build_validation", lambda *_: validation)


# --- when training stops, and which checkpoints are kept


def test_training_stops_early_and_keeps_the_best_checkpoint(data, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.1, 0.5, 0.4, 0.5, 0.3, 0.9], every=2, patience=3)
    run_training(make_config(data, tmp_path, training={"steps": 20}))
    assert [step for step, _ in validations(tmp_path)] == [2, 4, 6, 8, 10]
    assert checkpoints(tmp_path).keys() == {"step-00000004", "step-00000010"}
    state = check_checkpoint(latest_checkpoint(tmp_path))
    assert state["best"] == {"score": 0.5, "step": 4, "misses": 3}, "a tie is no better"
    assert load_model(tmp_path).weights.parent.name == "step-00000004"


def test_a_run_that_stopped_early_is_finished(data, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.5, 0.4], patience=1)
    config = make_config(data, tmp_path)
    run_training(config)
    before = checkpoints(tmp_path), log_of(tmp_path)
    scripted(monkeypatch, [])
    scripted(monkeypatch, [], patience=1)
    run_training(config)
    assert (checkpoints(tmp_path), log_of(tmp_path)) == before


def test_without_patience_the_run_goes_to_its_end_and_keeps_the_best_checkpoint(data, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.2, 0.9, 0.1, 0.0], every=2)
    run_training(make_config(data, tmp_path, training={"steps": 7}))
    assert [step for step, _ in validations(tmp_path)] == [2, 4, 6, 7], "the last step is always scored"
    assert checkpoints(tmp_path).keys() == {"step-00000004", "step-00000007"}


def test_a_new_best_checkpoint_replaces_the_old_one(data, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    run_training(make_config(data, tmp_path))
    assert checkpoints(tmp_path).keys() == {"step-00000006"}
    assert load_model(tmp_path).weights.parent == latest_checkpoint(tmp_path)


def test_fine_tuning_starts_from_the_best_weights(data, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.9, 0.1], every=3)
    run_training(make_config(data, tmp_path / "first", "caption"))
    monkeypatch.undo()
    frozen = {"steps": 1, "freeze": {"embeddings": True}}
    second = run_training(
        make_config(data, tmp_path / "second", "caption", initial=tmp_path / "first", training=frozen)
    )
    name = "tokens.word.weight"
    best, last, started = (
        read_weights(folder / "model.safetensors")[name]
        for folder in (
            tmp_path / "first/checkpoints/step-00000003",
            latest_checkpoint(tmp_path / "first"),
            latest_checkpoint(second),
        )
    )
    assert torch.equal(started, best) and not torch.equal(best, last)


def test_a_non_finite_score_stops_the_run_and_saves_nothing(data, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.5, float("nan")])
    with pytest.raises(NotFiniteError, match="validation score is not finite after step 2"):
        run_training(make_config(data, tmp_path))
    assert checkpoints(tmp_path).keys() == {"step-00000001"}


@pytest.mark.parametrize("best", ['{"score": 1}', "[]", '{"score": "x", "step": 1, "misses": 0}'])
def test_a_damaged_best_score_is_reported(data, tmp_path, monkeypatch, best):
    scripted(monkeypatch, [0.5])
    run_training(make_config(data, tmp_path, training={"steps": 1}))
    state = tmp_path / "checkpoints/step-00000001/state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "best": json.loads(best)}))
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        load_model(tmp_path)


def test_the_best_of_scores_by_hand():
    best = None
    for step, score in enumerate([-3.0, -2.0, -2.0, -5.0, -1.0]):
        best = Best.after(best, score, step)
        assert best == [(-3, 0, 0), (-2, 1, 0), (-2, 1, 1), (-2, 1, 2), (-1, 4, 0)][step]


# --- resuming


CONFIGS = {"vqa": vqa_config, "caption": caption_config}


@pytest.mark.parametrize("task", CONFIGS)
def test_a_killed_run_stops_early_at_the_same_step_with_the_same_best_checkpoint(data, tmp_path, task):
    training = {"steps": 30, "save_every": 3, "learning_rate": 3e-2}
    whole = run_training(CONFIGS[task](data, tmp_path / "whole", training, patience=2))
    steps = [step for step, _ in validations(whole)]
    assert 4 < steps[-1] < 30, "it must stop early for this test to show anything"
    for killed_at in sorted({1, 5, steps[-1] - 1, steps[-1]}):
        config = CONFIGS[task](data, tmp_path / str(killed_at), training, patience=2)
        with pytest.raises(Killed):
            run_training(config, at_step(killed_at, kill))
        run_training(config)
        assert log_of(config.output) == log_of(whole)
        assert checkpoints(config.output) == checkpoints(whole)


def test_how_often_checkpoints_are_saved_changes_nothing(data, tmp_path):
    runs = []
    for save_every in (1, 100):
        config = vqa_config(data, tmp_path / str(save_every), {"steps": 9, "save_every": save_every}, patience=2)
        runs.append(run_training(config))
    assert log_of(runs[0]) == log_of(runs[1]) and checkpoints(runs[0]) == checkpoints(runs[1])


@pytest.mark.parametrize("task", CONFIGS)
def test_validating_does_not_change_training(data, tmp_path, task):
    with_it = run_training(CONFIGS[task](data, tmp_path / "with"))
    without = run_training(make_config(data, tmp_path / "without", task))
    weights = [(latest_checkpoint(run) / "model.safetensors").read_bytes() for run in (with_it, without)]
    assert weights[0] == weights[1]
    assert [line for line in log_of(with_it) if "loss" in line] == log_of(without)


# --- what the scores are


def last_weights(run):
    """The run's model with the weights of its last step instead of its best."""
    trained = load_model(run)
    trained.model.load_state_dict(read_weights(latest_checkpoint(run) / "model.safetensors"), strict=False)
    return replace(trained, trained_on=NOTHING)


def test_questions_are_scored_by_the_official_accuracy(data, tmp_path):
    run = run_training(vqa_config(data, tmp_path))
    questions = read_questions(data.questions, data.annotations)
    answers = answer_questions(last_weights(run), RegionStore(data.regions), questions)
    assert validations(run)[-1] == (6, pytest.approx(vqa_accuracy(answers, questions).overall))


def test_captions_are_scored_by_cider_d_of_the_greedy_ones(data, tmp_path):
    run = run_training(caption_config(data, tmp_path, training={"learning_rate": 3e-2, "steps": 20}))
    references = {}
    for caption in read_captions(data.captions):
        references.setdefault(caption.image_id, []).append(plain_words(caption.text))
    options = DecodingOptions(beams=1, max_tokens=13)
    written = caption_images(last_weights(run), RegionStore(data.regions), list(references), options)
    scorer = CiderD(list(references.values()))
    wanted = scorer.scores([plain_words(text) for text in written.values()], np.arange(len(references))).mean()
    assert validations(run)[-1] == (20, pytest.approx(wanted)) and wanted > 0


def test_captions_can_be_scored_by_their_loss_without_smoothing_and_dropping(data, tmp_path):
    section = {"captions": data.captions, "every": 3, "metric": "loss"}
    changes = {"model": {"dropout": 0}, "seq2seq": {"captions": 3}, "validation": section}
    rate = {"learning_rate": 1e-9, "steps": 3, "rows_per_step": 10_000, "rows_per_micro_batch": 10_000}
    run = run_training(make_config(data, tmp_path / "plain", "caption", training=rate, **changes))
    losses = [line["loss"] for line in log_of(run) if "loss" in line]
    # the weights hardly move, and every step has all captions of every image
    assert validations(run) == [(3, pytest.approx(-losses[-1], rel=1e-4))]
    drop = DropWorstConfig(share=0.4, after=0)
    other = make_config(
        data, tmp_path / "other", "caption", training=rate, smoothing=0.2, drop_worst=drop.model_dump(), **changes
    )
    assert validations(run_training(other)) == [(3, pytest.approx(-losses[-1], rel=1e-4))]


def test_a_subset_has_the_configured_size_and_depends_on_its_seed(data, tmp_path, monkeypatch):
    asked = []

    def note(answers, questions):
        asked.append([question.question_id for question in questions])
        return vqa_accuracy(answers, questions)

    monkeypatch.setattr("dimvl.tasks.answering.prediction.vqa_accuracy", note)
    for number, seed in enumerate((0, 0, 1)):
        run_training(vqa_config(data, tmp_path / str(number), {"steps": 2}, subset=5, seed=seed))
    assert asked[0] == asked[1] != asked[2] and all(len(set(questions)) == 5 for questions in asked)


def test_validation_can_have_its_own_regions(data, tmp_path):
    other = make_data(tmp_path / "data", 4)
    section = {"questions": other.questions, "annotations": other.annotations, "regions": other.regions}
    run = run_training(vqa_config(data, tmp_path / "run", {"steps": 2}, **section))
    assert len(validations(run)) == 1
    assert json.loads((run / "run.json").read_text())["data"]["validation questions"]["file"] == "q.json"


def test_validating_on_training_images_is_warned_about(data, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run_training(vqa_config(data, tmp_path, {"steps": 1}))
    assert any("8 of the 8 images" in message and "trained on" in message for message in caplog.messages)


# --- mistakes


def test_an_image_missing_from_the_store_is_reported_before_training(data, tmp_path):
    other = make_data(tmp_path / "data", 12)
    config = vqa_config(data, tmp_path / "run", questions=other.questions, annotations=other.annotations)
    with pytest.raises(UserError, match="lacks image"):
        run_training(config)


def test_questions_without_answers_are_an_error(data, tmp_path):
    with pytest.raises(
        UserError, match=r"no answers to compare with; give their annotations as validation\.annotations"
    ):
        run_training(vqa_config(data, tmp_path, annotations=None))


def test_cider_d_of_one_image_is_an_error(data, tmp_path):
    with pytest.raises(UserError, match="use more images"):
        run_training(caption_config(data, tmp_path, subset=1))


# --- words


def test_captions_are_split_into_plain_words():
    assert plain_words("A man's dog, on_the (red) T-shirt. Café 2") == (
        ["a", "man's", "dog", "on", "the", "red", "t", "shirt", "café", "2"]
    )
    assert plain_words("...") == []


def test_a_failed_validation_setup_releases_the_run_folder(data, tmp_path):
    with pytest.raises(UserError, match="use more images"):
        run_training(caption_config(data, tmp_path, subset=1))
    assert not (tmp_path / "run.json").exists() and not (tmp_path / "tokenizer.json").exists()
    assert len(validations(run_training(caption_config(data, tmp_path, {"steps": 2}, subset=2)))) == 1
