import itertools
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dimvl.data.examples import BatchShape, Example, collate
from dimvl.data.prefixes import make_prefix
from dimvl.data.sampler import Step
from dimvl.data.targets import Draws
from dimvl.metrics.cider import CiderD
from dimvl.tasks.captioning.self_critical import (
    OBJECTIVE,
    REWARD,
    SampleSource,
    SelfCriticalModule,
    advantages,
    self_critical_loss,
    token_references,
)
from dimvl.training.ranks import SingleProcess
from dimvl.training.report import Meter
from tests.factories import FEATURE_WIDTH, make_model, make_processor, make_regions
from tests.tiny_runs import all_costs, caption_store, image_reader, make_data

LONGEST = 6


def word_reward(texts, images):
    return np.array([sum(text) % 7 + image for text, image in zip(texts, images, strict=True)], dtype=float)


def make_task(reward=word_reward, **changes):
    processor = make_processor(captions=True)
    model = make_model(
        1,
        vocabulary=len(processor.tokenizer),
        word_head=True,
        dropout=0.0,
        max_positions=processor.max_positions,
        **changes,
    )
    return SelfCriticalModule(model, processor, reward, LONGEST)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 5, empty=2)


@pytest.fixture
def source(data):
    processor = make_processor()
    return SampleSource(caption_store(data, processor), image_reader(data, processor), 3, LONGEST, seed=4)


def whole_batch(source, task):
    return collate([source.build(0, index) for index in range(len(source))], task.shape)


# --- what is drawn, and its log-probability


@pytest.mark.parametrize("split", [[], ["qkv", "ffn"]])
def test_log_probabilities_of_the_ragged_forward_pass_equal_those_of_the_decoder(source, split):
    task = make_task(split=split)
    batch = whole_batch(source, task)
    drawn = task.draw(batch)
    owners = batch.targets[OBJECTIVE].rows.numpy()
    again = task.log_probabilities(batch, [text.token_ids for text in drawn], owners)
    # fp32: the decoder sums attention in another order
    torch.testing.assert_close(
        again.double(), torch.tensor([d.log_probability for d in drawn]).double(), atol=1e-5, rtol=0
    )
    ended = [text.token_ids[-1] == task.processor.tokenizer.sep for text in drawn]
    assert len(drawn) == 15 and len({text.token_ids for text in drawn}) > 10 and not all(ended)
    assert all(len(text.token_ids) == LONGEST for text, over in zip(drawn, ended, strict=True) if not over)


def test_other_examples_in_the_batch_change_neither_the_drawn_captions_nor_their_loss(source):
    task = make_task()
    together = task.draw(whole_batch(source, task))
    whole = task(whole_batch(source, task))
    parts = [task(collate([source.build(0, index)], task.shape)) for index in range(len(source))]
    alone = [draw for index in range(5) for draw in task.draw(collate([source.build(0, index)], task.shape))]
    assert [draw.token_ids for draw in alone] == [draw.token_ids for draw in together]
    for name in (OBJECTIVE, REWARD):
        # fp32 sums in another order, over about 15 captions of 6 words
        torch.testing.assert_close(sum(part[name] for part in parts), whole[name], atol=1e-3, rtol=1e-5)


def test_draws_differ_between_epochs_and_repeat_within_one(source):
    first, again, later = (source.build(epoch, 1).target.numbers for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, later).any() and not np.isclose(first, source.build(0, 2).target.numbers).any()
    assert first.dtype == np.float32 and first.min() >= 0 and first.max() < 1


def test_a_batch_without_images_gives_a_zero_that_is_connected_to_the_weights():
    task = make_task()
    losses = task(collate([], task.shape))
    assert {name: loss.item() for name, loss in losses.items()} == {OBJECTIVE: 0.0, REWARD: 0.0}
    losses[OBJECTIVE].backward()
    assert task.model.word_head.decoder.bias.grad is not None


def test_targets_are_counted_before_drawing_and_costs_bound_the_rows(source):
    task = make_task()
    batch = whole_batch(source, task)
    assert batch.counts() == {OBJECTIVE: 15}
    assert batch.targets[OBJECTIVE].images.tolist() == [image for image in range(5) for _ in range(3)]
    rows = batch.layout.num_rows + sum(len(text.token_ids) for text in task.draw(batch))
    assert rows <= all_costs(source, 0).sum()


def test_bf16_copies_of_the_weights_made_while_drawing_do_not_swallow_gradients(source):
    task = make_task()
    with torch.autocast("cpu", torch.bfloat16):
        losses = task(whole_batch(source, task))
    losses[OBJECTIVE].backward()
    lacking = [name for name, weight in task.model.named_parameters() if weight.grad is None]
    assert lacking == ["regions.hidden_feature"] or not lacking
    assert task.model.encoder.layers[0].qkv.language.weight.grad.abs().sum() > 0


# --- the gradient


