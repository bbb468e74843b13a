import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from dimvl.cpu import linear
from dimvl.cpu.linear import Linear, product
from dimvl.data.layout import Layout
from tests.factories import make_batch, make_model


@pytest.fixture(params=["oneDNN", "MKL"])
def library(request, monkeypatch):
    """Take one of the libraries, whichever is faster here."""
    if request.param == "oneDNN" and not linear.has_onednn():
        pytest.skip("needs a CPU with AVX-512 and torch with oneDNN")
    monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", request.param == "oneDNN")
    return request.param


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
def test_a_linear_layer_equals_torchs_in_outputs_and_gradients(count, dtype, library):
    torch.manual_seed(0)
    rows, weights = torch.randn(count, 24, dtype=dtype), torch.randn(count, 40, dtype=dtype)
    for one, other in zip(*(outputs_and_gradients(layer, rows, weights) for layer in pair(dtype)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)  # fp32 sums of at most 40 in another order


@pytest.mark.parametrize("library", ["oneDNN"], indirect=True)
def test_only_fp32_rows_on_a_cpu_go_to_onednn(monkeypatch, library):
    taken, real = [], linear._onednn
    monkeypatch.setattr(linear, "_onednn", lambda *arguments: taken.append(1) or real(*arguments))
    _, layer = pair()
    layer(torch.randn(3, 24)).sum().backward()
    assert len(taken) == 2, "forward and weight gradient; the rows need no gradient"
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 24)).dtype == torch.bfloat16
    layer(torch.randn(0, 24)).sum().backward()
    assert len(taken) == 2, "nothing to multiply"
    layer(torch.randn(2, 3, 24))
    layer.bfloat16()(torch.randn(3, 24).bfloat16())
    assert len(taken) == 2


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch itself reads it
def test_gradients_arrive_in_the_same_order_for_any_number_of_rows(compiled, library):
    """ZeRO 2 sums gradients over ranks in the order of their arrival, and some ranks lack rows of a kind."""
    torch._dynamo.reset()
    model = make_model(split=["qkv", "out", "norm", "ffn"], classes=3, word_head=True, match_head=True, answers=3)
    if compiled:
        model.encoder.compile_blocks("aot_eager")
    order = []
    for name, weight in model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))
    found = []
    for regions in ([0, 0], [1, 0], [3, 4]):
        for targets in (0, 2):
            layout = Layout(
                num_regions=np.array(regions),
                num_context=np.array([2, 2]),
                text_lengths=np.array([3]),
                text_prefix=np.array([0]),
                seq2seq=np.array([False, True]),
            )
            rows = model(make_batch(layout))
            heads = (model.word_head, model.match_head, model.answer_head)
            objects = model.object_head(rows[:targets])
            sums = [head(rows[:targets]).sum() for head in heads] + [part.sum() for part in objects]
            torch.stack(sums).sum().backward()
            found.append(list(order))
            order.clear()
    assert len(found[0]) > 50 and all(one == found[0] for one in found)


def test_frozen_weights_get_no_gradient_and_the_others_get_theirs(library):
    torch.manual_seed(0)
    plain, fast = pair()
    rows = [torch.randn(5, 24).requires_grad_()]
    rows.append(rows[0].detach().clone().requires_grad_())
    for layer, given in zip((plain, fast), rows, strict=True):
        layer.weight.requires_grad_(False)
        layer(given).square().sum().backward()
    assert fast.weight.grad is None
    torch.testing.assert_close(fast.bias.grad, plain.bias.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows[1].grad, rows[0].grad, atol=1e-5, rtol=1e-5)  # the gradient of the rows


@pytest.mark.parametrize("shapes", [((5, 7), (7, 3)), ((1, 7), (7, 1)), ((0, 7), (7, 3))])
def test_products_accept_matrices_that_are_not_contiguous(shapes, library):
    torch.manual_seed(0)
    left, right = (torch.randn(*shape[::-1]).t() for shape in shapes)
    torch.testing.assert_close(product(left, right), left @ right, atol=1e-5, rtol=1e-5)


GROWTH = """
import resource
import torch
from dimvl import cpu
from dimvl.cpu.linear import Linear

cpu.configure()
torch.set_num_threads(1)
layer, wide = Linear(64, 192), torch.randn(2000, 64)
peaks = []
for rows in range(200, 1200):
    layer(wide[:rows]).sum().backward()
    if rows in (400, 1199):
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) / 1000)
"""


def test_memory_does_not_grow_with_the_number_of_shapes_seen():
    grown = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True).stdout
    assert float(grown) < 150, "megabytes over 800 more row counts; 710 with the libraries' own limits"


def test_intels_cpus_keep_mkl(monkeypatch, tmp_path):
    for vendor, expected in (("GenuineIntel", True), ("AuthenticAMD", False)):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
        monkeypatch.setattr(linear, "Path", lambda _: tmp_path / "cpuinfo")
        assert linear.is_intel() == expected
    monkeypatch.setattr(linear, "Path", lambda _: tmp_path / "none")  # not Linux
    monkeypatch.setattr(linear.platform, "processor", lambda: "Intel64 Family 6 Model 85, GenuineIntel")
    assert linear.is_intel()
