import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dimvl.data.examples import collate
from dimvl.data.sampler import TrainingSteps, deal, in_order
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.pretraining.config import ObjectivesConfig
from dimvl.tasks.pretraining.training import PretrainModule, PretrainSource
from tests.factories import CLASSES, make_model, make_processor
from tests.tiny_runs import all_costs, caption_store, image_reader, make_data

IMAGES, BUDGET, MICRO = 14, 260, 90


@pytest.fixture(scope="module", params=["float16", "int8"])
def source(request, tmp_path_factory):
    processor = make_processor()
    data = make_data(tmp_path_factory.mktemp("data"), IMAGES, empty=3, feature_dtype=request.param)
    arguments = (caption_store(data, processor), image_reader(data, processor), ObjectivesConfig())
    return PretrainSource(*arguments, Seq2seqConfig(captions=2), processor.tokenizer, seed=1)


@pytest.fixture(scope="module")
def shape():
    model = make_model(word_head=True, match_head=True, classes=len(CLASSES))
    return PretrainModule(model, make_processor(), ObjectivesConfig()).shape


def make_steps(source, shape, seed=1, steps=9, micro=MICRO, rank=0, ranks=1):
    sizes = {"rows_per_step": BUDGET, "rows_per_micro_batch": micro}
    return TrainingSteps(source, shape, seed=seed, steps=steps, rank=rank, ranks=ranks, **sizes)


def sources_of(step):
    return sorted(source for batch in step.micro_batches for source in batch.sources)


def tensors_of(batch):
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def same(one, other):
    """Whether two batches are equal in every tensor and in their layout."""
    tensors, others = tensors_of(one), tensors_of(other)
    equal = tensors.keys() == others.keys()
    equal &= all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    layouts = ("num_regions", "num_context", "text_lengths", "text_prefix", "seq2seq")
    equal &= all(np.array_equal(getattr(one.layout, name), getattr(other.layout, name)) for name in layouts)
    pairs = [(one.targets[name], other.targets[name]) for name in one.targets]
    return equal and all(torch.equal(part, vars(b)[name]) for a, b in pairs for name, part in vars(a).items())


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("examples", [0, 1, 3, 40])
def test_dealing_gives_each_example_once_and_every_rank_equally_many_micro_batches(ranks, examples):
    costs = np.random.default_rng(examples).integers(5, 60, examples)
    dealt = deal(costs, ranks, 70)
    assert len(dealt) == ranks and len({len(part) for part in dealt}) == 1 and len(dealt[0]) >= 1
    places = [place for part in dealt for batch in part for place in batch.tolist()]
    assert sorted(places) == list(range(examples))
    assert all(costs[batch].sum() <= 70 for part in dealt for batch in part)


def test_micro_batches_of_a_step_are_alike_in_rows():
    costs = np.random.default_rng(3).integers(5, 60, 60)
    loads = [costs[batch].sum() for part in deal(costs, 2, 200) for batch in part]
    assert max(loads) - min(loads) <= costs.max()


def test_one_example_above_the_micro_batch_budget_still_runs_and_alone_sets_the_limit():
    costs = np.array([150, 40, 40, 40])
    loads = [costs[batch].sum() for part in deal(costs, 1, 100) for batch in part]
    assert max(loads) == 150 and sum(loads) == 270


def test_the_examples_of_a_step_do_not_depend_on_ranks_or_micro_batches(source, shape):
    whole = make_steps(source, shape, micro=BUDGET)
    for ranks in (1, 2, 4):
        parts = [make_steps(source, shape, rank=rank, ranks=ranks) for rank in range(ranks)]
        for number in range(6):
            dealt = [part[number] for part in parts]
            assert len({len(step.micro_batches) for step in dealt}) == 1
            assert sorted(s for step in dealt for s in sources_of(step)) == sources_of(whole[number])
            total = {name: 0 for name in shape.objectives}
            for batch in (batch for step in dealt for batch in step.micro_batches):
                for name, count in batch.counts().items():
                    total[name] += count
            # the same masks, captions and negatives, on whichever rank or worker
            assert total == whole[number].micro_batches[0].counts()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_image_is_used_once_in_every_epoch(source, shape, ranks):
    seen = {}
    for rank in range(ranks):
        steps = make_steps(source, shape, rank=rank, ranks=ranks)
        for number in range(len(steps)):
            seen.setdefault(steps[number].epoch, []).extend(sources_of(steps[number]))
    assert sorted(seen) == list(range(len(seen))) and len(seen) > 2
    for epoch in range(len(seen) - 1):  # the last one may be cut off
        assert sorted(seen[epoch]) == sorted(f"image {number}" for number in range(1, IMAGES + 1))


