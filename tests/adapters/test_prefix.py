"""Learned keys and values: like extra rows under a plain mask, in decoding, with shared prefixes."""

import numpy as np
import pytest
import torch

from dimvl.adapters.adding import add_adapter
from dimvl.adapters.prefix import Prefix
from dimvl.config import AdapterConfig, DecodingOptions
from dimvl.data.layout import Layout
from dimvl.decoding import CachedDecoder
from dimvl.model.attention import attend, reference_attention
from dimvl.model.plan import plan_attention
from tests.factories import make_batch, make_layout, make_model, make_processor, make_tokenizer

P = 3


def with_prefix(hidden=None, seed=0, **changes):
    """A model whose prefix matters: its values are not 0."""
    model = make_model(seed, **changes)
    add_adapter(model, AdapterConfig(prefix={"length": P, "hidden": hidden}))
    with torch.no_grad():
        for weight in model.encoder.prefix.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    return model.eval()


def plain_mask(layout):
    """(N, N + P): what each row sees without a prefix, and all learned keys."""
    own = plan_attention(layout).dense_mask
    return torch.cat([own, torch.ones(len(own), P, dtype=torch.bool)], dim=1)


@pytest.mark.parametrize("seed", range(6))
def test_every_row_attends_to_the_learned_keys_and_to_what_it_saw_without_them(seed):
    layout = make_layout(seed)
    assert torch.equal(plan_attention(layout, learned=P).dense_mask, plain_mask(layout))


def test_encoded_apart_image_and_text_each_attend_to_the_learned_keys():
    none = np.zeros(1, dtype=bool)
    layout = Layout(
        num_regions=np.array([2]),
        num_context=np.array([1]),
        text_lengths=np.array([2, 1]),
        text_prefix=np.array([0, 0]),
        seq2seq=none,
        apart=~none,
    )
    assert torch.equal(plan_attention(layout, learned=P).dense_mask, plain_mask(layout))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backend", ["padded", "auto"])
def test_outputs_and_gradients_equal_a_plain_masked_attention_with_extra_rows(seed, backend):
    layout, generator = make_layout(seed), torch.Generator().manual_seed(seed)
    query = torch.randn(layout.num_rows, 2, 8, generator=generator, requires_grad=True)
    key, value = (torch.randn(layout.num_rows + P, 2, 8, generator=generator, requires_grad=True) for _ in range(2))
    inputs, toward = (query, key, value), torch.randn(query.shape, generator=generator)
    expected = reference_attention(plain_mask(layout), *inputs)
    found = attend(plan_attention(layout, learned=P), *inputs, backend=backend)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad((expected * toward).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((found * toward).sum(), inputs), wanted)


@pytest.mark.parametrize("hidden", [None, 5])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_a_prefix_are_those_of_its_definition_also_with_activation_checkpointing(hidden, recompute):
    model, batch = with_prefix(hidden), make_batch(make_layout(2))
    model.encoder.checkpoint_activations = recompute
    toward = torch.randn(batch.layout.num_rows, 16, generator=torch.Generator().manual_seed(1))
    own = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.autograd.grad((model(batch) * toward).sum(), own)
    learned, mask = model.encoder.prefix(), plain_mask(batch.layout)

    def plain(layer, query, key, value):
        return reference_attention(
            mask, query, *(torch.cat(pair) for pair in zip((key, value), learned[layer], strict=True))
        )

    rows = model.encoder.run(model.embed(batch), batch.layout.num_vision, plain)
    torch.testing.assert_close(found, torch.autograd.grad((rows * toward).sum(), own), rtol=1e-4, atol=1e-4)


def test_without_rows_the_gradient_of_a_prefix_is_0_and_not_missing():
    none = np.zeros(0, dtype=np.int64)
    layout = Layout(num_regions=none, num_context=none, text_lengths=none, text_prefix=none, seq2seq=none.astype(bool))
    model = with_prefix()
    model(make_batch(layout)).sum().backward()
    assert not model.encoder.prefix.table.weight.grad.any()


def test_a_new_prefix_has_keys_but_values_of_0():
    for hidden in (None, 5):
        learned = Prefix(make_model().encoder, P, hidden)()
        assert learned.shape == (2, 2, P, 2, 8) and learned[:, 0].any() and not learned[:, 1].any()


