"""Words in the rows of regions: the embedding against a plain loop, from a checkpoint to an export."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dimvl.data.examples import BatchShape, Example, collate
from dimvl.data.prefixes import join_images, make_prefix
from dimvl.model.convert import load_pretrained, saved_tensors
from dimvl.tasks.pretraining.config import ObjectivesConfig
from dimvl.tasks.pretraining.training import PretrainModule
from tests.data.test_sampler import tensors_of
from tests.factories import CLASSES, FEATURE_WIDTH, make_model, make_processor, make_regions

PROCESSOR = make_processor(concepts="both")
VOCABULARY = len(PROCESSOR.tokenizer)
SHAPE = BatchShape(objectives={}, text_start=PROCESSOR.text_start, feature_width=FEATURE_WIDTH)


def model_with_words(**changes):
    """A model whose projection and norm of words are random."""
    model = make_model(vocabulary=VOCABULARY, region_words=True, **changes)
    with torch.no_grad():
        for weight in (model.regions.words.weight, *model.regions.words_norm.parameters()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return model


def batch_of(*regions, hidden=None, processor=PROCESSOR):
    prefixes = [make_prefix(one, processor.tags, hidden) for one in regions]
    return collate([Example(source="", objective="", prefix=p, texts=[], seq2seq=True) for p in prefixes], SHAPE)


def unnamed(regions):
    return replace(regions, class_ids=regions.class_ids * 0 - 1, attribute_ids=regions.attribute_ids * 0 - 1)


def batch_with_gaps():
    """Regions with few or many words, and without; an image without regions, several images in a prefix."""
    first = make_regions(1, count=3)
    first.attribute_ids[0] = -1
    several = join_images([first, make_regions(2, count=0), unnamed(make_regions(3, count=2))])
    batch = batch_of(several, make_regions(4, count=0), make_regions(5, count=4))
    offsets = batch.region_word_offsets.diff()
    assert 0 in offsets and len(set(offsets.tolist())) > 2
    return batch


def plain_embeddings(model, batch):
    """What `DimvlModel.embed` gives for regions, written region by region."""
    parts, words = model.regions, model.tokens.word.weight
    features = parts.standardise(batch.region_features, None)
    rows = parts.feature_norm(parts.feature(features)) + parts.geometry_norm(parts.geometry(batch.region_geometry))
    rows = rows + parts.segment + parts.image_index(batch.region_image_index)
    result = []
    for place, row in enumerate(rows):
        start, end = batch.region_word_offsets[place : place + 2].tolist()
        mean = torch.zeros(words.shape[1])
        for token, weight in zip(batch.region_word_ids[start:end], batch.region_word_weights[start:end], strict=True):
            mean = mean + weight * words[token]
        result.append(row + parts.words_norm(parts.words(mean[None]))[0] if end > start else row)
    return parts.norm(torch.stack(result))


def test_rows_and_gradients_equal_those_computed_region_by_region():
    model, batch, found = model_with_words(), batch_with_gaps(), []
    weights = torch.randn(batch.layout.num_vision, 16, generator=torch.Generator().manual_seed(2))
    for rows in (model.embed(batch)[: batch.layout.num_vision], plain_embeddings(model, batch)):
        model.zero_grad()
        (rows * weights).sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        found.append({"rows": rows.detach(), **gradients})
    assert found[0].keys() == found[1].keys() >= {"tokens.word.weight", "regions.words.weight"}
    for name, value in found[0].items():
        # fp32, sums in another order; the largest gradients are of the order of 10
        torch.testing.assert_close(value, found[1][name], rtol=1e-5, atol=1e-5)


def test_a_region_without_a_name_is_that_of_a_model_without_words():
    model, batch = model_with_words(), batch_of(unnamed(make_regions(1)), make_regions(2, count=0))
    plain = make_model(vocabulary=VOCABULARY)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "regions.words" not in name})
    assert torch.equal(model(batch), plain(batch))
    bare = batch_of(unnamed(make_regions(1)), make_regions(2, count=0), processor=make_processor())
    assert bare.region_word_ids is None and torch.equal(model(bare), plain(bare))
    assert not torch.equal(model(batch_of(make_regions(1))), plain(batch_of(make_regions(1))))


def test_a_region_begins_with_its_words_as_they_are():
    model = make_model(vocabulary=VOCABULARY, region_words=True)
    words = torch.randn(3, 16)
    assert torch.equal(model.regions.words(words), words)
    assert model.regions.words_norm.weight.eq(1).all() and model.regions.words_norm.bias.eq(0).all()


def test_a_checkpoint_without_words_computes_the_same_in_a_model_with_them_and_these_learn():
    old, new = make_model(vocabulary=VOCABULARY), make_model(1, vocabulary=VOCABULARY, region_words=True)
    assert load_pretrained(new, old.state_dict(), "old") == []
    batch = batch_with_gaps()
    rows = new(batch)
    assert torch.equal(rows, old(batch))
    rows.square().sum().backward()
    assert new.regions.words_norm.weight.grad.any()
    assert torch.equal(new.regions.words.weight, torch.eye(16))


def test_names_of_hidden_regions_change_nothing_that_the_model_sees():
    hidden = np.array([False, True, True, False])
    one, other = make_regions(1), make_regions(1)
    other.class_ids[hidden] = (other.class_ids[hidden] + 1) % len(CLASSES)
    other.class_scores[hidden] = 0.5
    other.attribute_ids[hidden] = -1
    found = [tensors_of(batch_of(regions, hidden=hidden)) for regions in (one, other)]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    shown = [tensors_of(batch_of(regions)) for regions in (one, other)]
    assert not torch.equal(shown[0]["region_word_ids"], shown[1]["region_word_ids"])


@pytest.mark.parametrize("regions", [0, 2])
def test_a_batch_without_any_words_has_gradients_for_every_weight(regions):
    heads = {"word_head": True, "match_head": True, "classes": len(CLASSES)}
    task = PretrainModule(model_with_words(**heads), PROCESSOR, ObjectivesConfig())
    batch = collate([], task.shape) if not regions else None
    if batch is None:
        prefix = make_prefix(unnamed(make_regions(1, count=regions)), PROCESSOR.tags)
        batch = collate([Example(source="", objective="masked_lm", prefix=prefix, texts=[])], task.shape)
    sum(task(batch).values()).backward()
    named = {name: p.grad for name, p in task.model.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in named.values())
    assert not named["regions.words.weight"].any() and not named["regions.words_norm.bias"].any()


def test_the_word_embedding_stays_one_weight_of_its_old_name():
    model = model_with_words(word_head=True)
    names = saved_tensors(model)
    assert model.word_head.decoder.weight is model.tokens.word.weight
    added = names.keys() - saved_tensors(make_model(vocabulary=VOCABULARY, word_head=True)).keys()
    assert added == {"regions.words.weight", "regions.words_norm.weight", "regions.words_norm.bias"}


@pytest.mark.parametrize("cast", [False, True])
def test_words_are_summed_in_the_type_of_the_weights(cast):
    model, batch = model_with_words(), batch_with_gaps()
    wanted = model.embed(batch)
    if cast:
        found = model.bfloat16().embed(batch)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            found = model.embed(batch)
    torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.1)  # 8 bits, after three norms
