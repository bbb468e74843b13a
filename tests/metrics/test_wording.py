from dimvl.metrics.wording import faults


def test_captions_that_end_in_the_middle_of_a_phrase_are_counted():
    bad = ["a dog in a", "a dog runs on The.", "two dogs with", "", "...", "a man and his", "a"]
    good = ["a dog on the grass", "people look on him", "The end.", "an island"]
    assert [faults(text)["bad_endings"] for text in [*bad, *good]] == [1] * len(bad) + [0] * len(good)


def test_captions_with_a_repeated_phrase_of_three_words_are_counted_once_each():
    repeated = ["a red ball and a red ball", "dog dog dog dog", "A man, in a hat, a man in a hat and a man in a hat"]
    fine = ["a red ball and a red cube", "dog dog dog", "a b a b", ""]
    assert [faults(text)["repeated_phrases"] for text in [*repeated, *fine]] == [1, 1, 1, 0, 0, 0, 0]
