import numpy as np
import pytest
import torch

from dimvl.data.layout import Layout
from dimvl.model.plan import GROWTH, plan_attention
from tests.factories import make_layout


def layout(regions, context, texts, owners, seq2seq):
    return Layout(
        num_regions=np.array(regions),
        num_context=np.array(context),
        text_lengths=np.array(texts, dtype=int),
        text_prefix=np.array(owners, dtype=int),
        seq2seq=np.array(seq2seq),
    )


def test_a_bidirectional_example_sees_all_of_itself():
    mask = plan_attention(layout([1], [1], [2], [0], [False])).dense_mask
    assert mask.all() and mask.shape == (4, 4)


def test_a_seq2seq_prefix_sees_only_itself_and_a_text_sees_the_prefix_and_its_own_past():
    # rows: region, context, text a (2 rows), text b (1 row)
    mask = plan_attention(layout([1], [1], [2, 1], [0, 0], [True])).dense_mask
    assert mask.int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_examples_of_both_modes_never_see_each_other():
    # rows: r0 r1 | c0 c1 | text of 0 (bidirectional), text of 1 (seq2seq)
    mask = plan_attention(layout([1, 1], [1, 1], [1, 1], [0, 1], [False, True])).dense_mask
    assert mask.int().tolist() == [
        [1, 0, 1, 0, 1, 0],
        [0, 1, 0, 1, 0, 0],
        [1, 0, 1, 0, 1, 0],
        [0, 1, 0, 1, 0, 0],
        [1, 0, 1, 0, 1, 0],
        [0, 1, 0, 1, 0, 1],
    ]


@pytest.mark.parametrize("seed", range(10))
def test_every_row_is_a_query_exactly_once(seed):
    given = make_layout(seed)
    plan = plan_attention(given)
    queries = torch.cat([call.query_rows for call in plan.calls])
    assert sorted(queries.tolist()) == list(range(given.num_rows))


def test_empty_examples_are_in_no_call():
    # the first prefix is all empty, the second has an empty text
    plan = plan_attention(layout([0, 1], [0, 2], [0, 0], [0, 1], [False, True]))
    assert [call.query_lengths.tolist() for call in plan.calls] == [[3]]


def test_a_bidirectional_prefix_refuses_a_second_text():
    with pytest.raises(ValueError, match="at most one text"):
        layout([1], [1], [1, 1], [0, 0], [False])


@pytest.mark.parametrize("seed", range(6))
def test_padded_cores_hold_every_query_once_and_map_its_output_to_its_row(seed):
    plan = plan_attention(make_layout(seed, prefixes=20))
    assert torch.equal(plan.padded_rows[0][plan.padded_places], torch.arange(plan.num_rows))
    assert sum(len(core.query_places) for core in plan.cores) == plan.num_rows


@pytest.mark.parametrize("seed", range(6))
def test_sequences_of_a_padded_core_have_similar_lengths_and_follow_the_dense_mask(seed):
    plan = plan_attention(make_layout(seed, prefixes=20))
    seen = torch.zeros_like(plan.dense_mask)
    for core in plan.cores:
        count, num_queries, num_keys = core.shape
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool) if core.mask is None else core.mask
        mask = mask.expand(count, 1, num_queries, num_keys).flatten(0, 1)
        keys = mask.any(dim=1).sum(dim=1)
        assert keys.max() == num_keys < GROWTH * keys.min() + 1
        queries = core.query_rows.view(count, num_queries, 1).expand(mask.shape)
        real = torch.zeros(count * num_queries, dtype=torch.bool)
        real[core.query_places] = True
        mask = mask & real.view(count, num_queries, 1)
        seen[queries[mask], core.key_rows.view(count, 1, num_keys).expand(mask.shape)[mask]] = True
    assert torch.equal(seen, plan.dense_mask)
