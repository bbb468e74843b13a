"""Examples of the objectives, what the model sees of them, and how their losses add up."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from dimvl.data.examples import collate
from dimvl.data.text_store import TextStore
from dimvl.objectives import (
    mask_tokens,
    normalise,
)
from dimvl.tasks.answering.training import QuestionSource, VqaModule, answer_logits
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.pretraining.config import ContrastiveConfig, ObjectivesConfig, SharesConfig
from dimvl.tasks.pretraining.training import PretrainModule, PretrainSource
from tests.factories import ATTRIBUTES, CLASSES, make_model, make_processor, make_tokenizer
from tests.tiny_runs import all_costs, caption_store, image_reader, make_data

TOKENIZER = make_tokenizer()
LONG = np.array(TOKENIZER.encode("the small star is above a large blue square " * 12))


# --- examples


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 8, empty=3)


def make_source(data, objective=None, **config):
    processor = make_processor()
    shares = {name: float(objective in (None, name)) for name in SharesConfig.model_fields}
    groups = ContrastiveConfig(group=3)
    settings = ObjectivesConfig(shares=SharesConfig(**shares), contrastive=groups).model_copy(update=config)
    arguments = (caption_store(data, processor), image_reader(data, processor), settings, Seq2seqConfig(captions=2))
    return PretrainSource(*arguments, processor.tokenizer, 1)


def make_task(**config):
    heads = {"word_head": True, "match_head": True, "classes": len(CLASSES), "aligned": 8}
    model = make_model(len(TOKENIZER), vocabulary=len(TOKENIZER), **heads)
    return PretrainModule(model, make_processor(), ObjectivesConfig(**config))


def objectives(source, epoch):
    """Names of the objectives of all examples in an epoch."""
    return [list(source.shares)[number] for number in source.objectives(epoch, slice(0, len(source)))]


def text_of(example):
    return tuple(example.texts[0].token_ids[:-1].tolist())


def captions_by_image(source):
    store = source.texts
    groups = store.groups
    return [
        {tuple(store.tokens(text).tolist()) for text in range(groups[index], groups[index + 1])}
        for index in range(len(source))
    ]


def test_a_negative_is_never_a_text_of_the_same_image_and_half_of_the_pairs_are_negative(data):
    source = make_source(data, "matching")
    own, matches = captions_by_image(source), Counter()
    for epoch in range(100):
        for index in range(len(source)):
            example = source.build(epoch, index)
            matches[example.target.labels[0]] += 1
            assert (text_of(example) in own[index]) == (example.target.labels == [1])
    assert matches[1.0] / 800 == pytest.approx(0.5, abs=0.071)  # four standard deviations


def test_on_a_shared_prefix_each_text_has_its_own_label_and_last_row(data):
    source, shape = make_source(data, "matching", shared_prefix=True), make_task().shape
    own, labels = captions_by_image(source), Counter()
    for epoch in range(20):
        examples = [source.build(epoch, index) for index in range(len(source))]
        batch = collate(examples, shape)
        texts = [text for example in examples for text in example.texts]
        targets = batch.targets["matching"]
        ends = batch.layout.text_starts + batch.layout.text_lengths - 1
        assert targets.rows.tolist() == ends.tolist() and len(texts) > len(examples)
        assert batch.layout.seq2seq.all()
        assert targets.labels.tolist() == [label for example in examples for label in example.target.labels]
        for index, example in enumerate(examples):
            assert collate([example], shape).layout.num_rows <= all_costs(source, epoch)[index]
            for text, label in zip(example.texts, example.target.labels, strict=True):
                assert (tuple(text.token_ids[:-1].tolist()) in own[index]) == (label == 1)
                labels[label] += 1
    assert min(labels[0.0], labels[1.0]) > 0.35 * labels.total()


def test_word_change_negatives_differ_in_one_word_from_a_caption_of_the_image(data, tmp_path):
    pairs = [("red", "blue"), ("small", "large"), ("circle", "star"), ("a", "two"), ("is", "above")]
    changes = tmp_path / "changes.json"
    changes.write_text(json.dumps([*pairs, *((new, old) for old, new in pairs)]))
    source = make_source(data, "matching", negative_share=1.0, word_change_share=0.5, word_changes=changes)
    own, changed = captions_by_image(source), 0
    for epoch in range(50):
        for index in range(len(source)):
            example = source.build(epoch, index)
            text = text_of(example)
            near = [t for t in own[index] if len(t) == len(text) and sum(map(int.__ne__, t, text)) == 1]
            changed += bool(near)
            assert example.target.labels == [0]
    assert changed / 400 == pytest.approx(0.5, abs=0.11)


def write_captions(data, texts):
    """Replace the captions of each image by a list of texts."""
    captions = [(image, text) for image, own in enumerate(texts, start=1) for text in own]
    data.captions.write_text(
        json.dumps(
            {"annotations": [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(captions)]}
        )
    )


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_repeated_text_of_the_same_image_is_not_a_negative(tmp_path, share):
    data = make_data(tmp_path, 4)
    write_captions(data, [["a red star", "a blue star"], ["a red star"], ["a blue star", "a star"], ["a red star"]])
    changes = tmp_path / "changes.json"
    changes.write_text(json.dumps([("red", "blue"), ("blue", "red")]))
    source = make_source(data, "matching", negative_share=1.0, word_change_share=share, word_changes=changes)
    own, matches = captions_by_image(source), Counter()
    for epoch in range(50):
        for index in range(4):
            example = source.build(epoch, index)
            assert (text_of(example) in own[index]) == (example.target.labels == [1])
            matches[example.target.labels[0]] += 1
    assert matches[0.0] > 150


def test_a_data_set_with_one_image_or_one_text_has_no_negatives(tmp_path):
    same = make_data(tmp_path / "same", 3)
    write_captions(same, [["a red star"]] * 3)
    assert make_source(same, "matching", negative_share=1.0).build(0, 0).target.labels == [1]

    source = make_source(make_data(tmp_path, 1), "matching", negative_share=1.0)
    assert source.build(0, 0).target.labels == [1]


def test_a_pair_that_may_be_mismatched_has_no_other_target(data):
    source, task = make_source(data, "matching"), make_task()
    counts = collate([source.build(0, index) for index in range(len(source))], task.shape).counts()
    assert counts == {"masked_lm": 0, "seq2seq_lm": 0, "masked_object": 0, "matching": 8, "contrastive": 0}


def test_one_modality_is_masked_at_a_time(data):
    for objective in ("masked_lm", "seq2seq_lm", "masked_object"):
        source = make_source(data, objective)
        own = captions_by_image(source)
        for index in (0, 1, 3, 4):
            example = source.build(0, index)
            assert example.prefix.hidden.any() == (objective == "masked_object")
            if objective == "masked_object":
                assert text_of(example) in own[index]


def test_only_drawn_regions_are_targets_however_many_are_hidden(data):
    source, more = make_source(data, "masked_object"), 0
    for epoch in range(20):
        example = source.build(epoch, 5)
        hidden = np.flatnonzero(example.prefix.hidden)
        assert set(example.target.regions.tolist()) <= set(hidden.tolist())
        batch = collate([example], make_task().shape)
        assert len(batch.targets["masked_object"].rows) == len(example.target.regions) == 1
        more += len(hidden) > 1
    assert more, "some regions are hidden without being targets"


def test_tags_come_from_visible_regions_only(data):
    source = make_source(data, "masked_object")
    words = {name: TOKENIZER.encode(name)[0] for name in (*CLASSES, *ATTRIBUTES)}
    for epoch in range(30):
        for index in (0, 1, 3, 4):
            example = source.build(epoch, index)
            [regions] = source.images.read(source.prefix_images(np.array([index])))
            seen = ~example.prefix.hidden
            visible = {words[CLASSES[i]] for i in regions.class_ids[seen, 0]}
            visible |= {words[ATTRIBUTES[i]] for i in regions.attribute_ids[seen].flatten()}
            assert set(example.prefix.context[1:-1].tolist()) <= visible


def test_an_image_whose_regions_are_not_used_gets_a_word_objective(data):
    source = make_source(data, "masked_object")
    assert objectives(source, 0) == ["masked_object"] * 2 + ["masked_lm"] + ["masked_object"] * 5  # image 3 has none
    assert source.build(0, 2).objective == "masked_lm"
    source.images.max_regions = 0
    example = source.build(1, 0)
    assert example.objective == "masked_lm" and len(example.prefix.features) == 0 and len(example.texts[0].places)


def test_objectives_are_drawn_by_their_shares(data):
    source = make_source(data, shares=SharesConfig(masked_lm=1, seq2seq_lm=2, masked_object=0, matching=1))
    drawn = Counter(name for epoch in range(250) for name in objectives(source, epoch))
    assert drawn["seq2seq_lm"] / 2000 == pytest.approx(0.5, abs=0.045)
    assert drawn["masked_lm"] / 2000 == pytest.approx(0.25, abs=0.039)
    assert "masked_object" not in drawn
    assert [source.build(7, index).objective for index in range(8)] == objectives(source, 7)


# --- labels and inputs


def inputs(batch):
    names = ("region_features", "region_geometry", "region_hidden", "token_ids", "positions", "segments")
    return [getattr(batch, name) for name in names]


def test_the_input_of_a_hidden_region_does_not_depend_on_its_class(data):
    source, task = make_source(data, "masked_object"), make_task()
    example = source.build(0, 5)
    before = collate([example], task.shape)
    hidden = example.prefix.hidden
    read = source.images.read

    def other_classes(positions):
        [regions] = read(positions)
        regions.class_ids[hidden] = (regions.class_ids[hidden] + 1) % 3
        regions.class_scores[hidden] = [0.5, 0.375]
        regions.attribute_ids[hidden] = [0, 2]
        regions.features[hidden] += 1
        return [regions]

    source.images.read = other_classes
    try:
        after = collate([source.build(0, 5)], task.shape)
    finally:
        source.images.read = read
    assert not torch.equal(
        before.targets["masked_object"].class_probabilities, after.targets["masked_object"].class_probabilities
    )
    assert all(torch.equal(a, b) for a, b in zip(inputs(before)[1:], inputs(after)[1:], strict=True))
    assert torch.equal(task.model(before), task.model(after)), "not even the features, which are in the batch"


def test_answers_change_no_input(data, monkeypatch):
    processor = make_processor(answers=("yes", "no"))
    questions = caption_store(data, processor)
    source = QuestionSource(questions, image_reader(data, processor), processor)
    batches = []
    for labels in ((np.array([0]), np.array([1.0])), (np.array([1, 0]), np.array([0.3, 0.6]))):
        monkeypatch.setattr(TextStore, "labels", lambda self, text, labels=labels: labels)
        shape = VqaModule(make_model(answers=2), processor).shape
        batches.append(collate([source.build(0, index) for index in range(4)], shape))
    assert not torch.equal(batches[0].targets["answers"].scores, batches[1].targets["answers"].scores)
    assert all(torch.equal(a, b) for a, b in zip(*map(inputs, batches), strict=True))


@pytest.mark.parametrize("shared", [False, True])
def test_each_question_occurs_once_and_has_the_logits_that_it_has_alone(data, shared):
    processor = make_processor(answers=("yes", "no"), shared_prefix=shared)
    source = QuestionSource(caption_store(data, processor), image_reader(data, processor), processor)
    model = make_model(answers=2, vocabulary=len(TOKENIZER))
    task = VqaModule(model, processor)
    examples = [source.build(0, index) for index in range(len(source))]
    assert len(examples) == (8 if shared else len(source.texts))
    costs = all_costs(source, 0)
    together, alone = answer_logits(task.model, collate(examples, task.shape)), []
    for example, cost in zip(examples, costs, strict=True):
        rows = len(example.prefix.features) + len(example.prefix.context)
        assert rows + sum(len(text.token_ids) for text in example.texts) <= cost
        for text in example.texts:
            one = replace(example, texts=[text], target=None)
            alone.append(answer_logits(task.model, collate([one], task.shape)))
    texts = [text.token_ids[:-1].tolist() for example in examples for text in example.texts]
    assert texts == [source.texts.tokens(number).tolist() for number in range(len(source.texts))]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-4)  # fp32, another order of sums


def test_the_input_does_not_depend_on_the_masked_word(data):
    masked = mask_tokens(LONG, np.random.default_rng(1), TOKENIZER, 0.15)
    place = masked.places[masked.token_ids[masked.places] == TOKENIZER.mask][0]
    other = LONG.copy()
    other[place] = TOKENIZER.encode("circle")[0]
    again = mask_tokens(other, np.random.default_rng(1), TOKENIZER, 0.15)
    assert other[place] != LONG[place]
    assert np.array_equal(masked.token_ids, again.token_ids) and not np.array_equal(masked.labels, again.labels)


# --- accounting


def gradients(task, batches, counts):
    task.zero_grad()
    total = 0.0
    for batch in batches:
        loss = normalise(task(batch), counts, task.weights)
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad.clone() for name, parameter in task.named_parameters()}


def test_uneven_micro_batches_give_the_loss_and_gradient_of_one_large_batch(data):
    source, task = make_source(data), make_task(weights={"masked_lm": 0.5, "object_feature": 2.0})
    items = [source.build_all(epoch, np.array([index])) for epoch in range(3) for index in range(8)]
    whole, *cuts = (
        collate([example for item in items[a:b] for example in item], task.shape)
        for a, b in ((0, 24), (0, 1), (1, 9), (9, 9), (9, 24))
    )
    assert all(whole.counts().values())
    loss, wanted = gradients(task, [whole], whole.counts())
    split_loss, split = gradients(task, cuts, whole.counts())
    assert split_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in wanted.items():
        # fp32: sums are taken in another order
        torch.testing.assert_close(split[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_the_loss_is_the_weighted_sum_of_means_over_targets():
    losses = {"a": torch.tensor(6.0), "b/class": torch.tensor(4.0), "b/feature": torch.tensor(8.0)}
    weights = {"a": 0.5, "b/class": 1.0, "b/feature": 2.0}
    assert normalise(losses, {"a": 3, "b": 4}, weights).item() == pytest.approx(1 + 1 + 4)


@pytest.mark.parametrize("objective", ["masked_lm", "seq2seq_lm", "masked_object", "matching", "contrastive"])
def test_objectives_without_targets_add_a_connected_zero(data, objective):
    source, task = make_source(data, objective), make_task()
    batch = collate(source.build_all(0, np.array([0])), task.shape)
    losses = task(batch)
    for name, loss in losses.items():
        assert loss.requires_grad and loss.isfinite()
        assert (loss.item() == 0) == (name.partition("/")[0] != objective)
    normalise(losses, batch.counts(), task.weights).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())


def test_a_rank_without_examples_has_a_connected_zero_loss_and_zero_gradients():
    task = make_task()
    batch = collate([], task.shape)
    loss = normalise(task(batch), dict.fromkeys(batch.counts(), 5), task.weights)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in task.parameters())
