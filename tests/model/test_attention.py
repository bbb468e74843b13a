import numpy as np
import pytest
import torch

from dimvl.data.layout import Layout
from dimvl.model import attention
from dimvl.model.attention import attend, matmul_attention, sdpa
from dimvl.model.plan import plan_attention
from tests.factories import make_layout

HEADS, WIDTH = 2, 4


def outputs_and_gradients(layout, backend, device="cpu", dtype=torch.float64, width=WIDTH):
    generator = torch.Generator().manual_seed(1)
    shape = (3, layout.num_rows, HEADS, width)
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("seed", range(4))
def test_padded_attention_equals_the_exact_reference_within_the_rounding_of_each_dtype(seed, dtype, tolerance):
    layout = make_layout(seed)
    fast, slow = outputs_and_gradients(layout, "padded", dtype=dtype), outputs_and_gradients(layout, "reference")
    for one, other in zip(fast, slow, strict=True):
        assert one.dtype == dtype
        # inputs are rounded to 24 and 8 bits; values are about 1
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("masked", [False, True])
def test_both_attention_kernels_of_a_core_are_equal_in_outputs_and_gradients(masked):
    found = []
    for kernel in (sdpa, matmul_attention):
        generator = torch.Generator().manual_seed(0)
        parts = torch.randn(3, 5, HEADS, 7, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
        mask = torch.rand(5, 1, 7, 7, generator=generator) < 0.7 if masked else None
        mask = None if mask is None else mask | torch.eye(7, dtype=torch.bool)
        output = kernel(*parts.unbind(), mask)
        (output * torch.arange(WIDTH)).sum().backward()
        found.append((output.detach(), parts.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-9)  # float64: only the order of sums differs


def varlen_on_a_cpu(query, key, value, query_offsets, key_offsets, longest_query, longest_key, window_size):
    """What torch's kernel computes, sequence by sequence."""
    outputs = []
    assert longest_query == query_offsets.diff().max() and longest_key == key_offsets.diff().max()
    for (start, end), (first, last) in zip(query_offsets.unfold(0, 2, 1), key_offsets.unfold(0, 2, 1), strict=True):
        mask = torch.ones(end - start, last - first, dtype=torch.bool)
        if window_size == (-1, 0):
            mask = mask.tril(last - first - (end - start))
        parts = (rows.transpose(0, 1) for rows in (query[start:end], key[first:last], value[first:last]))
        outputs.append(sdpa(*parts, mask).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("seed", range(12))
def test_variable_length_calls_equal_the_reference_in_outputs_and_gradients(seed, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_on_a_cpu)
    layout = make_layout(seed)
    found = (outputs_and_gradients(layout, backend) for backend in ("varlen", "reference"))
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-10, rtol=1e-9)  # float64: only the order of sums differs


def test_bf16_on_a_cpu_takes_two_products_and_fp32_the_fused_kernel(monkeypatch):
    taken = []
    for name in ("sdpa", "matmul_attention"):
        real = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *parts, name=name, real=real: taken.append(name) or real(*parts))
    for dtype, kernel in ((torch.bfloat16, "matmul_attention"), (torch.float32, "sdpa")):
        outputs_and_gradients(make_layout(0), "auto", dtype=dtype)
        assert set(taken) == {kernel}
        taken.clear()


def test_a_rank_without_examples_has_empty_gradients():
    none = np.zeros(0, dtype=int)
    layout = Layout(num_regions=none, num_context=none, text_lengths=none, text_prefix=none, seq2seq=none > 0)
    output, gradient = outputs_and_gradients(layout, "auto")
    assert output.shape == (0, HEADS, WIDTH) and gradient.shape == (3, 0, HEADS, WIDTH)


def test_permuting_the_keys_of_an_example_changes_nothing():
    layout = make_layout(3)
    plan = plan_attention(layout)
    query, key, value = torch.randn(3, layout.num_rows, HEADS, WIDTH, dtype=torch.float64).unbind()
    order = torch.arange(layout.num_rows)
    example = int(layout.num_regions.argmax())
    start = int(layout.region_starts[example])
    rows = slice(start, start + int(layout.num_regions[example]))
    order[rows] = order[rows].flip(0)
    assert not torch.equal(key, key[order])
    torch.testing.assert_close(attend(plan, query, key, value), attend(plan, query, key[order], value[order]))
