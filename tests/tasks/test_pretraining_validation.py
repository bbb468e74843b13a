"""Validation of pretraining on held-out captions."""

import json

import numpy as np
import pytest
import torch

from dimvl.checkpoints import best_checkpoint
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.tasks import load_config, task_of
from dimvl.training.build import build_task
from dimvl.training.run import run_training
from tests.tiny_runs import make_config, make_data

LOSSES = ["masked_lm", "seq2seq_lm", "masked_object/class", "masked_object/feature", "matching"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 8, empty=3)


def config_of(data, output, training=None, **validation):
    section = {"captions": data.captions, "every": 2, **validation}
    weights = {"masked_lm": 0.5, "object_class": 2.0}
    rate = {"learning_rate": 1e-2, **(training or {})}
    return make_config(data, output, validation=section, training=rate, objectives={"weights": weights})


def validations(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "validation" in line]


def test_a_validation_logs_each_loss_and_matching_accuracy_and_its_score_is_minus_the_training_loss(data, tmp_path):
    logged = validations(run_training(config_of(data, tmp_path / "run")))
    assert [line["step"] for line in logged] == [2, 4, 6]
    for line in logged:
        parts = line["validation_parts"]
        assert list(parts) == [*LOSSES, "matching/accuracy"] and 0 <= parts["matching/accuracy"] <= 1
        weighted = dict(zip(LOSSES, (0.5, 1.0, 2.0, 1.0, 1.0), strict=True))
        assert line["validation"] == pytest.approx(-sum(weighted[name] * parts[name] for name in LOSSES))
    assert logged[-1]["validation"] > logged[0]["validation"]


def test_masks_and_negatives_are_the_same_at_every_validation_and_in_every_run(data, tmp_path):
    runs = [run_training(config_of(data, tmp_path / name, {"learning_rate": 1e-12})) for name in ("a", "b")]
    first, *others = [line["validation_parts"] for run in runs for line in validations(run)]
    assert all(other == pytest.approx(first, rel=1e-6) for other in others)


def test_matching_accuracy_is_the_share_of_pairs_judged_right(data, tmp_path):
    config = config_of(data, tmp_path / "run")
    config = config.model_copy(update={"objectives": config.objectives.model_copy(update={"negative_share": 0.25})})
    store = RegionStore(config.regions)
    config.output.mkdir()
    module, _ = build_task(config, store, task_of(config).read(config, store))
    validator, rates = task_of(config).validator(config, module, store), []
    everything = np.arange(len(validator.costs))
    matching = list(config.objectives.shares.model_dump()).index("matching")
    pairs = validator.sources[matching].build_all(0, validator.image_of[validator.source_of == matching])
    with torch.inference_mode():
        for bias in (5.0, -5.0):  # every pair, or none, is called a match
            module.model.match_head.score.weight.zero_()
            module.model.match_head.score.bias.fill_(bias)
            rates.append(validator.result([(everything, validator.run(everything))]).parts["matching/accuracy"])
    positive = float(np.mean([pair.target.labels[0] for pair in pairs]))
    assert rates == pytest.approx([positive, 1 - positive]) and 0 < positive < 1 and positive != 0.5


def test_matching_accuracy_chooses_the_best_checkpoint_on_request(data, tmp_path):
    run = run_training(config_of(data, tmp_path / "run", {"save_every": 2, "keep": 1}, metric="matching"))
    logged = validations(run)
    assert [line["validation"] for line in logged] == [line["validation_parts"]["matching/accuracy"] for line in logged]
    best = max(logged, key=lambda line: (line["validation"], -line["step"]))
    assert best_checkpoint(run).name == f"step-{best['step']:08d}"


def test_a_subset_of_images_gets_one_example_for_each_objective_with_a_share(data, tmp_path):
    config = config_of(data, tmp_path / "run", subset=3)
    shares = config.objectives.shares.model_copy(update={"masked_object": 0.0})
    config = config.model_copy(update={"objectives": config.objectives.model_copy(update={"shares": shares})})
    run_training(config)
    store = RegionStore(config.regions)
    module, _ = build_task(config, store, task_of(config).read(config, store))
    validator = task_of(config).validator(config, module, store)
    assert len(validator.costs) == 3 * 3
    assert "masked_object/class" not in validations(config.output)[0]["validation_parts"]


def test_matching_accuracy_needs_matching_to_be_trained(tmp_path):
    (tmp_path / "run.yaml").write_text("{output: o, regions: r, captions: c.json, training: {steps: 1}}")
    given = ["validation={captions: c, every: 1, metric: matching}", "objectives.shares.matching=0"]
    with pytest.raises(UserError, match=r"objectives\.shares\.matching is 0; set it to 'loss'"):
        load_config(tmp_path / "run.yaml", given)
