import pytest
import torch

from dimvl.model.attention import attend
from dimvl.model.plan import plan_attention
from tests.factories import make_layout

HEADS, WIDTH = 2, 4


def outputs_and_gradients(layout, backend, device="cpu", dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shape = (3, layout.num_rows, HEADS, WIDTH)
    leaves = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
    weights = torch.randn(shape[1:], generator=generator, dtype=torch.float64).to(device, dtype)
    plan = plan_attention(layout, device)
    output = attend(plan, *leaves.unbind(), backend)
    (output * weights).sum().backward()
    return output.detach(), leaves.grad


@pytest.mark.parametrize("seed", range(12))
def test_padded_attention_equals_the_reference_in_outputs_and_gradients(seed):
    layout = make_layout(seed)
    for fast, slow in zip(
        outputs_and_gradients(layout, "padded"), outputs_and_gradients(layout, "reference"), strict=True
    ):
        torch.testing.assert_close(fast, slow, atol=1e-10, rtol=1e-9)  # float64: only the order of sums differs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", range(4))
def test_variable_length_attention_equals_the_reference_in_outputs_and_gradients(seed):
    layout = make_layout(seed)
    fast = outputs_and_gradients(layout, "varlen", "cuda", torch.bfloat16)
    slow = outputs_and_gradients(layout, "reference", "cuda", torch.bfloat16)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, atol=3e-2, rtol=3e-2)  # bf16 keeps 8 bits


def test_permuting_the_keys_of_a_document_changes_nothing():
    layout = make_layout(3)
    plan = plan_attention(layout)
    query, key, value = torch.randn(3, layout.num_rows, HEADS, WIDTH, dtype=torch.float64).unbind()
    order = torch.arange(layout.num_rows)
    document = int(layout.num_regions.argmax())
    start = int(layout.region_starts[document])
    rows = slice(start, start + int(layout.num_regions[document]))
    order[rows] = order[rows].flip(0)
    assert not torch.equal(key, key[order])
    torch.testing.assert_close(attend(plan, query, key, value), attend(plan, query, key[order], value[order]))