def test_texts_that_share_an_image_get_the_rows_that_each_gets_with_an_image_of_its_own():
    model = with_prefix()
    shared = Layout(
        num_regions=np.array([4]),
        num_context=np.array([2]),
        text_lengths=np.array([3, 5]),
        text_prefix=np.array([0, 0]),
        seq2seq=np.array([True]),
    )
    batch = make_batch(shared)
    rows = model(batch)
    alone = Layout(
        num_regions=np.array([4]),
        num_context=np.array([2]),
        text_lengths=np.array([5]),
        text_prefix=np.array([0]),
        seq2seq=np.array([True]),
    )
    kept = torch.tensor([0, 1, *range(5, 10)])  # context and second text
    changes = {name: getattr(batch, name)[kept] for name in ("token_ids", "positions", "segments")}
    second = model(type(batch)(**{**vars(batch), "layout": alone, **changes}))
    torch.testing.assert_close(second[-5:], rows[-5:])


@pytest.mark.parametrize("variant", ["causal", "masked"])
def test_decoding_behind_the_cached_prefix_equals_running_the_whole_text(variant):
    processor, tokenizer = make_processor(captions=True, variant=variant), make_tokenizer()
    model = with_prefix(word_head=True, vocabulary=len(tokenizer))
    layout = Layout(
        num_regions=np.array([3, 0]),
        num_context=np.array([2, 4]),
        text_lengths=np.zeros(0, dtype=np.int64),
        text_prefix=np.zeros(0, dtype=np.int64),
        seq2seq=np.array([True, True]),
    )
    prefixes = make_batch(layout, vocabulary=len(tokenizer))
    words = torch.tensor([[7, 9], [8, 6]])
    with torch.inference_mode():
        decoder = CachedDecoder(model, processor, prefixes)
        cached = [decoder.start()]
        for place in range(2):
            cached.append(decoder.advance(torch.zeros(2, 1, dtype=torch.long), words[:, place, None]))
        for place, found in enumerate(cached):
            torch.testing.assert_close(found[:, 0], whole(model, processor, prefixes, words[:, :place]))


def whole(model, processor, prefixes, words):
    """Log-probabilities after these words, from one pass over prefix and text."""
    tokenizer, images = processor.tokenizer, len(words)
    causal = processor.variant == "causal"
    special = torch.full((images, 1), tokenizer.cls if causal else tokenizer.mask)
    text = torch.cat([special, words] if causal else [words, special], dim=1)
    layout, length = prefixes.layout, text.shape[1]
    first = processor.text_start + (not causal)
    texts = Layout(
        num_regions=layout.num_regions,
        num_context=layout.num_context,
        text_lengths=np.full(images, length),
        text_prefix=np.arange(images),
        seq2seq=layout.seq2seq,
    )
    positions = torch.arange(first, first + length).repeat(images)
    batch = type(prefixes)(
        **{
            **vars(prefixes),
            "layout": texts,
            "token_ids": torch.cat([prefixes.token_ids, text.flatten()]),
            "positions": torch.cat([prefixes.positions, positions]),
            "segments": torch.cat([prefixes.segments, torch.ones_like(positions)]),
        }
    )
    rows = model(batch)[texts.text_starts + length - 1]
    scores = model.word_head(rows).log_softmax(dim=-1)
    return scores.index_fill(1, torch.tensor(tokenizer.unwritten_ids), float("-inf"))


def test_beam_search_is_the_same_for_images_decoded_together_and_alone():
    from dimvl.decoding import beam_search

    processor, tokenizer = make_processor(captions=True), make_tokenizer()
    model = with_prefix(word_head=True, vocabulary=len(tokenizer))
    empty = np.zeros(0, dtype=np.int64)
    found = []
    for regions in ([3], [3, 0]):
        layout = Layout(
            num_regions=np.array(regions),
            num_context=np.full(len(regions), 2),
            text_lengths=empty,
            text_prefix=empty,
            seq2seq=np.ones(len(regions), dtype=bool),
        )
        prefixes = make_batch(layout, vocabulary=len(tokenizer))
        tokens = torch.tensor([5, 6] * len(regions))
        same = type(prefixes)(
            **{**vars(prefixes), "token_ids": tokens, "positions": torch.tensor([0, 1] * len(regions))}
        )
        same = type(prefixes)(**{**vars(same), "segments": torch.zeros_like(tokens)})
        with torch.inference_mode():
            decoder = CachedDecoder(model, processor, same)
            found.append(beam_search(decoder, tokenizer.sep, DecodingOptions(beams=3, max_tokens=5))[0])
    assert [one.token_ids for one in found[0]] == [one.token_ids for one in found[1]]
