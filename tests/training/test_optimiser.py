import math

import pytest
import torch
from torch import nn

from dimvl.config import TrainingConfig
from dimvl.training.optimiser import build_optimiser, build_schedule
from tests.factories import make_model


def settings(**changes):
    return TrainingConfig(**{"steps": 10, "learning_rate": 0.5, "schedule": "constant", **changes})


def rates(**changes):
    """Learning rates of the steps of a run."""
    config = settings(**changes)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule, result = build_schedule(optimiser, config), []
    for _ in range(config.steps):
        result.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return [*result, optimiser.param_groups[0]["lr"]]


def groups_by_name(**changes):
    model = make_model(word_head=True, match_head=True, classes=2, answers=3, split=["qkv", "out", "norm", "ffn"])
    optimiser = build_optimiser(model, settings(**changes))
    by_parameter = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(by_parameter), "no parameter twice"
    return {name: by_parameter[id(parameter)] for name, parameter in model.named_parameters()}


def test_the_linear_schedule_warms_up_and_falls_to_zero_after_the_last_step():
    assert rates(schedule="linear", steps=6, warmup_steps=2) == pytest.approx([0.25, 0.5, 0.5, 0.375, 0.25, 0.125, 0])


def test_the_cosine_schedule_by_hand():
    wanted = [0.25 * (1 + math.cos(math.pi * step / 4)) for step in range(5)]
    assert rates(schedule="cosine", steps=4) == pytest.approx(wanted) and wanted[2] == pytest.approx(0.25)


def test_the_constant_schedule_stays_and_a_run_of_warmup_alone_works():
    assert rates(schedule="constant", steps=3, warmup_steps=1) == pytest.approx([0.5] * 4)
    assert rates(schedule="linear", steps=2, warmup_steps=4) == pytest.approx([0.125, 0.25, 0.375])


def test_every_parameter_is_in_exactly_one_group():
    assert len(groups_by_name()) > 50


def test_matrices_decay_and_biases_norms_and_vectors_do_not():
    for name, group in groups_by_name(weight_decay=0.25).items():
        vector = name.endswith("bias") or "norm" in name or name in ("regions.segment", "regions.hidden_feature")
        assert group["weight_decay"] == (0.0 if vector else 0.25), name


def test_heads_have_their_own_multiple_of_the_rate_and_the_shared_word_embedding_has_not():
    for name, group in groups_by_name(head_multiplier=4).items():
        assert group["lr"] == (2.0 if "_head." in name else 0.5), name


def test_adam_uses_the_configured_moments():
    model = make_model()
    group = build_optimiser(model, settings(beta2=0.9)).param_groups[0]
    assert group["betas"] == (0.9, 0.9)
