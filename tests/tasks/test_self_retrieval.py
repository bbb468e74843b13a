"""The reward for captions from which their image is found; its place in training is in test_self_critical.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dimvl.data.examples import collate
from dimvl.data.targets import SampleTargets
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.metrics.cider import CiderD
from dimvl.tasks.captioning import retrieval, self_critical
from dimvl.tasks.captioning.config import RetrievalReward
from dimvl.tasks.captioning.retrieval import ContrastiveRetrieval, MatchingRetrieval, load_judge, self_retrieval
from dimvl.tasks.captioning.self_critical import CIDER, OBJECTIVE, RETRIEVAL, REWARD, SampleSource, self_critical_loss
from dimvl.tasks.pretraining.matching import match_logits
from dimvl.tasks.retrieval.prediction import embed_images, embed_texts, similarity
from dimvl.trained_model import load_model
from tests.exports import make_trained, write_run
from tests.factories import make_extractor, make_processor
from tests.tasks.test_self_critical import LONGEST, Enumerable, gradient_of, make_task, whole_batch
from tests.tiny_runs import caption_store, image_reader, make_data, make_several


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 5, empty=2)


def make_retrieval(data, shared=True, weight=2.0):
    """A judge whose scores differ by far more than rounding."""
    processor = make_processor(matches=True, shared_prefix=shared)
    judge = make_trained(processor, seed=7)
    return MatchingRetrieval(judge, caption_store(data, processor), image_reader(data, processor).store, weight)


def make_source(data, among=3, seed=4):
    processor = make_processor()
    return SampleSource(caption_store(data, processor), image_reader(data, processor), 3, LONGEST, seed, among)


def texts_of(*words):
    return [np.array(text, dtype=np.int64) for text in words]


# --- the reward


def test_the_reward_by_hand():
    three = np.log([[2.0, 1.0, 5.0], [1.0, 1.0, 1.0]])
    # the own image's odds of 2 against 1 + 5 of the others and 1 of "none of them"
    assert self_retrieval(three) == pytest.approx([1 + np.log(2 / 9) / np.log(4), 0])
    # one image: the log-probability of the pair, in bits
    assert self_retrieval(np.array([[0.0], [np.log(3)]])) == pytest.approx([0, 1 + np.log2(3 / 4)])
    assert self_retrieval(np.array([[900.0, -900.0], [-900.0, 900.0]])) == pytest.approx([1, 1 - 1800 / np.log(3)])


def test_without_none_of_them_the_reward_is_about_the_images_alone():
    scores = np.log([[2.0, 1.0, 5.0], [1.0, 1.0, 1.0]])
    assert self_retrieval(scores, False) == pytest.approx([1 + np.log(2 / 8) / np.log(3), 0])


def make_contrastive(data, folder, seed=7):
    processor = make_processor(aligns=True)
    run, store = write_run(folder / f"judge-{seed}", make_trained(processor, seed=seed)), image_reader(data).store
    return ContrastiveRetrieval(
        load_judge(run, processor, store, "contrastive"), caption_store(data, processor), store, 1
    )


def test_a_contrastive_judge_scores_captions_by_embeddings_alone(data, tmp_path):
    made = make_contrastive(data, tmp_path)
    texts = texts_of([5, 6], [7], [5, 6], [8, 9, 10])
    owners, images = np.array([0, 0, 2, 3]), np.array([[4, 0, 1]] * 2 + [[1, 3, 2], [3, 4, 0]])
    reader = made.judge.processor.reader(made.store)
    found = embed_images(made.judge, reader.prefixes(made.captions.images_in(made.store, np.arange(5))))
    scores = similarity(made.judge, found, embed_texts(made.judge, texts)).numpy()
    wanted = self_retrieval(np.stack([scores[row, text] for text, row in enumerate(images)]), False)
    assert np.ptp(wanted) > 0.1 and made.rewards(texts, owners, images) == pytest.approx(wanted, abs=1e-4)


def test_a_contrastive_judge_encodes_each_image_once_for_all_runs_and_each_caption_once(data, tmp_path):
    owners, images = np.array([0, 0, 3]), np.array([[0, 1, 2]] * 2 + [[3, 4, 0]])
    made, rows = make_contrastive(data, tmp_path), []
    again = ContrastiveRetrieval(load_model(made.judge.weights.parents[2]), made.captions, made.store, 1)
    before = made.rewards(texts_of([5, 6], [7], [8]), owners, images)
    again.judge.model.register_forward_pre_hook(lambda _, batch: rows.append(batch[0].layout.text_lengths.tolist()))
    assert again.rewards(texts_of([5, 6], [7], [8]), owners, images).tolist() == before.tolist()
    assert rows == [[3, 2, 2]]
    other = make_contrastive(data, tmp_path, seed=8)
    assert not np.array_equal(other.images, made.images), "another judge has its own file"


def test_a_contrastive_judge_must_align_and_tell_images_apart(data, tmp_path):
    run = write_run(tmp_path / "judge", make_trained(make_processor(matches=True)))
    with pytest.raises(UserError, match="was not trained to align; give a run with contrastive alignment"):
        load_judge(run, make_processor(captions=True), image_reader(data).store, "contrastive")
    with pytest.raises(ValueError, match="among is 1; set among to 2 or more"):
        RetrievalReward(weight=1, among=1, by="contrastive")


def test_a_false_detail_costs_even_where_no_other_image_fits_better():
    true, false = self_retrieval(np.array([[4.0, -9.0, -9.0], [-2.0, -9.0, -9.0]]))
    assert true > 0.9 and false < 0


@pytest.mark.parametrize("budget", [1, 40, 8192])
@pytest.mark.parametrize("shared", [True, False])
def test_captions_are_scored_with_each_image_as_pairs_alone(data, monkeypatch, shared, budget):
    monkeypatch.setattr(retrieval, "ROW_BUDGET", budget)
    made = make_retrieval(data, shared)
    texts = texts_of([5, 6], [7], [5, 6], [], [5, 6], [8, 9, 10])  # two equal ones, and an empty one
    owners, images = np.array([0, 0, 0, 2, 2, 3]), np.array([[4, 0, 1]] * 3 + [[1, 3, 2]] * 2 + [[3, 4, 0]])
    trained, reader, store = made.judge, made.judge.processor.reader(made.store), made.store
    alone = np.array(
        [
            [
                match_logits(trained, reader.prefixes(made.captions.images_in(store, np.array([i]))), [text])[0]
                for i in row
            ]
            for text, row in zip(texts, images, strict=True)
        ]
    )
    assert np.ptp(alone) > 0.5
    # fp32: batches of other sizes sum in another order
    assert made.rewards(texts, owners, images) == pytest.approx(self_retrieval(alone), abs=1e-5)
    assert len(made.rewards([], np.zeros(0, int), np.zeros((0, 3), int))) == 0


def test_a_caption_without_an_end_is_judged_without_the_word_that_is_one_too_many(data):
    made, owners, images = make_retrieval(data), np.zeros(2, dtype=int), np.array([[0, 1]] * 2)
    longest = made.judge.processor.text_tokens
    cut, whole = made.rewards(texts_of([5] * longest + [6], [5] * longest), owners, images)
    assert cut == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_a_prefix_is_computed_once_for_its_captions_if_the_judge_shares_it(data, shared):
    made, rows = make_retrieval(data, shared), []
    made.judge.model.register_forward_pre_hook(lambda _, batch: rows.append(batch[0].layout))
    texts, owners = texts_of([5, 6], [7], [5, 6, 7]), np.zeros(3, dtype=int)
    made.rewards(texts, owners, np.array([[0, 2]] * 3))
    found = made.judge.processor.reader(made.store).prefixes(made.captions.images_in(made.store, np.array([0, 2])))
    prefixes = sum(len(prefix.features) + len(prefix.context) for prefix in found)
    words = 2 * sum(len(text) + 1 for text in texts)
    assert sum(layout.num_rows for layout in rows) == prefixes * (1 if shared else 3) + words


def test_equal_captions_of_an_image_are_judged_once(data):
    made, rows = make_retrieval(data), []
    made.judge.model.register_forward_pre_hook(lambda _, batch: rows.append(len(batch[0].layout.text_lengths)))
    made.rewards(texts_of([5], [5], [6], [5]), np.array([0, 0, 0, 1]), np.array([[0, 1]] * 3 + [[1, 2]]))
    assert sum(rows) == 2 * 3


# --- the images to choose from


def test_the_other_images_are_drawn_by_seed_epoch_and_image(data):
    source = make_source(data, among=4)
    drawn = [source.build(epoch, index).target.others for epoch in range(40) for index in range(5)]
    assert all(len({index % 5, *others}) == 4 for index, others in enumerate(drawn))
    assert np.bincount(np.concatenate(drawn), minlength=5) == pytest.approx(120, abs=30)
    assert drawn == [source.build(epoch, index).target.others for epoch in range(40) for index in range(5)]
    assert drawn != [
        make_source(data, 4, seed=5).build(epoch, index).target.others for epoch in range(40) for index in range(5)
    ]
    assert make_source(data, among=1).build(0, 1).target.others == ()


def test_of_groups_of_several_images_those_that_share_none_are_compared_where_there_are_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(self_critical, "TRIES", 200)  # of 10, all fail now and then where few groups share none
    source, kinds = make_source(make_several(make_data(tmp_path)), among=3), set()
    for group in range(len(source)):
        free = {other for other in range(len(source)) if not source.texts.share_images(group, other)}
        drawn = [set(source.others(epoch, group)) for epoch in range(10)]
        assert all(len(others) == 2 and group not in others for others in drawn)
        assert len(free) < 2 or all(others <= free for others in drawn)
        kinds.add(len(free) < 2)
    assert kinds == {True, False}


def test_the_captions_that_are_drawn_do_not_depend_on_the_other_images(data):
    alone, among = (make_source(data, number).build(1, 2).target.numbers for number in (1, 4))
    np.testing.assert_array_equal(alone, among)


def test_fewer_images_than_to_choose_from_are_refused(data):
    with pytest.raises(UserError, match=r"self_critical\.retrieval\.among is 6 .* set it to at most 5"):
        make_source(data, among=6)


# --- in training


def retrieving(data, shared=True):
    task = make_task()
    task.retrieval = make_retrieval(data, shared)
    return task


@pytest.mark.parametrize("shared", [True, False])
def test_other_examples_in_the_batch_do_not_change_the_mixed_reward(data, shared):
    task, source = retrieving(data, shared), make_source(data)
    whole = task(whole_batch(source, task))
    parts = [task(collate([source.build(0, index)], task.shape)) for index in range(len(source))]
    assert whole.keys() == {OBJECTIVE, REWARD, CIDER, RETRIEVAL}
    for name, value in whole.items():
        # fp32 sums in another order, over about 15 captions of 6 words
        torch.testing.assert_close(sum(part[name] for part in parts), value, atol=2e-3, rtol=1e-5)
    assert whole[REWARD].item() == pytest.approx(whole[CIDER].item() + 2 * whole[RETRIEVAL].item(), abs=1e-4)
    assert abs(whole[RETRIEVAL].item()) > 0.1
    empty = task(collate([], task.shape))
    assert {name: value.item() for name, value in empty.items()} == dict.fromkeys(whole, 0.0)


def test_a_judge_sees_the_words_of_a_caption_and_not_whether_it_ended(data):
    task = retrieving(data)
    end, others = task.processor.tokenizer.sep, torch.tensor([[1, 2]] * 2)
    targets = SampleTargets(torch.zeros(2).long(), torch.zeros(2).long(), torch.zeros(2, LONGEST), others)
    whole, cut = task.rewards([(7, 8, end), (7, 8)], targets)[RETRIEVAL]
    assert whole == cut


def test_a_judge_is_no_part_of_what_is_trained_or_saved(data):
    task, plain = retrieving(data), make_task()
    assert [name for name, _ in task.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert task.state_dict().keys() == plain.state_dict().keys()
    before = {name: weight.clone() for name, weight in task.retrieval.judge.model.state_dict().items()}
    task(whole_batch(make_source(data), task))[OBJECTIVE].backward()
    judge = task.retrieval.judge.model
    assert all(torch.equal(before[name], weight) for name, weight in judge.state_dict().items())
    assert all(weight.grad is None for weight in judge.parameters())
    assert task.model.encoder.layers[0].qkv.language.weight.grad.abs().sum() > 0


def test_the_expected_gradient_of_the_mixed_reward_is_the_exact_policy_gradient(data):
    """As for CIDEr-D alone: all 21 texts that end or are truncated within two words, and all 441 pairs of them."""
    world = Enumerable(longest=2)
    world.task.reward = CiderD([[[3, 4, 1], [4, 1]], [[3, 1]], [[5, 6, 1]]]).scores
    world.task.retrieval = make_retrieval(data)
    number = len(world.texts)
    targets = SampleTargets(
        torch.zeros(number).long(), torch.zeros(number).long(), torch.zeros(number, 2), torch.tensor([[3, 4]] * number)
    )
    rewards = world.task.rewards(world.texts, targets)
    assert np.std(rewards[RETRIEVAL]) > 0.01 and np.std(rewards[CIDER]) > 0.01
    mixed = rewards[REWARD]
    exact = gradient_of((world.log_probabilities().double().exp() * torch.from_numpy(mixed)).sum(), world.task.model)
    log_probabilities = world.log_probabilities().double()
    one, other = (part.flatten() for part in torch.meshgrid(*[torch.arange(number)] * 2, indexing="ij"))
    pairs = torch.stack([one, other], dim=1).flatten()
    of_pair = (log_probabilities[one] + log_probabilities[other]).exp().detach().repeat_interleave(2)
    loss = self_critical_loss(of_pair * log_probabilities[pairs], mixed[pairs], np.repeat(np.arange(number**2), 2))
    expected = gradient_of(loss / 2, world.task.model)  # a pair has two targets
    assert exact.abs().max() > 1e-3
    # the model computes in fp32
    torch.testing.assert_close(expected, -exact, atol=1e-5, rtol=1e-3)


# --- the judge


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matches": False}, "has no matching head; give a pretraining run or its export"),
        ({"text_tokens": 8}, r"was trained with inputs\.text_tokens 8, less than the captioner's 16; give another"),
        ({"max_images": 1}, r"was trained with inputs\.max_images 1, less than the captioner's 4; give another"),
        (
            {"tokenizer": Tokenizer.train(["other words"], 50)},
            "has a different tokenizer from the captioner; give a judge with the same one",
        ),
        (
            {"extractor": replace(make_extractor(), name="old", fingerprint="e" * 64)},
            r"was trained on regions of old, and \S+ was made by fake \(weights f+, not e+\); give a judge that was",
        ),
    ],
)
def test_a_judge_that_cannot_judge_is_refused_in_one_sentence(data, tmp_path, changes, message):
    run = write_run(tmp_path / "judge", make_trained(replace(make_processor(matches=True), **changes)))
    with pytest.raises(UserError, match=rf"^self_critical\.retrieval\.judge \S+judge {message}"):
        load_judge(run, make_processor(captions=True), image_reader(data).store)


def test_a_judge_may_take_more_regions_and_other_tags_than_the_captioner(data, tmp_path):
    run = write_run(tmp_path / "judge", make_trained(make_processor(matches=True, concepts="none", max_regions=20)))
    judge = load_judge(run, make_processor(captions=True), image_reader(data).store)
    made = MatchingRetrieval(judge, caption_store(data, judge.processor), image_reader(data).store, 1.0)
    assert made.rewards(texts_of([5, 6]), np.zeros(1, int), np.array([[0, 1]])).shape == (1,)
