import pytest

from dimvl.metrics.wording import wording


def test_captions_that_end_in_the_middle_of_a_phrase_are_counted():
    bad = ["a dog in a", "a dog runs on The.", "two dogs with", "", "...", "a man and his"]
    good = ["a dog on the grass", "people look on him", "The end.", "a", "an island"]
    assert wording(bad)["bad_endings"] == 1
    assert wording(good)["bad_endings"] == pytest.approx(1 / 5)  # the single article
    assert wording([*bad, *good])["bad_endings"] == pytest.approx(7 / 11)


def test_captions_with_a_repeated_phrase_of_three_words_are_counted_once_each():
    repeated = ["a red ball and a red ball", "dog dog dog dog", "A man, in a hat, a man in a hat and a man in a hat"]
    fine = ["a red ball and a red cube", "dog dog dog", "a b a b", ""]
    assert [wording([text])["repeated_phrases"] for text in [*repeated, *fine]] == [1, 1, 1, 0, 0, 0, 0]
    assert wording([*repeated, *fine])["repeated_phrases"] == pytest.approx(3 / 7)
