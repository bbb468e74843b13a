import math

import pytest
import torch
from torch import nn

from dimvl.config import FreezeConfig, TrainingConfig
from dimvl.errors import UserError
from dimvl.training.optimiser import build_optimiser, build_schedule, freeze, orthogonalise
from tests.factories import make_model


def settings(**changes):
    return TrainingConfig(**{"steps": 10, "learning_rate": 0.5, "schedule": "constant", **changes})


def rates(**changes):
    """Learning rates of all steps of a run."""
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


def test_a_run_that_ends_before_it_has_warmed_up_warns(caplog):
    rates(steps=4, warmup_steps=4)
    assert not caplog.records
    rates(steps=3, warmup_steps=4)
    assert "warmup_steps is 4 and training.steps 3, so the learning rate reaches only 75% of its peak" in caplog.text


def test_every_parameter_is_in_exactly_one_group():
    assert len(groups_by_name()) > 50


def test_matrices_decay_and_biases_norms_and_vectors_do_not():
    for name, group in groups_by_name(weight_decay=0.25).items():
        vector = name.endswith("bias") or "norm" in name or name in ("regions.segment", "regions.hidden_feature")
        assert group["weight_decay"] == (0.0 if vector else 0.25), name


def test_heads_have_a_multiple_of_the_learning_rate_but_not_the_shared_word_embedding():
    for name, group in groups_by_name(head_multiplier=4).items():
        assert group["lr"] == (2.0 if "_head." in name else 0.5), name


def test_adam_uses_the_configured_moments():
    model = make_model()
    group = build_optimiser(model, settings(beta2=0.9)).param_groups[0]
    assert group["betas"] == (0.9, 0.9)


def test_each_block_learns_slower_than_the_one_above_it_and_the_embeddings_slowest():
    wanted = {"_head.": 0.5 * 3, "layers.1.": 0.5 * 0.8, "layers.0.": 0.5 * 0.64, "tokens.": 0.5 * 0.512}
    wanted["regions."] = wanted["tokens."]
    for name, group in groups_by_name(layer_decay=0.8, head_multiplier=3).items():
        [rate] = [rate for part, rate in wanted.items() if part in name]
        assert group["lr"] == pytest.approx(rate), name


def test_with_every_option_each_trainable_parameter_is_in_one_group_and_no_frozen_one_in_any():
    model = make_model(word_head=True, answers=3)
    freeze(model, FreezeConfig(embeddings=True, layers=1))
    optimiser = build_optimiser(model, settings(layer_decay=0.9, head_multiplier=2))
    grouped = [id(parameter) for group in optimiser.param_groups for parameter in group["params"]]
    names = {name for name, parameter in model.named_parameters() if id(parameter) in set(grouped)}
    assert len(grouped) == len(set(grouped)) == len(names)
    assert names == {n for n, _ in model.named_parameters() if n.startswith(("encoder.layers.1.", "word", "answer"))}


def test_freezing_words_leaves_all_of_the_regions_to_learn():
    model = make_model(word_head=True)
    freeze(model, FreezeConfig(words=True))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen and all(name.startswith("tokens.") for name in frozen)


def test_freezing_the_whole_model_is_an_error():
    model = make_model()
    freeze(model, FreezeConfig(embeddings=True, layers=2))
    with pytest.raises(UserError, match=r"training\.freeze leaves nothing to train"):
        build_optimiser(model, settings())


# --- Muon


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonalising_keeps_the_singular_vectors_and_brings_the_values_near_one(shape):
    left, _, right = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    matrix = left @ torch.diag(torch.linspace(5.0, 0.3, min(shape))) @ right
    values = left.T @ orthogonalise(matrix) @ right.T
    assert (values - torch.diag(values.diag())).abs().max() < 1e-4
    assert values.diag().min() > 0.6 and values.diag().max() < 1.3


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonalising_equals_multiplying_the_matrix_in_each_step(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = matrix / matrix.norm()
    for _ in range(5):
        square = expected @ expected.T
        expected = 3.4445 * expected + (-4.7750 * square + 2.0315 * square @ square) @ expected
    assert torch.allclose(orthogonalise(matrix), expected, atol=1e-6)
    assert torch.allclose(orthogonalise(matrix.float()).double(), expected, atol=1e-4)


def test_muon_moves_all_encoder_matrices_equally_far_and_adam_the_rest():
    before, plain, muon = make_model(word_head=True), make_model(word_head=True), make_model(word_head=True)
    for model, changes in ((plain, {}), (muon, {"muon_rate": 0.1})):
        optimiser = build_optimiser(model, settings(learning_rate=0.01, weight_decay=0, **changes))
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (number % 5)
        optimiser.step()
    for name, parameter in muon.named_parameters():
        if name.startswith("encoder.") and parameter.ndim > 1:
            moved = (parameter - before.get_parameter(name)).square().mean().sqrt().item()
            # an orthogonal matrix of R x C entries has a root mean square of 1 / sqrt(max(R, C))
            assert moved == pytest.approx(0.1 * 0.2, rel=0.3), name
        else:
            assert torch.equal(parameter, plain.get_parameter(name)), name
