from pathlib import Path

import pytest
import torch
from torch import nn

from dimvl.cpu.linear import has_onednn
from dimvl.cpu.packed import HalfLinear, PackedConvolution, PackedLinear, has_half_linears, pack_linears
from dimvl.data.examples import BatchShape, Example, collate
from dimvl.data.prefixes import join_images, make_prefix
from dimvl.trained_model import TrainedModel
from tests.factories import FEATURE_WIDTH, make_batch, make_layout, make_model, make_processor, make_regions

WORDS = make_processor(concepts="region")
HALF = pytest.mark.skipif(not has_half_linears(), reason="torch has no linear layers of float16 weights here")
pytestmark = pytest.mark.skipif(not has_onednn(), reason="needs a CPU with AVX-512 and torch with oneDNN")


@pytest.mark.parametrize("shape", [(1, 7), (33, 7), (0, 7), (2, 5, 7)])
def test_a_packed_layer_equals_the_plain_one_and_keeps_its_own_weights(shape):
    plain = nn.Linear(7, 11)
    packed = PackedLinear(plain)
    with torch.inference_mode():
        rows = torch.randn(shape)
        # sums in another order
        torch.testing.assert_close(packed(rows), plain(rows), atol=1e-6, rtol=1e-5)
    assert {name: weight.shape for name, weight in packed.named_parameters()} == {
        name: weight.shape for name, weight in plain.named_parameters()
    }
    before = packed(torch.ones(1, 7))
    plain.weight.data.zero_()
    assert torch.equal(packed(torch.ones(1, 7)), before), "the packed weight is a copy"


@pytest.mark.parametrize("split", [[], ["qkv"], ["qkv", "out", "norm", "ffn"]])
def test_a_packed_model_computes_the_same_rows_and_heads(split):
    options = {"width": 192, "heads": 4, "inner_width": 384, "split": split, "answers": 200}
    options |= {"word_head": True, "vocabulary": 200}
    plain, packed = make_model(3, **options), make_model(3, **options)
    pack_linears(packed)
    kinds = {name: type(module) for name, module in packed.named_modules()}
    assert kinds["encoder.layers.0.qkv.language"] is kinds["answer_head.outer"] is PackedLinear
    assert issubclass(kinds["regions.geometry"], nn.Linear), "too small to be packed"
    assert kinds["word_head.decoder"] is kinds["word_head.transform.dense"] is PackedLinear
    batch = make_batch(make_layout(1))
    with torch.inference_mode():
        rows, expected = packed(batch), plain(batch)
        torch.testing.assert_close(rows, expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(packed.answer_head(rows), plain.answer_head(expected), atol=1e-4, rtol=0)
        torch.testing.assert_close(packed.word_head(rows), plain.word_head(expected), atol=1e-4, rtol=0)
    assert expected.abs().max() > 0.1
    assert count_parameters(packed) == count_parameters(plain), "the words' embedding and decoder are one"


@pytest.mark.parametrize("half", [False, pytest.param(True, marks=HALF)])
def test_a_packed_model_has_the_words_of_regions_too(half):
    options = {"width": 192, "heads": 4, "region_words": True, "max_images": 7, "vocabulary": 200}
    plain, packed = make_model(3, **options), make_model(3, **options)
    pack_linears(packed, half)
    assert type(packed.regions.words) is (HalfLinear if half else PackedLinear), "it has no bias"
    several = join_images([make_regions(1), make_regions(2)])
    example = Example(source="", objective="", prefix=make_prefix(several, WORDS.tags), texts=[], seq2seq=True)
    batch = collate([example], BatchShape(objectives={}, text_start=0, feature_width=FEATURE_WIDTH))
    with torch.inference_mode():
        # without rounding sums in another order; with it 2^-11 of each weight
        torch.testing.assert_close(packed(batch), plain(batch), atol=2e-2 if half else 2e-5, rtol=0)


def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_layers_that_are_not_float32_are_not_packed():
    model = make_model(width=192, heads=4).bfloat16()
    pack_linears(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def test_layers_are_not_packed_on_a_cpu_without_avx512(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    model = make_model(width=192, heads=4)
    pack_linears(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def test_a_packed_model_refuses_to_be_saved_without_its_weights():
    model = make_model(width=192, heads=4)
    pack_linears(model)
    with pytest.raises(RuntimeError, match=r"encoder.layers.0.qkv.language is packed for prediction"):
        model.state_dict()


@HALF
@pytest.mark.parametrize("shape", [(1, 70), (33, 70), (0, 70), (2, 5, 70)])
def test_a_layer_in_half_precision_rounds_its_weights_and_nothing_else(shape):
    plain = nn.Linear(70, 130)
    half = HalfLinear(plain)
    with torch.inference_mode():
        rows = torch.randn(shape)
        before = half(rows)
        plain.weight.copy_(plain.weight.half())
        torch.testing.assert_close(before, plain(rows), atol=1e-5, rtol=1e-5)  # sums in another order
    assert {name: weight.shape for name, weight in half.named_parameters()} == {
        name: weight.shape for name, weight in plain.named_parameters()
    }


@HALF
@pytest.mark.parametrize("captions", [True, False])
def test_only_a_model_that_captions_is_rounded_to_half_precision(captions):
    options = {"width": 192, "heads": 4, "inner_width": 384, "answers": 200, "word_head": captions, "vocabulary": 200}
    plain, processor = make_model(3, **options), make_processor(captions=captions)
    trained = TrainedModel(make_model(3, **options), processor, Path("run")).for_prediction()
    kinds = {type(module) for module in trained.model.modules()}
    assert (HalfLinear in kinds, PackedLinear in kinds) == (captions, not captions)
    assert trained.num_parameters == count_parameters(plain)
    batch = make_batch(make_layout(1))
    with torch.inference_mode():
        rows, expected = trained.model(batch), plain(batch)
        deviation = (rows - expected).abs().max() / expected.std()
        assert (2e-5 < deviation < 1e-2) if captions else deviation < 2e-5
    with pytest.raises(RuntimeError, match=r"encoder.layers.0.qkv.language is packed for prediction"):
        trained.model.state_dict()


@pytest.mark.parametrize("limit", [None, 6.0])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 8, "padding": 2, "dilation": 2}])
def test_a_packed_convolution_equals_the_plain_one(options, limit):
    plain = nn.Conv2d(8, 16, 3, **options)
    plain.weight.data *= 20
    packed = PackedConvolution(plain, limit)
    with torch.inference_mode():
        for count in (1, 20):
            images = torch.randn(count, 8, 9, 12).to(memory_format=torch.channels_last)
            expected = plain(images)
            assert expected.min() < 0 and expected.max() > 6
            expected = expected if limit is None else expected.clamp(0, limit)
            torch.testing.assert_close(packed(images), expected, atol=1e-4, rtol=1e-4)