def test_no_micro_batch_has_more_rows_than_the_budget(source, shape):
    steps = make_steps(source, shape, ranks=2)
    batches = [batch for number in range(len(steps)) for batch in steps[number].micro_batches]
    assert all(batch.layout.num_rows <= MICRO for batch in batches)
    assert any(batch.layout.num_rows > MICRO / 2 for batch in batches)


def test_costs_bound_the_rows_of_every_example_that_can_come(source):
    for epoch in range(12):
        costs = all_costs(source, epoch)
        for index in range(len(source)):
            example = source.build(epoch, index)
            rows = len(example.prefix.features) + len(example.prefix.context)
            assert rows + sum(len(text.token_ids) for text in example.texts) <= costs[index]


def test_steps_depend_on_seed_and_epoch(source, shape):
    def order(seed):
        steps = make_steps(source, shape, seed=seed)
        return [[sources_of(steps[n]) for n in range(len(steps)) if steps[n].epoch == epoch] for epoch in (0, 1)]

    first, again, other = order(1), order(1), order(2)
    assert first == again
    assert first[0] != first[1] and first[0] != other[0]


def test_starting_at_any_step_gives_the_same_steps_as_starting_at_the_first(source, shape):
    through = make_steps(source, shape)
    wanted = [through[number] for number in range(len(through))]
    for number in (8, 3, 0, 5):
        fresh = make_steps(source, shape)[number]
        assert fresh.epoch == wanted[number].epoch and fresh.examples == wanted[number].examples
        assert all(map(same, fresh.micro_batches, wanted[number].micro_batches))


def test_the_same_image_gives_different_examples_in_each_epoch(source):
    drawn = [source.build(epoch, 0).objective for epoch in range(30)]
    assert len(set(drawn)) == 4
    texts = {tuple(source.build(epoch, 0).texts[0].token_ids.tolist()) for epoch in range(30)}
    assert len(texts) > 10


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes_build_the_same_batches(source, shape, method):
    steps = make_steps(source, shape, steps=4)
    loader = DataLoader(steps, batch_size=None, sampler=range(1, 4), num_workers=2, multiprocessing_context=method)
    for number, step in zip(range(1, 4), loader, strict=True):
        wanted = steps[number]
        assert (step.epoch, step.examples, step.rows) == (wanted.epoch, wanted.examples, wanted.rows)
        assert all(map(same, step.micro_batches, wanted.micro_batches))


def test_examples_built_together_are_those_built_alone_and_their_features_are_not_copied(source, shape):
    indexes = np.array([4, 0, 2, 9, 4, 13])  # example 2 has no regions
    for epoch in range(8):
        together = source.build_all(epoch, indexes)
        batch = collate(together, shape)
        alone = collate([source.build(epoch, int(index)) for index in indexes], shape)
        assert same(batch, alone)
        for name in ("features", "feature_scales"):
            kept, joined = getattr(together[0].prefix, name), getattr(batch, f"region_{name}")
            assert kept is joined is None or np.shares_memory(joined.numpy(), kept)
        assert same(collate(together[1:5], shape), collate([source.build(epoch, int(i)) for i in indexes[1:5]], shape))
        assert same(
            collate(together[::-1], shape), collate([source.build(epoch, int(i)) for i in indexes[::-1]], shape)
        )


def test_pinning_a_step_copies_every_tensor_of_it(source, shape, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # real pinning needs a GPU
    step = make_steps(source, shape)[0]
    pinned = step.pin_memory()
    assert (pinned.epoch, pinned.examples, pinned.rows) == (step.epoch, step.examples, step.rows)
    for one, other in zip(step.micro_batches, pinned.micro_batches, strict=True):
        assert same(one, other) and one.sources == other.sources
        tensors = [list(tensors_of(batch).values()) for batch in (one, other)]
        for own, target in zip(tensors, (one.targets, other.targets), strict=True):
            own += [part for parts in target.values() for part in vars(parts).values()]
        assert len(tensors[0]) == (7 if one.region_feature_scales is None else 8) + 8
        assert all(a.data_ptr() != b.data_ptr() for a, b in zip(*tensors, strict=True) if len(a))


def test_evaluation_batches_hold_each_example_once_and_similar_ones_together():
    costs = np.random.default_rng(0).integers(5, 60, 50)
    batches = in_order(costs, 100)
    assert sorted(np.concatenate(batches).tolist()) == list(range(50))
    assert all(costs[batch].sum() <= 100 for batch in batches)
    assert np.array_equal(costs[np.concatenate(batches)], np.sort(costs))
    assert [batch.tolist() for batch in in_order(np.array([500]), 100)] == [[0]]
    assert in_order(np.zeros(0, dtype=int), 100) == []
