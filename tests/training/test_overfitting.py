import json
import math

import pytest
import torch

from dimvl.config import TrainingConfig
from dimvl.data.examples import collate
from dimvl.regions.store import RegionStore
from dimvl.tasks import task_of
from dimvl.tasks.pretraining.config import SharesConfig
from dimvl.training.build import build_task
from dimvl.training.engine import TorchEngine
from tests.tiny_runs import make_config


def floor_of_answers(scores):
    """Least possible binary cross entropy of soft scores."""
    return float(torch.special.entr(scores).sum() + torch.special.entr(1 - scores).sum())


def overfit(config, steps=60, rate=2e-2):
    """Losses per target of one batch, before and after training on it alone."""
    torch.manual_seed(0)
    store = RegionStore(config.regions)
    task, source = build_task(config, store, task_of(config).read(config, store))
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
