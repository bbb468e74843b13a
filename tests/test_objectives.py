import math
from collections import Counter

import numpy as np
import pytest
import torch

from dimvl.errors import UserError
from dimvl.model.heads import ObjectPrediction
from dimvl.objectives import (
    WordChanges,
    answer_loss,
    class_distribution,
    hide_regions,
    mask_tokens,
    match_loss,
    object_class_loss,
    object_feature_loss,
    word_loss,
)
from dimvl.regions.geometry import area, intersection
from dimvl.tasks.base import seq2seq_text
from tests.factories import make_regions, make_tokenizer

TOKENIZER = make_tokenizer()
LONG = np.array(TOKENIZER.encode("the small star is above a large blue square " * 12))


# --- masking of words


def test_fifteen_per_cent_of_the_tokens_are_chosen_and_never_none():
    for length, wanted in ((1, 1), (3, 1), (10, 2), (20, 3), (100, 15)):
        places = mask_tokens(LONG[:length], np.random.default_rng(length), TOKENIZER, 0.15).places
        assert len(places) == len(set(places.tolist())) == wanted and places.max() < length


def test_of_the_chosen_tokens_80_per_cent_are_masked_10_random_and_10_kept():
    draws, replaced = Counter(), Counter()
    for seed in range(1000):
        masked = mask_tokens(LONG, np.random.default_rng(seed), TOKENIZER, 0.15)
        for new, old in zip(masked.token_ids[masked.places], masked.labels, strict=True):
            draws["mask" if new == TOKENIZER.mask else "same" if new == old else "random"] += 1
            if new not in (TOKENIZER.mask, old):
                replaced[int(new)] += 1
    total = sum(draws.values())
    assert total > 15_000
    # four standard deviations of a share at this many draws: .013 and .010; a random token is rarely the original
    assert draws["mask"] / total == pytest.approx(0.8, abs=0.013)
    assert draws["random"] / total == pytest.approx(0.1, abs=0.011)
    assert draws["same"] / total == pytest.approx(0.1, abs=0.011)
    assert not TOKENIZER.special_ids & set(replaced), "special tokens are never chosen at random"
    assert len(replaced) == len(TOKENIZER) - len(TOKENIZER.special_ids), "every ordinary token is"


def test_labels_are_the_original_tokens_and_the_rest_stays():
    before = LONG.copy()
    masked = mask_tokens(LONG, np.random.default_rng(0), TOKENIZER, 0.5)
    assert np.array_equal(LONG, before), "the caller's array is unchanged"
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

ONE_IMAGE = np.zeros(99, dtype=np.int64)


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
        targets, hidden = hide_regions(boxes, ONE_IMAGE[: len(boxes)], generator, 0.15, max_cover)
        assert len(set(targets.tolist())) == max(1, round(0.15 * len(boxes)))
        assert hidden[targets].all()
        covered = intersection(boxes, boxes[targets]) / np.maximum(area(boxes[targets]), 1e-12)
        assert (covered[~hidden] <= max_cover + 1e-5).all()
        assert hidden[-1], "a whole-image region covers every target"
        others = np.setdiff1d(np.flatnonzero(hidden), targets)
        assert (covered[others].max(axis=1, initial=0) > max_cover - 1e-5).all(), "nothing else is hidden"
        spared += (~hidden).sum()
    assert spared > 500, "most regions stay visible"


def test_a_box_hides_nothing_of_another_image_and_the_same_targets_are_drawn():
    crossing = 0
    for seed in range(100):
        boxes = random_boxes(np.random.default_rng(seed))
        index = np.sort(np.random.default_rng(seed).integers(0, 3, len(boxes)))
        one = hide_regions(boxes, ONE_IMAGE[: len(boxes)], np.random.default_rng(seed), 0.15, 0.5)
        targets, hidden = hide_regions(boxes, index, np.random.default_rng(seed), 0.15, 0.5)
        assert np.array_equal(targets, one.targets)
        for image in range(3):
            own, wanted = index == image, targets[index[targets] == image]
            covered = intersection(boxes[own], boxes[wanted]) / np.maximum(area(boxes[wanted]), 1e-12)
            expected = (covered > 0.5).any(axis=1) | np.isin(np.flatnonzero(own), wanted)
            assert np.array_equal(hidden[own], expected)
        crossing += (one.hidden & ~hidden).sum()
    assert crossing > 100, "within one image they would hide more"


def test_a_single_region_is_a_target():
    targets, hidden = hide_regions(np.array([[0.1, 0.1, 0.5, 0.5]]), ONE_IMAGE[:1], np.random.default_rng(0), 0.15, 0.5)
    assert targets.tolist() == [0] and hidden.tolist() == [True]


def test_a_small_box_inside_a_target_stays_visible_and_a_large_box_around_it_is_hidden():
    boxes = np.array([[0.4, 0.4, 0.6, 0.6], [0.45, 0.45, 0.5, 0.5], [0.3, 0.3, 0.7, 0.7], [0.5, 0.4, 0.7, 0.6]])
    for seed in range(20):
        targets, hidden = hide_regions(boxes, ONE_IMAGE[:4], np.random.default_rng(seed), 0.25, 0.5)
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


def test_one_word_is_changed_to_one_of_its_own_partners():
    changes = WordChanges([("red", "blue"), ("blue", "red"), ("circle", "star"), ("circle", "square")], TOKENIZER)
    words, seen = np.array(TOKENIZER.encode("a small red circle above")), set()
    for seed in range(60):
        changed = changes.change(words, np.random.default_rng(seed))
        assert (changed != words).sum() == 1
        seen.add(TOKENIZER.decode(changed.tolist()))
    assert seen == {"a small blue circle above", "a small red star above", "a small red square above"}
    assert TOKENIZER.decode(words.tolist()) == "a small red circle above"


def test_a_text_without_a_changeable_word_has_no_change_and_words_of_several_tokens_are_refused():
    changes = WordChanges([("red", "blue")], TOKENIZER)
    assert changes.change(np.array(TOKENIZER.encode("a star")), np.random.default_rng(0)) is None
    for word in ("starcircle", "ж"):
        with pytest.raises(UserError, match=f"'{word}' is not one token"):
            WordChanges([("red", word)], TOKENIZER)


@pytest.mark.parametrize("pairs", [[["red"]], [["red", "blue", "star"]], [[1, 2]], [5], 5, {"red": "blue"}])
def test_anything_but_pairs_of_words_is_one_sentence(pairs):
    with pytest.raises(UserError, match=r"is not a (list|pair of words); write"):
        WordChanges(pairs, TOKENIZER)
