import math

import pytest
import torch

from dimvl.regions.naming.concepts import ConceptNetwork, noisy_or

NUM_REGIONS = torch.tensor([1, 3, 2])
LOGITS = torch.tensor([[0.5, -9.0], [-1.0, 2.0], [0.3, -4.0], [2.0, 0.0], [-30.0, 40.0], [-25.0, 1.0]])


def pooled(pooling, logits=LOGITS, num_regions=NUM_REGIONS):
    """Pool given logits: the features are the logits, and the layer is the identity."""
    network = ConceptNetwork(2, 2, pooling, 0)
    network.word.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    return network.pooled(logits, num_regions)


def test_noisy_or_is_the_probability_that_some_region_shows_the_word():
    expected, start = [], 0
    for number in NUM_REGIONS.tolist():
        own = LOGITS[start : start + number].double().sigmoid()
        expected.append(torch.stack([1 - math.prod(1 - own[:, word]) for word in range(2)]))
        start += number
    present, _ = pooled("noisy_or")
    torch.testing.assert_close(present.exp().double(), torch.stack(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("logit", [-200.0, -60.0, 0.0, 60.0, 200.0])
def test_noisy_or_and_its_gradient_are_finite_where_probabilities_round_to_0_and_1(logit):
    logits = torch.full((4, 2), logit, requires_grad=True)
    present, absent = pooled("noisy_or", logits, torch.tensor([4]))
    (present.sum() + absent.sum()).backward()
    assert all(values.isfinite().all() for values in (present, absent, logits.grad))
    assert absent[0, 0].item() == pytest.approx(-4 * math.log1p(math.exp(logit)), rel=1e-6, abs=1e-20)


def test_the_other_poolings_are_functions_of_the_logits_of_an_image():
    first, second = LOGITS[1:4].double(), LOGITS[4:].double()
    by_hand = {
        "mean": lambda own: own.mean(0),
        "attention": lambda own: own.mean(0),  # before training, each region counts alike
        "max": lambda own: own.amax(0),
        "log_mean_exp": lambda own: own.exp().mean(0).log(),
    }
    for pooling, function in by_hand.items():
        present, absent = pooled(pooling)
        expected = torch.stack([function(own).sigmoid() for own in (LOGITS[:1].double(), first, second)])
        torch.testing.assert_close(present.exp().double(), expected, rtol=1e-4, atol=1e-7, msg=pooling)
        torch.testing.assert_close(present.exp() + absent.exp(), torch.ones(3, 2), msg=pooling)


@pytest.mark.parametrize("pooling", ["noisy_or", "attention", "max", "mean", "log_mean_exp"])
def test_regions_of_other_images_and_their_order_change_nothing(pooling):
    present, _ = pooled(pooling)
    alone, _ = pooled(pooling, LOGITS[[3, 1, 2]], torch.tensor([3]))
    torch.testing.assert_close(alone[0], present[1])


@pytest.mark.parametrize("pooling", ["noisy_or", "attention", "max", "mean", "log_mean_exp"])
def test_a_new_network_gives_each_word_its_rate(pooling):
    network = ConceptNetwork(2, 2, pooling, 0)
    torch.nn.init.zeros_(network.word.weight)
    rates = torch.tensor([0.4, 0.001])
    network.start_at(rates, 5.0)
    present, _ = network.pooled(torch.randn(10, 2), torch.tensor([5, 5]))
    torch.testing.assert_close(present.exp(), rates.expand(2, 2))


def test_the_sum_of_noisy_or_is_by_image():
    found = noisy_or(torch.zeros(3, 1), torch.tensor([1, 2]))
    assert found.flatten().tolist() == pytest.approx([-math.log(2), -2 * math.log(2)])