class Enumerable:
    """A captioner with four words besides [CLS], [SEP] and [MASK], and all its texts, complete or truncated."""

    def __init__(self, longest=3):
        words = [3, 4, 5, 6]
        texts = [(*text, 1) for length in range(longest) for text in itertools.product(words, repeat=length)]
        self.texts = texts + list(itertools.product(words, repeat=longest))
        tokenizer = SimpleNamespace(cls=0, sep=1, mask=2, unwritten_ids=[0, 2])
        processor = SimpleNamespace(tokenizer=tokenizer, text_start=4, variant="causal")
        model = make_model(3, vocabulary=7, word_head=True, dropout=0.0)
        references = [[[3, 4, 1], [4, 1]], [[3, 1]], [[5, 6, 1]]]
        self.task = SelfCriticalModule(model, processor, CiderD(references).scores, longest)
        prefix = replace(make_prefix(make_regions(0), make_processor().tags), context=np.array([0, 3, 1]))
        self.example = Example(source="", objective=OBJECTIVE, prefix=prefix, texts=[], seq2seq=True)
        self.batch = collate([self.example], BatchShape(objectives={}, text_start=4, feature_width=FEATURE_WIDTH))

    def log_probabilities(self):
        return self.task.log_probabilities(self.batch, self.texts, np.zeros(len(self.texts), dtype=np.int64))

    def rewards(self):
        return np.asarray(self.task.reward(self.texts, np.zeros(len(self.texts), dtype=np.int64)))


def gradient_of(value, model):
    weights = [weight for name, weight in model.named_parameters() if "hidden_feature" not in name]
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, weights)])


@pytest.mark.parametrize("longest", [1, 2])
def test_captions_are_drawn_with_the_probability_that_is_differentiated(longest):
    world, fine = Enumerable(longest), {1: 2000, 2: 60}[longest]
    evenly = (np.arange(fine, dtype=np.float32) + 0.5) / fine  # each word's numbers, all combinations
    draws = np.stack(np.meshgrid(*[evenly] * longest, indexing="ij"), axis=-1).reshape(-1, longest)
    shape = BatchShape(objectives=dict(world.task.objectives), text_start=4, feature_width=FEATURE_WIDTH)
    drawn = Counter(
        text.token_ids for text in world.task.draw(collate([replace(world.example, target=Draws(draws, 0))], shape))
    )
    probabilities = dict(zip(world.texts, world.log_probabilities().exp().tolist(), strict=True))
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5) and drawn.keys() <= probabilities.keys()
    for text, probability in probabilities.items():
        # a word's share of the numbers differs from its probability by at most one number, at each word
        assert drawn[text] / len(draws) == pytest.approx(probability, abs=longest / fine)


def test_the_expected_gradient_over_all_pairs_of_captions_is_the_exact_policy_gradient():
    """Nothing is sampled: all 85 texts that end or are truncated within three words, and all 7225 pairs of them."""
    world = Enumerable()
    log_probabilities, rewards = world.log_probabilities().double(), world.rewards()
    probabilities = log_probabilities.exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5) and len(set(rewards)) > 5
    exact = gradient_of((probabilities * torch.from_numpy(rewards)).sum(), world.task.model)
    log_probabilities = world.log_probabilities().double()
    one, other = (part.flatten() for part in torch.meshgrid(*[torch.arange(85)] * 2, indexing="ij"))
    pairs = torch.stack([one, other], dim=1).flatten()
    of_pair = (log_probabilities[one] + log_probabilities[other]).exp().detach().repeat_interleave(2)
    # the loss is linear in the log-probabilities, so weighing these weighs the loss of each pair
    loss = self_critical_loss(of_pair * log_probabilities[pairs], rewards[pairs], np.repeat(np.arange(85**2), 2))
    expected = gradient_of(loss / 2, world.task.model)  # a pair has two targets
    assert exact.abs().max() > 1e-3
    # the model computes in fp32
    torch.testing.assert_close(expected, -exact, atol=1e-5, rtol=1e-3)


def test_the_loss_by_hand():
    log_probabilities = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0], requires_grad=True)
    rewards, owners = np.array([6.0, 0.0, 3.0, 1.0, 2.0]), np.array([0, 0, 0, 1, 1])
    assert advantages(rewards, owners).tolist() == [4.5, -4.5, 0, -1, 1]
    loss = self_critical_loss(log_probabilities, rewards, owners)
    assert loss.item() == pytest.approx(4.5 * 1 - 4.5 * 2 + 0 - 4 + 5)
    loss.backward()
    assert log_probabilities.grad.tolist() == [-4.5, 4.5, 0, 1, -1]


def test_equal_captions_give_no_gradient():
    loss = self_critical_loss(torch.tensor([-1.0, -1.0], requires_grad=True), np.array([5.0, 5.0]), np.array([0, 0]))
    loss.backward()
    assert loss.item() == 0


# --- the reward


def test_the_final_sep_is_rewarded(data):
    processor = make_processor()
    captions = caption_store(data, processor)
    end = processor.tokenizer.sep
    references = token_references(captions, end)
    assert [len(texts) for texts in references] == np.diff(captions.groups).tolist()
    assert all(text[-1] == end for texts in references for text in texts)
    whole = references[2][0]
    reward = CiderD(references).scores([whole, whole[:-1], whole[:-2]], [2, 2, 2])
    assert reward[0] > reward[1] > reward[2]


def test_the_speed_counts_the_rows_of_drawn_captions(source):
    task, passed = make_task(), []
    task.model.register_forward_pre_hook(lambda model, arguments: passed.append(arguments[0].layout.num_rows))
    batch = whole_batch(source, task)
    meter = Meter(SingleProcess(), drawn_rows=lambda: task.drawn_rows)
    task(batch)
    meter.add(Step(0, [batch], len(source), batch.layout.num_rows))
    meter.start = time.perf_counter() - 10
    assert max(passed) >= batch.layout.num_rows + len(source)  # a caption has at least its end
    assert meter.rates()["rows_per_second"] == pytest.approx(max(passed) / 10, rel=1e-2)
    assert meter.rates()["rows_per_second"] == 0, "the next report starts from zero"
