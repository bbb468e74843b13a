import pytest
import torch
from torch import nn

from dimvl.model import linear
from dimvl.model.linear import Linear, product

ONEDNN = pytest.mark.skipif(not linear._HAS_ONEDNN, reason="needs a processor with AVX-512 and torch with oneDNN")


def pair(dtype=torch.float32):
    plain = nn.Linear(24, 40, dtype=dtype)
    fast = Linear(24, 40, dtype=dtype)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def outputs_and_gradients(layer, rows, weights):
    rows = rows.clone().requires_grad_()
    output = layer(rows)
    (output * weights).sum().backward()
    return output.detach(), rows.grad, layer.weight.grad, layer.bias.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 33])
def test_a_linear_layer_equals_that_of_torch_in_outputs_and_gradients(count, dtype):
    torch.manual_seed(0)
    rows, weights = torch.randn(count, 24, dtype=dtype), torch.randn(count, 40, dtype=dtype)
    for one, other in zip(*(outputs_and_gradients(layer, rows, weights) for layer in pair(dtype)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)  # fp32 sums of at most 40 in another order


@ONEDNN
def test_fp32_rows_on_a_processor_go_to_onednn_and_others_do_not(monkeypatch):
    taken, real = [], linear._onednn
    monkeypatch.setattr(linear, "_onednn", lambda *arguments: taken.append(1) or real(*arguments))
    _, layer = pair()
    layer(torch.randn(3, 24)).sum().backward()
    assert len(taken) == 2, "forward and weight; the rows want no gradient"
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 24)).dtype == torch.bfloat16
    layer(torch.randn(0, 24)).sum().backward()
    layer(torch.randn(2, 3, 24))
    layer.bfloat16()(torch.randn(3, 24).bfloat16())
    assert len(taken) == 2


def test_what_is_frozen_gets_no_gradient_and_the_rest_gets_its_own():
    torch.manual_seed(0)
    rows = torch.randn(5, 24)
    plain, fast = pair()
    for layer in (plain, fast):
        layer.weight.requires_grad_(False)
        layer(rows).square().sum().backward()
    assert fast.weight.grad is None
    torch.testing.assert_close(fast.bias.grad, plain.bias.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shapes", [((5, 7), (7, 3)), ((1, 7), (7, 1)), ((0, 7), (7, 3))])
def test_products_take_matrices_that_are_not_contiguous(shapes):
    torch.manual_seed(0)
    left, right = (torch.randn(*shape[::-1]).t() for shape in shapes)
    torch.testing.assert_close(product(left, right), left @ right, atol=1e-5, rtol=1e-5)
