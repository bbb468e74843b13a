import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from dimvl.config import ObjectivesConfig, Seq2seqConfig, SharesConfig
from dimvl.data.documents import collate
from dimvl.data.text_store import TextStore
from dimvl.errors import UserError
from dimvl.model.heads import ObjectPrediction
from dimvl.objectives import (
    WordChanges,
    answer_loss,
    class_distribution,
    hide_regions,
    mask_tokens,
    match_loss,
    normalise,
    object_class_loss,
    object_feature_loss,
    word_loss,
)
from dimvl.regions.geometry import area, intersection
from dimvl.tasks.answering import QuestionSource, VqaTask
from dimvl.tasks.base import seq2seq_text
from dimvl.tasks.pretraining import PretrainSource, PretrainTask
from tests.factories import ATTRIBUTES, CLASSES, make_model, make_processor, make_regions, make_tokenizer
from tests.tiny_runs import caption_store, image_reader, make_data

TOKENIZER = make_tokenizer()
LONG = np.array(TOKENIZER.encode("the small star is above a large blue square " * 12))


# --- masking of words


def test_fifteen_per_cent_of_the_tokens_are_chosen_and_never_none():
    for length, wanted in ((1, 1), (3, 1), (10, 2), (20, 3), (100, 15)):
        places = mask_tokens(LONG[:length], np.random.default_rng(length), TOKENIZER, 0.15).places
        assert len(places) == len(set(places.tolist())) == wanted and places.max() < length


def test_of_the_chosen_tokens_80_per_cent_are_masked_10_random_and_10_kept():
    fates, replaced = Counter(), Counter()
    for seed in range(1000):
        masked = mask_tokens(LONG, np.random.default_rng(seed), TOKENIZER, 0.15)
        for new, old in zip(masked.token_ids[masked.places], masked.labels, strict=True):
            fates["mask" if new == TOKENIZER.mask else "same" if new == old else "random"] += 1
            if new not in (TOKENIZER.mask, old):
                replaced[int(new)] += 1
    total = sum(fates.values())
    assert total > 15_000
    # four standard deviations of a share at this many draws: .013 and .010; a random token is the same one seldom
    assert fates["mask"] / total == pytest.approx(0.8, abs=0.013)
    assert fates["random"] / total == pytest.approx(0.1, abs=0.011)
    assert fates["same"] / total == pytest.approx(0.1, abs=0.011)
    assert not TOKENIZER.special_ids & set(replaced), "special tokens are never chosen at random"
    assert len(replaced) == len(TOKENIZER) - len(TOKENIZER.special_ids), "every ordinary token is"


def test_labels_are_the_original_tokens_and_the_rest_stays():
    before = LONG.copy()
    masked = mask_tokens(LONG, np.random.default_rng(0), TOKENIZER, 0.5)
    assert np.array_equal(LONG, before), "the caller's tokens are not touched"
    assert np.array_equal(masked.labels, LONG[masked.places])
    others = np.setdiff1d(np.arange(len(LONG)), masked.places)
    assert np.array_equal(masked.token_ids[others], LONG[others])


def test_every_token_is_chosen_equally_often():
    counts = np.zeros(20)
    for seed in range(2000):
        counts[mask_tokens(LONG[:20], np.random.default_rng(seed), TOKENIZER, 0.15).places] += 1
    assert counts / 2000 == pytest.approx(np.full(20, 0.15), abs=0.035)  # four standard deviations


def test_whole_words_are_chosen_with_all_their_pieces():
    tokens = np.array(TOKENIZER.encode("starcircle a squareblue star a redsquare"))
    word = np.cumsum([not TOKENIZER.continues_word(int(token)) for token in tokens])
    assert word.max() < len(tokens)
    split = 0
    for seed in range(50):
        places = mask_tokens(tokens, np.random.default_rng(seed), TOKENIZER, 0.15, whole_words=True).places
        chosen = set(word[places].tolist())
        assert np.array_equal(places, np.flatnonzero(np.isin(word, sorted(chosen))))
        single = mask_tokens(tokens, np.random.default_rng(seed), TOKENIZER, 0.15).places
        split += not np.array_equal(single, np.flatnonzero(np.isin(word, word[single])))
    assert split, "without the option words are split"


def test_an_empty_text_has_nothing_to_predict():
    masked = mask_tokens(LONG[:0], np.random.default_rng(0), TOKENIZER, 0.15)
    assert len(masked.token_ids) == len(masked.places) == len(masked.labels) == 0


