import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dimvl.cpu.linear import Linear
from dimvl.data.layout import Layout
from dimvl.model.convert import load_pretrained
from dimvl.model.embeddings import sinusoids
from dimvl.model.encoder import SPLITS, PerModality
from dimvl.model.model import DimvlModel
from tests.factories import make_batch, make_layout, make_model

ALL_SPLITS = [list(names) for count in range(5) for names in itertools.combinations(SPLITS, count)]


def same_start(split):
    """A model whose language weights are those of the shared model, copied to vision."""
    model = make_model(split=split)
    load_pretrained(model, make_model(split=[]).state_dict(), "shared")
    return model


@pytest.mark.parametrize("split", ALL_SPLITS, ids=lambda split: "+".join(split) or "shared")
def test_every_split_starts_as_the_same_function(split):
    batch = make_batch(make_layout(1))
    # fp32: a product of a slice may sum in another order than the whole product
    torch.testing.assert_close(same_start(split)(batch), make_model(split=[])(batch), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("split", ALL_SPLITS[1:], ids="+".join)
def test_split_sublayers_learn_separately(split):
    model = DimvlModel(
        vocabulary=40, feature_width=6, layers=1, width=16, heads=2, inner_width=32, split=split, max_positions=64
    )
    names = {name for name, _ in model.named_parameters() if ".vision." in name}
    assert {name.split(".")[3].replace("attention_norm", "norm").replace("ffn_norm", "norm") for name in names} == set(
        split
    )
    model(make_batch(make_layout(2))).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in names:
            language = model.get_parameter(name.replace(".vision.", ".language."))
            assert torch.equal(parameter, language), "copied at the start"
    assert any(
        not torch.equal(
            model.get_parameter(name).grad, model.get_parameter(name.replace(".vision.", ".language.")).grad
        )
        for name in names
    )


def test_a_newly_initialised_model_has_equal_weights_for_both_modalities():
    model = DimvlModel(vocabulary=40, feature_width=6, layers=1, width=16, heads=2, inner_width=32, split=SPLITS)
    block = model.encoder.layers[0]
    assert torch.equal(block.qkv.vision.weight, block.qkv.language.weight)
    assert torch.equal(block.ffn.vision.inner.weight, block.ffn.language.inner.weight)


def test_nearby_positions_start_with_similar_embeddings():
    model = DimvlModel(vocabulary=9, feature_width=6, layers=1, width=16, heads=2, inner_width=32, max_positions=40)
    positions = model.tokens.position.weight.detach()
    alike = positions @ positions.T
    torch.testing.assert_close(alike.diag(), torch.ones(40))
    assert alike[20, 20] > alike[20, 21] > alike[20, 22] > alike[20, 24]
    sines_and_cosines = [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]
    torch.testing.assert_close(sinusoids(torch.arange(3), 4)[1] * 2**0.5, torch.tensor(sines_and_cosines))


def test_an_example_does_not_depend_on_its_neighbours():
    model, layout = make_model(), make_layout(5)
    whole = model(make_batch(layout))
    changed = make_batch(layout)
    first = layout.num_regions[0]
    changed.region_features[first:] += 1
    torch.testing.assert_close(model(changed)[:first], whole[:first])
    assert not torch.allclose(model(changed)[first : layout.num_vision], whole[first : layout.num_vision])


def test_a_future_word_changes_nothing_before_it_and_nothing_in_the_prefix():
    layout = Layout(
        num_regions=np.array([2]),
        num_context=np.array([3]),
        text_lengths=np.array([4, 4]),
        text_prefix=np.array([0, 0]),
        seq2seq=np.array([True]),
    )
    model, batch = make_model(), make_batch(layout)
    before = model(batch)
    batch.token_ids[3 + 2] += 1  # third word of the first text: row 2 + 3 + 2
    after = model(batch)
    assert torch.equal(before[:7], after[:7])
    assert torch.equal(before[9:], after[9:])
    assert not torch.allclose(before[7:9], after[7:9])


def test_a_hidden_feature_cannot_reach_any_row():
    layout = make_layout(4)
    model, batch = make_model(), make_batch(layout)
    batch.region_hidden[1] = True
    before = model(batch)
    batch.region_features[1] += 5
    assert torch.equal(before, model(batch))
    batch.region_geometry[1] += 0.5
    assert not torch.allclose(before, model(batch))


def test_features_in_float16_give_the_rows_and_gradients_of_the_same_in_float32():
    half = make_batch(make_layout(4)).region_features.half()
    results = []
    for features in (half, half.float()):
        model = make_model()
        rows = model(replace(make_batch(make_layout(4)), region_features=features))
        rows.square().sum().backward()
        results.append([rows, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_the_first_image_index_embeds_to_zero_and_others_do_not():
    model, batch = make_model(), make_batch(make_layout(4))
    assert model.regions.image_index.weight[0].abs().sum() == 0
    before = model(batch)
    batch.region_image_index[0] = 1
    assert not torch.allclose(before, model(batch))


def test_batches_without_regions_or_without_text_work():
    model = make_model()
    for regions, texts in (([0, 0], [2]), ([2, 1], []), ([0, 0], [])):
        layout = Layout(
            num_regions=np.array(regions),
            num_context=np.array([1, 0]),
            text_lengths=np.array(texts, dtype=int),
            text_prefix=np.zeros(len(texts), dtype=int),
            seq2seq=np.array([True, False]),
        )
        assert model(make_batch(layout)).isfinite().all()


def test_unknown_splits_and_impossible_heads_are_named():
    with pytest.raises(ValueError, match="split \\['foo'\\] is unknown"):
        make_model(split=["foo"])
    with pytest.raises(ValueError, match="width 16 is not a multiple of heads 3"):
        make_model(heads=3)


def test_bf16_autocast_stays_close_to_fp32():
    model, batch = make_model(), make_batch(make_layout(6))
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)
    # rows are normalised, so 8 bits of mantissa over two layers stay within a few hundredths
    assert (half.float() - model(batch)).abs().mean() < 0.05


def test_each_modality_uses_its_own_weights():
    torch.manual_seed(0)
    sublayer = PerModality(Linear(3, 2), split=True)
    with torch.no_grad():
        sublayer.vision.weight.zero_()
    rows, visual = torch.ones(5, 3), 2
    changed = sublayer(rows, visual) != sublayer.language(rows)
    assert changed[:visual].all() and not changed[visual:].any()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch itself reads it
def test_compiled_blocks_give_the_same_result_and_are_compiled_once_for_all_lengths():
    torch._dynamo.reset()
    plain, compiled = make_model(split=["qkv", "ffn"]), make_model(split=["qkv", "ffn"])
    compiled.load_state_dict(plain.state_dict())
    counter = CompileCounterWithBackend("aot_eager")  # what inductor gets, without its compiler
    compiled.encoder.compile_blocks(counter)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    frames = []
    for seed in range(4):
        batch = make_batch(make_layout(seed))
        rows = plain(batch), compiled(batch)
        torch.testing.assert_close(*rows, atol=1e-5, rtol=1e-5)  # fp32 sums in another order
        pairs = zip(rows, (plain, compiled), strict=True)
        gradients = [torch.autograd.grad(out.square().sum(), model.encoder.parameters()) for out, model in pairs]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1] > 0


def layout_for_compiling(kind, seed):
    """Random numbers of rows, or few: no visual row, one visual row, no language row, no row at all."""
    prefixes = 2 + seed % 7
    layout, nothing = make_layout(seed, prefixes), np.zeros(0, dtype=int)
    few = np.eye(1, prefixes, dtype=int)[0]
    if kind == "many":
        return replace(layout, num_regions=layout.num_regions + 1, num_context=layout.num_context + 1)
    if kind == "visual rows only":
        return replace(layout, num_context=0 * few, text_lengths=nothing, text_prefix=nothing)
    regions = few if kind == "one visual row" else 0 * few
    if kind == "no row":
        return replace(layout, num_regions=regions, num_context=regions, text_lengths=nothing, text_prefix=nothing)
    return replace(layout, num_regions=regions, num_context=layout.num_context + 1)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch itself reads it
@pytest.mark.parametrize("split", [[], ["qkv"], ["qkv", "out", "norm", "ffn"]])
def test_after_two_batches_only_new_kinds_of_tiny_batches_are_compiled(split):
    torch._dynamo.reset()
    model = make_model(split=split).train()
    counter = CompileCounterWithBackend("aot_eager")
    model.encoder.compile_blocks(counter)

    def graphs_after(kind, seed):
        model(make_batch(layout_for_compiling(kind, seed))).square().sum().backward()
        return counter.frame_count

    compiled = [graphs_after("many", seed) for seed in range(25)]
    assert compiled[1] == compiled[-1] > 0, compiled
    few = ("no visual row", "one visual row", "visual rows only", "no row")
    first = [graphs_after(kind, 30 + number) for number, kind in enumerate(few)]
    again = [graphs_after(kind, 40 + number) for number, kind in enumerate((*few, "many"))]
    assert first[-1] <= compiled[-1] * (1 + len(few)) and set(again) == {first[-1]}, (compiled, first, again)
