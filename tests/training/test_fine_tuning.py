"""Options of fine-tuning through whole runs: frozen weights, layer-wise rates, self-critical training."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from dimvl.checkpoints import WEIGHTS, latest_checkpoint, origin_of, run_arguments
from dimvl.errors import UserError
from dimvl.evaluation import evaluate
from dimvl.export import export
from dimvl.files import read_json, sha256, write_sealed
from dimvl.model.convert import read_weights
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.trained_model import load_model
from dimvl.training.run import run_training
from dimvl.training.run_folder import describe
from tests.tiny_runs import make_config
from tests.training.runs import Killed, at_step, bytes_of, kill


@pytest.fixture(scope="module")
def captioner(data, tmp_path_factory):
    """A captioning run to start from."""
    training = {"steps": 30, "learning_rate": 2e-2}
    return run_training(
        make_config(data, tmp_path_factory.mktemp("runs") / "captioner", "caption", model=MODEL, training=training)
    )


MODEL = {"layers": 3, "dropout": 0.0, "split": ["qkv"]}


def losses_of(run):
    return [json.loads(line)["losses"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_its_export_and_an_evaluation_name_all_that_the_model_started_from(data, tmp_path, captioner):
    short = {"model": MODEL, "training": {"steps": 1}}
    answering = run_training(make_config(data, tmp_path / "vqa", "vqa", initial=captioner, **short))
    out = export(answering, tmp_path / "export", "none")
    weights = sha256(latest_checkpoint(captioner) / WEIGHTS)
    first = {"name": "captioner", "sha256": weights, "data": run_arguments(captioner)["data"]}
    assert run_arguments(answering)["start"] == origin_of(out).start.model_dump(exclude_unset=True) == first
    last = run_training(make_config(data, tmp_path / "last", "caption", initial=out, **short))
    second = run_arguments(last)["start"]
    assert second["start"] == first and second["data"]["questions"]["sha256"] == sha256(data.questions)
    assert second["sha256"] == sha256(out / WEIGHTS)
    files = {"questions": data.questions, "annotations": data.annotations}
    evaluate(out, load_model(out).without_guard(), RegionStore(data.regions), files, tmp_path / "scores")
    assert read_json(tmp_path / "scores" / "manifest.json")["model"]["trained_by"]["start"] == first


def test_the_encoder_of_another_project_is_recorded_by_its_checksum(data, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    described = describe(make_config(data, tmp_path / "run", model={**MODEL, "bert": tmp_path}))
    start = {"name": tmp_path.name, "sha256": sha256(tmp_path / "model.safetensors"), "encoder": True}
    assert described["start"] == start


def test_a_run_without_a_checkpoint_does_not_restart_from_other_weights(data, tmp_path, captioner):
    changing = shutil.copytree(captioner, tmp_path / "initial")
    config = make_config(data, tmp_path / "run", "caption", model=MODEL, initial=changing)
    with pytest.raises(Killed):
        run_training(config, at_step(2, kill))
    resumed = make_config(data, changing, "caption", model=MODEL, training={"steps": 31, "learning_rate": 2e-2})
    described = run_arguments(changing)
    described["config"]["training"]["steps"] = 31
    write_sealed(changing / "run.json", described)
    run_training(resumed)
    with pytest.raises(UserError, match=r"another initial model \(its weights differ\); give another output"):
        run_training(config)


# --- frozen weights, layer-wise rates

FREEZE = {"freeze": {"embeddings": True, "layers": 2}, "layer_decay": 0.75, "head_multiplier": 4}


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        ("none", "region", ""),
        ("text", "both", ""),
        ("none", "text", "inputs.concepts is 'text' but .* was trained with 'none'; set it to that"),
        ("region", "none", "inputs.concepts is 'none' but .* was trained with 'region'; set it to that"),
        ("both", "text", "inputs.concepts is 'text' but .* was trained with 'both'; set it to that"),
    ],
)
def test_names_of_regions_can_be_added_to_a_model_but_stay_where_they_are(data, tmp_path, before, now, says):
    runs = [
        make_config(data, tmp_path / name, "caption", inputs={"concepts": concepts}, training={"steps": 1})
        for name, concepts in (("before", before), ("now", now))
    ]
    config = runs[1].model_copy(update={"initial": run_training(runs[0])})
    if says:
        with pytest.raises(UserError, match=says):
            run_training(config)
    else:
        old, new = read_weights(latest_checkpoint(runs[0].output) / WEIGHTS), load_model(run_training(config)).model
        assert new.regions.words is not None and not any("regions.words" in name for name in old)


def test_a_new_extractor_is_accepted_on_demand_with_a_new_projection_and_statistics_of_its_features(
    data, tmp_path, captioner
):
    old = RegionStore(data.regions)
    with RegionStoreWriter(tmp_path / "store", replace(old.extractor, name="another", fingerprint="e" * 64)) as writer:
        for place in range(len(old)):
            found = old.read(place)
            writer.add(replace(found, features=found.features * 2))
    training = {"steps": 1, "learning_rate": 1e-6}
    changes = {"model": MODEL, "training": training, "regions": tmp_path / "store", "initial": captioner}
    with pytest.raises(UserError, match="new_extractor=true"):
        run_training(make_config(data, tmp_path / "refused", "caption", **changes))
    run = run_training(make_config(data, tmp_path / "run", "caption", new_extractor=True, **changes))
    before, after = (read_weights(latest_checkpoint(folder) / WEIGHTS) for folder in (captioner, run))
    kept = {name for name in before if torch.allclose(before[name], after[name], atol=1e-4)}
    assert not [name for name in kept if "regions.feature" in name] and "tokens.word.weight" in kept
    torch.testing.assert_close(after["regions.feature_mean"], 2 * before["regions.feature_mean"])


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_frozen_weights_stay_bit_equal_have_no_state_and_all_others_move(data, tmp_path, captioner, task):
    config = make_config(data, tmp_path, task, model=MODEL, initial=captioner, training={**FREEZE, "steps": 3})
    run_training(config)
    before = read_weights(latest_checkpoint(captioner) / "model.safetensors")
    after = read_weights(latest_checkpoint(tmp_path) / "model.safetensors")
    moved = 0
    for name, weights in after.items():
        frozen = name.startswith(("regions.", "tokens.", "encoder.layers.0.", "encoder.layers.1."))
        if name in before and not name.startswith("answer_head"):
            assert torch.equal(weights, before[name]) == frozen, name
            moved += not frozen
    assert moved > 10
    state = read_weights(latest_checkpoint(tmp_path) / "optimiser.safetensors")
    trainable = sum(
        weights.numel()
        for name, weights in after.items()
        if name.startswith(("encoder.layers.2.", "answer_head.", "word_head.")) and name != "word_head.decoder.weight"
    )
    assert sum(value.numel() for name, value in state.items() if name.endswith("exp_avg")) == trainable


def test_a_run_with_frozen_weights_and_layer_wise_rates_resumes_bit_for_bit(data, tmp_path):
    settings = {**FREEZE, "freeze": {"words": True, "layers": 2}}
    whole = run_training(make_config(data, tmp_path / "whole", "vqa", model={"layers": 3}, training=settings))
    config = make_config(data, tmp_path / "killed", "vqa", model={"layers": 3}, training={**settings, "save_every": 2})
    with pytest.raises(Killed):
        run_training(config, at_step(5, kill))
    assert bytes_of(run_training(config)) == bytes_of(whole)


def test_freezing_more_layers_than_exist_is_an_error(data, tmp_path):
    config = make_config(data, tmp_path, "vqa", training={"freeze": {"layers": 2}})
    with pytest.raises(UserError, match=r"training\.freeze\.layers is 2 but the model has 1; lower it"):
        run_training(config)


# --- self-critical training


@pytest.fixture(scope="module")
def judge(data, tmp_path_factory):
    """A pretraining run whose matching scores differ."""
    training = {"steps": 10, "learning_rate": 2e-2}
    run = tmp_path_factory.mktemp("runs") / "judge"
    return run_training(make_config(data, run, objectives={"shares": {"matching": 1}}, training=training))


def self_critical(data, output, captioner, samples=4, retrieval=None, **training):
    return make_config(
        data,
        output,
        "caption",
        model=MODEL,
        initial=captioner,
        self_critical={"samples": samples, "retrieval": retrieval},
        training={"rows_per_step": 800, "rows_per_micro_batch": 300, "learning_rate": 2e-3, **training},
    )


def test_self_critical_training_raises_the_reward_of_its_samples(data, tmp_path, captioner):
    rows = {"rows_per_step": 3000, "rows_per_micro_batch": 3000}
    run = run_training(self_critical(data, tmp_path, captioner, samples=16, steps=30, learning_rate=1e-2, **rows))
    rewards = [losses["self_critical/reward"] for losses in losses_of(run)]
    assert np.mean(rewards[-5:]) > 1.2 * np.mean(rewards[:5]), rewards


@pytest.mark.parametrize("mixed", [False, True])
def test_a_killed_self_critical_run_resumes_bit_for_bit(data, tmp_path, captioner, judge, mixed):
    retrieval = {"judge": judge, "weight": 1.0} if mixed else None
    whole = run_training(self_critical(data, tmp_path / "whole", captioner, retrieval=retrieval))
    config = self_critical(data, tmp_path / "killed", captioner, retrieval=retrieval, save_every=2)
    with pytest.raises(Killed):
        run_training(config, at_step(5, kill))
    run_training(config)
    assert bytes_of(config.output) == bytes_of(whole) and losses_of(config.output) == losses_of(whole)


def test_the_size_of_micro_batches_changes_self_critical_training_only_by_rounding(data, tmp_path, captioner, judge):
    once = {"retrieval": {"judge": judge, "weight": 0.5}, "steps": 1, "learning_rate": 1e-5}
    runs = [
        run_training(self_critical(data, tmp_path / str(rows), captioner, rows_per_micro_batch=rows, **once))
        for rows in (150, 800)
    ]
    small, large = (losses_of(run)[0] for run in runs)
    for name in ("reward", "cider", "retrieval"):
        assert small[f"self_critical/{name}"] == pytest.approx(large[f"self_critical/{name}"], rel=1e-5)
    # advantages of both signs cancel, which leaves the fp32 rounding of log-probabilities around -30
    assert small["self_critical"] == pytest.approx(large["self_critical"], abs=1e-4)


def test_a_judge_is_named_in_the_record_and_one_that_has_changed_is_refused(data, tmp_path, captioner, judge):
    changing = shutil.copytree(judge, tmp_path / "judge")
    config = self_critical(data, tmp_path / "run", captioner, retrieval={"judge": changing, "weight": 1}, save_every=2)
    with pytest.raises(Killed):
        run_training(config, at_step(3, kill))
    digest = sha256(latest_checkpoint(judge) / WEIGHTS)
    out = export(config.output, tmp_path / "export", "none")
    for found in (origin_of(config.output), origin_of(out)):
        assert found.judges["self_critical.retrieval.judge"].sha256 == digest
    named = f"- `self_critical.retrieval.judge`: the model `judge`, SHA-256 `{digest}`"
    assert named in (out / "README.md").read_text()
    weights = read_weights(latest_checkpoint(config.output) / WEIGHTS)
    assert weights.keys() == read_weights(latest_checkpoint(captioner) / WEIGHTS).keys()
    shutil.rmtree(changing)
    shutil.copytree(captioner, changing)
    with pytest.raises(
        UserError, match=r"another self_critical\.retrieval\.judge \(its weights differ\); give another"
    ):
        run_training(config)


def test_a_judge_without_a_matching_head_leaves_the_folder_free(data, tmp_path, captioner, judge):
    wrong = self_critical(data, tmp_path / "run", captioner, retrieval={"judge": captioner, "weight": 1}, steps=1)
    with pytest.raises(UserError, match=r"self_critical\.retrieval\.judge .* has no matching head; give a pretraining"):
        run_training(wrong)
    run_training(self_critical(data, wrong.output, captioner, retrieval={"judge": judge, "weight": 1}, steps=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smoothing": 0.1}, "remove smoothing and drop_worst"),
        ({"drop_worst": {"after": 1, "share": 0.5}}, "remove smoothing and drop_worst"),
        ({"model": {"dropout": 0.1}}, r"set model\.dropout to 0"),
        ({"seq2seq": {"variant": "masked"}}, "needs seq2seq.variant 'causal'"),
        ({"initial": None}, "name its run as initial"),
        ({"adapter": {"lora": {"rank": 2, "dropout": 0.1}}}, r"adapter\.lora\.dropout is 0\.1.*set it to 0"),
    ],
)
def test_options_that_do_not_work_with_self_critical_training_are_refused(data, tmp_path, changes, message):
    content = {"model": {"dropout": 0.0}, "initial": tmp_path, "self_critical": {"samples": 2}} | changes
    with pytest.raises(ValueError, match=message):
        make_config(data, tmp_path, "caption", **content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_worst": {"after": 1, "share": 0.3}}, "nothing would be dropped"),
        (
            {"initial": "run", "new_extractor": True, "training": {"freeze": {"embeddings": True}}},
            "new_extractor init.*keeps it from learning",
        ),
        (
            {"initial": None, "training": {"freeze": {"embeddings": True}}},
            "without `initial` init.*keeps it from learning",
        ),
        ({"initial": "run", "model": {"bert": "encoder"}}, "initial and model.bert both give.*set model.bert=null"),
        ({"new_extractor": True}, "new_extractor is about the extractor of initial; name that model"),
        ({"inputs": {"concepts": "none", "concept_dropout": 0.5}}, "concept_dropout has nothing to drop"),
    ],
)
def test_options_without_effect_are_refused(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(data, tmp_path, "caption", **changes)