def test_the_masked_variant_predicts_the_final_sep_too():
    words, seps = LONG[:4], 0
    for seed in range(40):
        text = seq2seq_text(words, np.random.default_rng(seed), TOKENIZER, "masked", 0.5)
        assert len(text.token_ids) == 5 and len(text.places) == 2 and not text.has_start
        assert np.array_equal(text.labels, np.append(words, TOKENIZER.sep)[text.places])
        seps += 4 in text.places
    assert 8 <= seps <= 24  # 16 expected of 40


# --- hiding of regions


def random_boxes(generator):
    """Boxes with much overlap, twins and a whole-image region."""
    corners = generator.random((int(generator.integers(1, 25)), 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    twins = boxes[: len(boxes) // 3] + generator.normal(scale=0.01, size=(len(boxes) // 3, 4)).astype(np.float32)
    return np.concatenate([boxes, twins.clip(0, 1), [[0, 0, 1, 1]]]).astype(np.float32)


@pytest.mark.parametrize("max_cover", [0.5, 0.2])
def test_no_visible_box_covers_more_than_the_limit_of_a_target(max_cover):
    spared = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        boxes = random_boxes(generator)
        targets, hidden = hide_regions(boxes, generator, 0.15, max_cover)
        assert len(set(targets.tolist())) == max(1, round(0.15 * len(boxes)))
        assert hidden[targets].all()
        covered = intersection(boxes, boxes[targets]) / np.maximum(area(boxes[targets]), 1e-12)
        assert (covered[~hidden] <= max_cover + 1e-5).all()
        assert hidden[-1], "a whole-image region covers every target"
        others = np.setdiff1d(np.flatnonzero(hidden), targets)
        assert (covered[others].max(axis=1, initial=0) > max_cover - 1e-5).all(), "nothing is hidden without need"
        spared += (~hidden).sum()
    assert spared > 500, "and most regions stay visible"


def test_one_region_alone_is_a_target():
    targets, hidden = hide_regions(np.array([[0.1, 0.1, 0.5, 0.5]]), np.random.default_rng(0), 0.15, 0.5)
    assert targets.tolist() == [0] and hidden.tolist() == [True]


def test_a_small_box_inside_a_target_stays_and_a_large_box_around_it_goes():
    boxes = np.array([[0.4, 0.4, 0.6, 0.6], [0.45, 0.45, 0.5, 0.5], [0.3, 0.3, 0.7, 0.7], [0.5, 0.4, 0.7, 0.6]])
    for seed in range(20):
        targets, hidden = hide_regions(boxes, np.random.default_rng(seed), 0.25, 0.5)
        if targets.tolist() == [0]:
            assert hidden.tolist() == [True, False, True, False]  # the last covers exactly half: allowed
            return
    pytest.fail("the first box was never drawn")


def test_class_distributions_keep_the_mass_of_other_classes_apart():
    regions = make_regions(0, count=2)
    regions.class_ids[:] = [[2, 0], [1, -1]]
    regions.class_scores[:] = [[0.5, 0.25], [0.75, 0.0]]
    np.testing.assert_allclose(
        class_distribution(regions, np.array([1, 0]), 3), [[0, 0.75, 0, 0.25], [0.25, 0, 0.5, 0.25]]
    )


def test_a_class_distribution_sums_to_one_even_where_half_precision_scores_do_not():
    regions = make_regions(0, count=1)
    regions.class_scores[:] = [[0.7, 0.301]]
    distribution = class_distribution(regions, np.array([0]), 3)
    assert distribution.sum() == pytest.approx(1, abs=1e-6) and (distribution >= 0).all()
    regions.class_ids[:] = -1
    assert class_distribution(regions, np.array([0]), 3).tolist() == [[0, 0, 0, 1]]


# --- losses by hand


def test_word_loss_is_the_summed_cross_entropy():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])  # probabilities 1/4, 3/4 and 1/2, 1/2
    assert word_loss(logits, torch.tensor([1, 0])).item() == pytest.approx(-math.log(0.75) - math.log(0.5))


def test_label_smoothing_spreads_its_share_evenly_over_all_words():
    logits = torch.tensor([[0.0, math.log(3)]])
    wanted = -(0.9 + 0.05) * math.log(0.75) - 0.05 * math.log(0.25)
    assert word_loss(logits, torch.tensor([1]), 0.1).item() == pytest.approx(wanted)


def test_object_class_loss_is_the_summed_divergence_from_the_detector():
    prediction = ObjectPrediction(torch.tensor([[0.0, 0.0, math.log(2)]] * 2), torch.zeros(2, 1))  # 1/4, 1/4, 1/2
    detector = torch.tensor([[0.5, 0.0, 0.5], [0.25, 0.25, 0.5]])
    assert object_class_loss(prediction, detector).item() == pytest.approx(0.5 * math.log(2))


def test_object_feature_loss_is_the_mean_over_features_summed_over_regions():
    prediction = ObjectPrediction(torch.zeros(2, 3), torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    assert object_feature_loss(prediction, torch.tensor([[0.0, 0.0], [0.0, 3.0]])).item() == pytest.approx(2.5 + 4.5)


def test_match_loss_is_the_summed_binary_cross_entropy():
    logits = torch.tensor([math.log(3), math.log(3)])
    assert match_loss(logits, torch.tensor([1.0, 0.0])).item() == pytest.approx(-math.log(0.75) - math.log(0.25))


def test_answer_loss_is_summed_over_answers_and_keeps_questions_without_a_known_answer():
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    scores = torch.tensor([[0.6, 0.0], [0.0, 0.0]])
    first = -0.6 * math.log(0.75) - 0.4 * math.log(0.25) + math.log(2)
    assert answer_loss(logits, scores).item() == pytest.approx(first - math.log(0.25) + math.log(2))


# --- word changes


def test_one_word_is_changed_to_a_partner_of_its_own():
    changes = WordChanges([("red", "blue"), ("blue", "red"), ("circle", "star"), ("circle", "square")], TOKENIZER)
    words, seen = np.array(TOKENIZER.encode("a small red circle above")), set()
    for seed in range(60):
        changed = changes.change(words, np.random.default_rng(seed))
        assert (changed != words).sum() == 1
        seen.add(TOKENIZER.decode(changed.tolist()))
    assert seen == {"a small blue circle above", "a small red star above", "a small red square above"}
    assert TOKENIZER.decode(words.tolist()) == "a small red circle above"


def test_a_text_without_a_changeable_word_is_left_and_long_words_are_refused():
    changes = WordChanges([("red", "blue")], TOKENIZER)
    assert changes.change(np.array(TOKENIZER.encode("a star")), np.random.default_rng(0)) is None
    for word in ("starcircle", "ж"):
        with pytest.raises(UserError, match=f"'{word}' is not one token"):
            WordChanges([("red", word)], TOKENIZER)


@pytest.mark.parametrize("pairs", [[["red"]], [["red", "blue", "star"]], [[1, 2]], [5], 5, {"red": "blue"}])
def test_what_is_no_pair_of_words_is_one_sentence(pairs):
    with pytest.raises(UserError, match=r"is no (list|pair of words); write"):
        WordChanges(pairs, TOKENIZER)


# --- documents


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 8, empty=3)


def make_source(data, objective=None, changes=None, **config):
    processor = make_processor()
    shares = {name: float(objective in (None, name)) for name in SharesConfig.model_fields}
    settings = ObjectivesConfig(shares=SharesConfig(**shares)).model_copy(update=config)
    arguments = (caption_store(data, processor), image_reader(data, processor), settings, Seq2seqConfig(captions=2))
    return PretrainSource(*arguments, processor.tokenizer, 1, changes)


def make_task(**config):
    model = make_model(len(TOKENIZER), vocabulary=len(TOKENIZER), word_head=True, match_head=True, classes=len(CLASSES))
    return PretrainTask(model, make_processor(), ObjectivesConfig(**config))


def objectives(source, epoch):
    """Names of the objectives of all documents in an epoch."""
    return [list(source.shares)[number] for number in source.objectives(epoch)]


def text_of(document):
    return tuple(document.texts[0].token_ids[:-1].tolist())


def captions_by_image(source):
    store = source.captions
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
            document = source.build(epoch, index)
            matches[document.match[0]] += 1
            assert (text_of(document) in own[index]) == (document.match == [1])
    assert matches[1.0] / 800 == pytest.approx(0.5, abs=0.071)  # four standard deviations


def test_behind_a_shared_prefix_each_text_is_labelled_by_itself_and_judged_from_its_own_last_row(data):
    source, shape = make_source(data, "matching", shared_prefix=True), make_task().shape
    own, labels = captions_by_image(source), Counter()
    for epoch in range(20):
        documents = [source.build(epoch, index) for index in range(len(source))]
        batch = collate(documents, shape)
        texts = [text for document in documents for text in document.texts]
        targets = batch.targets["matching"]
        ends = batch.layout.text_starts + batch.layout.text_lengths - 1
        assert targets.rows.tolist() == ends.tolist() and len(texts) > len(documents)
        assert batch.layout.seq2seq.all()
        assert targets.labels.tolist() == [label for document in documents for label in document.match]
        for index, document in enumerate(documents):
            assert collate([document], shape).layout.num_rows <= source.costs(epoch)[index]
            for text, label in zip(document.texts, document.match, strict=True):
                assert (tuple(text.token_ids[:-1].tolist()) in own[index]) == (label == 1)
                labels[label] += 1
    assert min(labels[0.0], labels[1.0]) > 0.35 * labels.total()


def test_negatives_of_changed_words_differ_in_one_word_from_a_caption_of_the_image(data):
    pairs = [("red", "blue"), ("small", "large"), ("circle", "star"), ("a", "two"), ("is", "above")]
    changes = WordChanges([*pairs, *((new, old) for old, new in pairs)], TOKENIZER)
    source = make_source(data, "matching", changes, negative_share=1.0, word_change_share=0.5)
    own, changed = captions_by_image(source), 0
    for epoch in range(50):
        for index in range(len(source)):
            document = source.build(epoch, index)
            text = text_of(document)
            near = [t for t in own[index] if len(t) == len(text) and sum(map(int.__ne__, t, text)) == 1]
            changed += bool(near)
            assert document.match == [0]
    assert changed / 400 == pytest.approx(0.5, abs=0.11)


def write_captions(data, texts):
    """Give each image other captions: one list of texts for each."""
    said = [(image, text) for image, own in enumerate(texts, start=1) for text in own]
    data.captions.write_text(
        json.dumps(
            {"annotations": [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(said)]}
        )
    )


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_words_that_an_image_has_too_are_no_negative_where_texts_repeat(tmp_path, share):
    data = make_data(tmp_path, 4)
    write_captions(data, [["a red star", "a blue star"], ["a red star"], ["a blue star", "a star"], ["a red star"]])
    changes = WordChanges([("red", "blue"), ("blue", "red")], TOKENIZER)
    source = make_source(data, "matching", changes, negative_share=1.0, word_change_share=share)
    own, matches = captions_by_image(source), Counter()
    for epoch in range(50):
        for index in range(4):
            document = source.build(epoch, index)
            assert (text_of(document) in own[index]) == (document.match == [1])
            matches[document.match[0]] += 1
    assert matches[0.0] > 150


def test_a_data_set_of_one_image_or_of_one_text_has_no_negatives(tmp_path):
    same = make_data(tmp_path / "same", 3)
    write_captions(same, [["a red star"]] * 3)
    assert make_source(same, "matching", negative_share=1.0).build(0, 0).match == [1]

    source = make_source(make_data(tmp_path, 1), "matching", negative_share=1.0)
    assert source.build(0, 0).match == [1]


def test_a_pair_that_may_be_mismatched_has_no_other_target(data):
    source, task = make_source(data, "matching"), make_task()
    counts = collate([source.build(0, index) for index in range(len(source))], task.shape).counts()
    assert counts == {"masked_lm": 0, "seq2seq_lm": 0, "masked_object": 0, "matching": 8}


def test_one_modality_is_masked_at_a_time(data):
    for objective in ("masked_lm", "seq2seq_lm", "masked_object"):
        source = make_source(data, objective)
        own = captions_by_image(source)
        for index in (0, 1, 3, 4):
            document = source.build(0, index)
            assert document.prefix.hidden.any() == (objective == "masked_object")
            if objective == "masked_object":
                assert text_of(document) in own[index]


def test_only_drawn_regions_are_scored_however_many_are_hidden(data):
    source, more = make_source(data, "masked_object"), 0
    for epoch in range(20):
        document = source.build(epoch, 5)
        hidden = np.flatnonzero(document.prefix.hidden)
        assert set(document.regions.tolist()) <= set(hidden.tolist())
        batch = collate([document], make_task().shape)
        assert len(batch.targets["masked_object"].rows) == len(document.regions) == 1
        more += len(hidden) > 1
    assert more, "some regions are hidden without being targets"


def test_tags_come_from_visible_regions_only(data):
    source = make_source(data, "masked_object")
    words = {name: TOKENIZER.encode(name)[0] for name in (*CLASSES, *ATTRIBUTES)}
    for epoch in range(30):
        for index in (0, 1, 3, 4):
            document = source.build(epoch, index)
            [regions] = source.images.read(source.positions[[index]])
            seen = ~document.prefix.hidden
            visible = {words[CLASSES[i]] for i in regions.class_ids[seen, 0]}
            visible |= {words[ATTRIBUTES[i]] for i in regions.attribute_ids[seen].flatten()}
            assert set(document.prefix.context[1:-1].tolist()) <= visible


def test_an_image_whose_regions_are_not_used_gets_a_word_objective(data):
    source = make_source(data, "masked_object")
    assert objectives(source, 0) == ["masked_object"] * 2 + ["masked_lm"] + ["masked_object"] * 5  # image 3 has none
    assert source.build(0, 2).objective == "masked_lm"
    source.images.max_regions = 0
    document = source.build(1, 0)
    assert document.objective == "masked_lm" and len(document.prefix.features) == 0 and len(document.texts[0].places)


def test_shares_hold_in_documents(data):
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


def test_what_the_model_sees_of_a_hidden_region_tells_nothing_of_its_class(data):
    source, task = make_source(data, "masked_object"), make_task()
    document = source.build(0, 5)
    before = collate([document], task.shape)
    hidden = document.prefix.hidden
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
    assert torch.equal(task.model(before), task.model(after)), "not even the features, which stand in the batch"


def test_answers_change_no_input(data, monkeypatch):
    processor = make_processor(answers=("yes", "no"))
    questions = caption_store(data, processor)
    source = QuestionSource(questions, image_reader(data, processor), processor)
    batches = []
    for labels in ((np.array([0]), np.array([1.0])), (np.array([1, 0]), np.array([0.3, 0.6]))):
        monkeypatch.setattr(TextStore, "labels", lambda self, text, labels=labels: labels)
        shape = VqaTask(make_model(answers=2), processor).shape
        batches.append(collate([source.build(0, index) for index in range(4)], shape))
    assert not torch.equal(batches[0].targets["answers"].scores, batches[1].targets["answers"].scores)
    assert all(torch.equal(a, b) for a, b in zip(*map(inputs, batches), strict=True))


@pytest.mark.parametrize("shared", [False, True])
def test_each_question_is_asked_once_and_answered_as_if_alone(data, shared):
    processor = make_processor(answers=("yes", "no"), shared_prefix=shared)
    source = QuestionSource(caption_store(data, processor), image_reader(data, processor), processor)
    model = make_model(answers=2, vocabulary=len(TOKENIZER))
    task = VqaTask(model, processor)
    documents = [source.build(0, index) for index in range(len(source))]
    assert len(documents) == (8 if shared else len(source.questions))
    costs = source.costs(0)
    together, alone = task.logits(collate(documents, task.shape)), []
    for document, cost in zip(documents, costs, strict=True):
        rows = len(document.prefix.features) + len(document.prefix.context)
        assert rows + sum(len(text.token_ids) for text in document.texts) <= cost
        for text in document.texts:
            one = replace(document, texts=[text], answers=None)
            alone.append(task.logits(collate([one], task.shape)))
    asked = [text.token_ids[:-1].tolist() for document in documents for text in document.texts]
    assert asked == [source.questions.tokens(number).tolist() for number in range(len(source.questions))]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-4)  # fp32, another order of sums


def test_a_masked_word_can_be_any_word_without_changing_the_input(data):
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
    documents = [source.build(epoch, index) for epoch in range(2) for index in range(8)]
    whole = collate(documents, task.shape)
    assert all(whole.counts().values())
    cuts = [collate(documents[a:b], task.shape) for a, b in ((0, 1), (1, 9), (9, 9), (9, 16))]
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


@pytest.mark.parametrize("objective", ["masked_lm", "seq2seq_lm", "masked_object", "matching"])
def test_objectives_without_targets_add_a_connected_zero(data, objective):
    source, task = make_source(data, objective), make_task()
    batch = collate([source.build(0, 0)], task.shape)
    losses = task(batch)
    for name, loss in losses.items():
        assert loss.requires_grad and loss.isfinite()
        assert (loss.item() == 0) == (name.partition("/")[0] != objective)
    normalise(losses, batch.counts(), task.weights).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())


def test_a_rank_without_documents_has_a_connected_zero_loss_and_zero_gradients():
    task = make_task()
    batch = collate([], task.shape)
    loss = normalise(task(batch), dict.fromkeys(batch.counts(), 5), task.weights)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in task.parameters())
