import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dimvl.data.batch import Batch
from dimvl.data.layout import Layout
from dimvl.errors import UserError
from dimvl.model.convert import bert_arguments, check_bert, load_bert, load_pretrained, read_weights
from dimvl.model.encoder import SPLITS
from dimvl.model.model import DimvlModel
from dimvl.model.plan import plan_attention
from tests.factories import FEATURE_WIDTH, make_batch, make_layout, make_model

SIZE = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 30,
    "initializer_range": 0.2,  # weights large enough for every path to matter
}


@pytest.fixture(scope="module")
def transformers():
    from dimvl.regions.detectors.torchvision_ops import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()  # transformers imports it where it is installed
        import transformers
        from transformers import BertForMaskedLM, VisualBertModel  # noqa: F401 - loaded lazily, with its warnings
    return transformers


@pytest.fixture(scope="module", params=["gelu", "relu"])
def bert(transformers, tmp_path_factory, request):
    """A random BERT and its folder."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZE, hidden_act=request.param, layer_norm_eps=1e-5)
    network = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = tmp_path_factory.mktemp("bert")
    network.save_pretrained(folder)
    return network, folder


def from_bert(folder, **changes):
    arguments = {**bert_arguments(folder), "feature_width": FEATURE_WIDTH, "word_head": True, **changes}
    torch.manual_seed(1)
    model = DimvlModel(**arguments).eval()
    load_bert(model, folder)
    return model


def two_sentences(first, second):
    """`[CLS] a [SEP] b [SEP]` of several examples: context, then text, with BERT's positions."""
    examples = len(first)
    layout = Layout(
        num_regions=np.zeros(examples, dtype=int),
        num_context=np.array([len(ids) for ids in first]),
        text_lengths=np.array([len(ids) for ids in second]),
        text_prefix=np.arange(examples),
        seq2seq=np.zeros(examples, dtype=bool),
    )
    contexts, texts = sum(map(len, first)), sum(map(len, second))
    positions = [np.arange(len(ids)) for ids in first]
    positions += [len(a) + np.arange(len(b)) for a, b in zip(first, second, strict=True)]
    return Batch(
        layout=layout,
        region_features=torch.zeros(0, FEATURE_WIDTH),
        region_geometry=torch.zeros(0, 7),
        region_image_index=torch.zeros(0, dtype=torch.long),
        region_hidden=torch.zeros(0, dtype=torch.bool),
        token_ids=torch.tensor([token for ids in [*first, *second] for token in ids]),
        positions=torch.from_numpy(np.concatenate(positions)),
        segments=torch.tensor([0] * contexts + [1] * texts),
        targets={},
    )


