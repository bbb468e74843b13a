import random

import pytest

from dimvl.concepts.words import Lexicon

CAPTIONS = [
    "Two dogs are running on the beach .",
    "A dog runs through the snow .",
    "A man's dog is jumping over a wooden fence .",
    "The children ride their bikes .",
    "A child is riding a bike near a building .",
    "The men are building a fence in their clothing .",
    "A woman stands in a red dress .",
    "A woman is dressed in white shorts and sunglasses .",
    "A black dog jumps over a log .",
    "A dog with a black collar catches a frisbee .",
    "Geese are flying quickly .",
]


@pytest.fixture(scope="module")
def lexicon():
    return Lexicon(CAPTIONS)


@pytest.mark.parametrize(
    ("form", "lemma", "part"),
    [
        ("dogs", "dog", "noun"),
        ("children", "child", "noun"),
        ("geese", "goose", "noun"),
        ("running", "run", "verb"),
        ("runs", "run", "verb"),
        ("jumps", "jump", "verb"),
        ("dressed", "dress", "verb"),
        ("flying", "fly", "verb"),
        ("dress", "dress", "noun"),
        ("clothing", "clothing", "noun"),
        ("shorts", "shorts", "noun"),
        ("sunglasses", "sunglasses", "noun"),
        ("frisbee", "frisbee", "noun"),
        ("black", "black", "adjective"),
        ("wooden", "wooden", "adjective"),
        ("two", "two", "adjective"),
    ],
)
def test_a_form_has_its_lemma_and_the_part_of_speech_that_its_neighbours_show(lexicon, form, lemma, part):
    assert lexicon.words[form] == (lemma, part)


def test_function_words_adverbs_and_marks_are_no_concepts(lexicon):
    assert lexicon.words.keys().isdisjoint(
        ["a", "the", "is", "on", "with", "their", "over", ".", "quickly", "and", "s"]
    )


def test_lemmas_are_counted_over_all_their_forms_and_ties_follow_the_alphabet(lexicon):
    few = Lexicon(["A red dog and a cat .", "Two dogs .", "A cat ."])
    assert [word.lemma for word in few.most_frequent(9)] == ["cat", "dog", "red", "two"]
    shuffled = CAPTIONS.copy()
    random.Random(0).shuffle(shuffled)
    assert Lexicon(shuffled).most_frequent(9) == lexicon.most_frequent(9)


def test_a_text_has_the_lemmas_of_its_known_words_only(lexicon):
    assert lexicon.lemmas("The dogs' child rode a Unicorn on bikes.") == {"dog", "child", "bike"}