@pytest.mark.parametrize("split", [[], ["qkv"], list(SPLITS)], ids=lambda split: "+".join(split) or "shared")
def test_two_sentences_give_the_hidden_states_and_word_logits_of_hugging_face_bert(bert, split):
    network, folder = bert
    first, second = [[2, 7, 9, 3], [2, 11, 3]], [[20, 21, 3], [30, 31, 32, 33, 3]]
    batch = two_sentences(first, second)
    model = from_bert(folder, split=split)
    rows = model(batch)
    logits = model.word_head(rows)
    layout = batch.layout
    for number, (a, b) in enumerate(zip(first, second, strict=True)):
        types = torch.tensor([[0] * len(a) + [1] * len(b)])
        theirs = network(torch.tensor([a + b]), token_type_ids=types, output_hidden_states=True)
        start, text = layout.context_starts[number], layout.text_starts[number]
        mine = [*range(start, start + len(a)), *range(text, text + len(b))]
        # fp32 over two layers of random weights
        torch.testing.assert_close(rows[mine], theirs.hidden_states[-1][0], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(logits[mine], theirs.logits[0], atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("regions", [[3, 2], [0, 4]])
def test_the_shared_encoder_equals_the_stack_of_visual_bert_on_the_same_rows(transformers, bert, regions):
    network, folder = bert
    config = transformers.VisualBertConfig(**SIZE, hidden_act=network.config.hidden_act, layer_norm_eps=1e-5)
    theirs = transformers.VisualBertModel(config).eval().encoder
    theirs.load_state_dict(network.bert.encoder.state_dict())
    layout = Layout(
        num_regions=np.array(regions),
        num_context=np.array([3, 3]),
        text_lengths=np.array([4, 4]),
        text_prefix=np.array([0, 1]),
        seq2seq=np.array([False, False]),
    )
    rows = torch.randn(layout.num_rows, 24, generator=torch.Generator().manual_seed(2))
    encoded = from_bert(folder, split=[]).encoder(rows, plan_attention(layout))
    for number, count in enumerate(regions):
        starts = (layout.context_starts[number], layout.text_starts[number], layout.region_starts[number])
        mine = [row for start, n in zip(starts, (3, 4, count), strict=True) for row in range(start, start + n)]
        wanted = theirs(rows[mine][None])[0][0]  # words first, then regions, as VisualBERT lays them
        torch.testing.assert_close(encoded[mine], wanted, atol=2e-5, rtol=1e-5)


def test_vision_starts_as_a_copy_of_bert(bert):
    model = from_bert(bert[1], split=["qkv", "ffn"])
    block = model.encoder.layers[1]
    query = bert[0].bert.encoder.layer[1].attention.self.query.weight
    assert torch.equal(block.qkv.vision.weight[:24], query) and torch.equal(block.qkv.language.weight[:24], query)
    assert torch.equal(block.ffn.vision.inner.weight, block.ffn.language.inner.weight)


def test_the_first_checkpoints_names_of_norm_weights_are_read(bert, tmp_path):
    _, folder = bert
    weights = load_file(folder / "model.safetensors")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in weights.items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in old.items()}
    assert old.keys() != weights.keys()
    save_file(old, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for mine, wanted in zip(from_bert(tmp_path).parameters(), from_bert(folder).parameters(), strict=True):
        assert torch.equal(mine, wanted)


def test_the_numbers_of_positions_in_older_checkpoints_are_passed_over(bert, tmp_path):
    weights = load_file(bert[1] / "model.safetensors")
    save_file({**weights, "bert.embeddings.position_ids": torch.arange(40)[None]}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((bert[1] / "config.json").read_text())
    check_bert(tmp_path, bert_arguments(tmp_path))
    for mine, wanted in zip(from_bert(tmp_path).parameters(), from_bert(bert[1]).parameters(), strict=True):
        assert torch.equal(mine, wanted)


def test_a_model_with_fewer_layers_gets_the_lowest_ones(bert):
    every, lowest = from_bert(bert[1]), from_bert(bert[1], layers=1)
    assert len(every.encoder.layers) == 2 and len(lowest.encoder.layers) == 1
    own, wanted = lowest.state_dict(), every.state_dict()
    assert all(torch.equal(own[name], wanted[name]) for name in own if name.startswith(("tokens.", "encoder.")))


def test_an_encoder_without_its_language_head_gets_a_newly_initialised_one(transformers, bert, tmp_path):
    bert[0].bert.save_pretrained(tmp_path)
    model = from_bert(tmp_path)
    assert torch.equal(model.tokens.word.weight, bert[0].bert.embeddings.word_embeddings.weight)
    assert torch.equal(model.word_head.decoder.weight, model.tokens.word.weight)
    assert model.word_head.decoder.bias.abs().sum() == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "roberta"}, "type 'roberta'; only 'bert'"),
        ({"model_type": None}, "type None"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new': input should be 'gelu', 'relu' or 'silu'"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": 5}, "not a multiple of num_attention_heads 5"),
        ({"hidden_size": -24}, "hidden_size is -24"),
        ({"layer_norm_eps": None}, "layer_norm_eps is None"),
    ],
)
def test_checkpoints_that_are_not_plain_bert_are_refused_by_name(bert, tmp_path, change, says):
    config = json.loads((bert[1] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=says):
        bert_arguments(tmp_path)


def test_a_bert_folder_with_something_missing_is_named(bert, tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        bert_arguments(tmp_path)
    config = json.loads((bert[1] / "config.json").read_text())
    del config["intermediate_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="intermediate_size: field required"):
        bert_arguments(tmp_path)
    (tmp_path / "config.json").write_text((bert[1] / "config.json").read_text())
    with pytest.raises(UserError, match=r"model\.safetensors does not exist"):
        from_bert(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"abcdefghijk")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        from_bert(tmp_path)
    weights = load_file(bert[1] / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks the weight encoder\.layer\.1\.output\.dense\.weight"):
        from_bert(tmp_path)


def test_bert_weights_of_another_shape_are_named(bert):
    with pytest.raises(UserError, match=r"word_embeddings\.weight has shape \(50, 24\) but the model needs \(60, 24\)"):
        from_bert(bert[1], vocabulary=60)


# --- dimvl's own checkpoints


@pytest.mark.parametrize("split", [["qkv"], ["qkv", "out"], list(SPLITS)], ids="+".join)
def test_a_shared_checkpoint_turned_into_a_decoupled_one_computes_the_same_function(split):
    shared, decoupled = make_model(1, split=[], word_head=True), make_model(2, split=split, word_head=True)
    batch = make_batch(make_layout(1))
    assert not torch.allclose(decoupled(batch), shared(batch), atol=0.1)
    assert load_pretrained(decoupled, shared.state_dict(), "shared") == []
    # fp32: a product of a slice may sum in another order than the whole product
    torch.testing.assert_close(decoupled(batch), shared(batch), atol=2e-5, rtol=1e-5)


def test_a_decoupled_checkpoint_keeps_its_visual_weights_and_may_be_split_further():
    old, new = make_model(1, split=["qkv"]), make_model(2, split=["qkv", "ffn"])
    with torch.no_grad():
        old.encoder.layers[0].qkv.vision.weight.add_(0.5)
    load_pretrained(new, old.state_dict(), "old")
    batch = make_batch(make_layout(1))
    torch.testing.assert_close(new(batch), old(batch), atol=2e-5, rtol=1e-5)
    assert not torch.equal(new.encoder.layers[0].qkv.vision.weight, new.encoder.layers[0].qkv.language.weight)


@pytest.mark.parametrize("split", [[], ["ffn"]])
def test_a_decoupled_checkpoint_does_not_fit_into_shared_sublayers(split):
    before = make_model(2, split=split)
    with pytest.raises(UserError, match=r"separate visual weights \(encoder\.layers\.0\.qkv\.vision"):
        load_pretrained(before, make_model(1, split=["qkv", "ffn"]).state_dict(), "old")
    assert all(
        torch.equal(a, b) for a, b in zip(before.parameters(), make_model(2, split=split).parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inner_width": 48}, r"ffn\.language\.inner\.weight has shape \(32, 16\) .* needs \(48, 16\)"),
        ({"vocabulary": 41}, r"tokens\.word\.weight has shape \(40, 16\)"),
        ({"feature_width": 7}, r"regions\.hidden_feature has shape \(6,\)"),
        ({"layers": 3}, r"has no weight encoder\.layers\.2"),
        ({"layers": 1}, r"has the weight encoder\.layers\.1\.\S+, which the model lacks"),
        ({"max_images": 3}, r"image_index\.weight has shape \(4, 16\) but .* needs \(3, 16\); .* inputs sections"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused_with_the_first_weight(changes, says):
    with pytest.raises(UserError, match=says):
        load_pretrained(make_model(**changes), make_model().state_dict(), "the checkpoint")


def test_a_checkpoint_with_times_does_not_fit_into_a_model_without():
    with pytest.raises(UserError, match=r"has the weight regions\.time\.weight, which the model lacks; use .* inputs"):
        load_pretrained(make_model(), make_model(times=True).state_dict(), "the checkpoint")


def test_a_model_for_more_images_and_with_times_computes_the_function_of_the_checkpoint():
    old, new = make_model(1), make_model(2, max_images=7, times=True)
    initial = new.regions.image_index.weight[4:].detach().clone()
    assert load_pretrained(new, old.state_dict(), "old") == []
    assert torch.equal(new.regions.image_index.weight[:4], old.regions.image_index.weight)
    assert torch.equal(new.regions.image_index.weight[4:], initial) and initial.all()
    batch = make_batch(make_layout(1))
    batch.region_image_index[:] = torch.arange(len(batch.region_image_index)) % 4
    times = torch.arange(len(batch.region_image_index)).float()
    assert torch.equal(new(replace(batch, region_times=times)), old(batch))


def test_heads_that_are_new_or_have_another_size_are_newly_initialised_and_others_are_loaded():
    old = make_model(1, word_head=True, match_head=True, answers=3, classes=2)
    new = make_model(2, word_head=True, answers=5)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    fresh = load_pretrained(new, old.state_dict(), "old")
    assert fresh == ["answer_head.outer.weight", "answer_head.outer.bias"]
    assert all(torch.equal(new.state_dict()[name], before[name]) for name in fresh)
    assert torch.equal(new.word_head.transform.dense.weight, old.word_head.transform.dense.weight)
    assert torch.equal(new.answer_head.inner.weight, old.answer_head.inner.weight)
    captioner = make_model(3, word_head=True)
    assert "word_head.transform.dense.weight" in load_pretrained(captioner, make_model(4).state_dict(), "bare")
    assert torch.equal(captioner.word_head.decoder.weight, captioner.tokens.word.weight)


def test_unreadable_weights_are_one_clear_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_weights(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_weights(tmp_path / "model.safetensors")
