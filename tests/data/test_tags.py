import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dimvl.data.tags import TagWriter
from dimvl.data.tokenizer import Tokenizer
from tests.factories import ATTRIBUTES, CLASSES, TEXTS, make_regions, make_tokenizer


def write(classes, scores, attributes=(), attribute_scores=(), tokenizer=None, names=CLASSES, least=0.3, budget=20):
    """The tags of regions with these best classes, as text."""
    tokenizer = tokenizer or make_tokenizer()
    regions = len(classes)
    image = (
        np.array(classes, dtype=np.int16).reshape(regions, 1),
        np.array(scores, dtype=np.float16).reshape(regions, 1),
        np.array(attributes, dtype=np.int16).reshape(regions, -1),
        np.array(attribute_scores, dtype=np.float16).reshape(regions, -1),
    )
    context = TagWriter(tokenizer, names, ATTRIBUTES, least, budget).context([image])
    assert context[0] == tokenizer.cls and context[-1] == tokenizer.sep and context.dtype == np.int64
    assert len(context) <= budget + 2
    return tokenizer.decode(context[1:-1].tolist())


def test_tags_are_distinct_and_best_first():
    assert write([2, 0, 2, 1], [0.9, 0.8, 0.7, 0.6]) == "star circle square"
    assert write([2, 2, 2, 1], [0.9, 0.8, 0.7, 0.6], budget=2) == "star square", "a twin takes nothing of the budget"


def test_attributes_stand_before_their_class_and_make_it_another_tag():
    text = write([2, 2, 2], [0.9] * 3, [[0, 2], [0, 3], [0, 2]], [[0.9, 0.9]] * 3)
    assert text == "small red star small blue star"


def test_a_class_that_scores_below_the_limit_gives_no_word():
    assert write([2, 0, 1], [0.9, 0.25, 0.3], [[0, 2], [0, 2], [-1, 3]], [[0.25, 0.5]] * 3) == "red star blue square"


def test_concepts_are_tags_of_their_own_best_first_after_the_classes():
    tokenizer = make_tokenizer()

    def tags(classes, attributes, *image):
        writer = TagWriter(tokenizer, classes, attributes, 0.3, 12, concepts=True)
        return tokenizer.decode(writer.context([[np.array(column) for column in image]])[1:-1].tolist())

    none = np.zeros((2, 0), np.int16)
    best = [[2, 0], [2, 1]], [[0.4, 0.2], [0.9, 0.5]]
    assert tags(CLASSES, (), *best, none, none) == "star square", "a grid has no other classes"
    found = [[0, 3], [2, 3]], [[0.9, 0.1], [0.5, 0.8]]
    assert tags(CLASSES, ATTRIBUTES, [[1], [0]], [[0.9], [0.9]], *found) == "square circle small blue red"
    beside = tags(CLASSES, ATTRIBUTES, [[1], [-1]], [[0.9], [0.0]], *found)
    assert beside == "square blue red", "of regions with classes, concepts are used only if there are no others"


def test_a_score_of_just_the_limit_gives_a_word():
    assert write([2], [0.5], [[0]], [[0.5]], least=0.5) == "small star"


def test_only_whole_tags_fit_into_the_budget_and_a_shorter_one_may_follow():
    tokenizer = Tokenizer.train([*TEXTS, *CLASSES], 200)
    names = ("circle", "circle star square", "square")
    assert write([0, 1, 2], [0.9, 0.8, 0.7], names=names, budget=3, tokenizer=tokenizer) == "circle square"
    assert write([1, 0], [0.9, 0.8], names=names, budget=3, tokenizer=tokenizer) == "circle star square"


def test_a_word_of_several_pieces_is_never_cut():
    tokenizer = make_tokenizer()
    long = "starcircle"
    pieces = len(tokenizer.encode(long))
    assert pieces > 1
    names = (long, "star")
    assert write([0, 1], [0.9, 0.8], names=names, budget=pieces - 1, tokenizer=tokenizer) == "star"
    assert write([0, 1], [0.9, 0.8], names=names, budget=pieces, tokenizer=tokenizer) == long


def test_no_budget_no_regions_and_no_classes_give_an_empty_context():
    assert write([0], [0.9], budget=0) == ""
    writer = TagWriter(make_tokenizer(), CLASSES, ATTRIBUTES, 0.3, 5)
    none = np.zeros((3, 0))
    assert len(writer.context([[none[:0, :0]] * 4])) == 2
    assert len(writer.context([[none.astype(np.int16), none, none.astype(np.int16), none]])) == 2


def named(seed, count):
    regions = make_regions(seed, count=count)
    return [regions.class_ids, regions.class_scores, regions.attribute_ids, regions.attribute_scores]


@settings(deadline=None, derandomize=True, database=None)
@given(budget=st.integers(0, 30), counts=st.lists(st.integers(0, 6), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_images_share_the_budget_equally_and_each_has_the_tags_that_it_has_alone(budget, counts, seed):
    tokenizer = make_tokenizer()
    images = [named(seed + number, count) for number, count in enumerate(counts)]
    writer = TagWriter(tokenizer, CLASSES, ATTRIBUTES, 0.3, budget)
    context = writer.context(images)
    assert len(context) <= writer.max_length == budget + 2 and context[0] == tokenizer.cls
    room = (budget - (len(images) - 1)) // len(images)
    if room < 1:
        assert context.tolist() == [tokenizer.cls, tokenizer.sep]
        return
    alone = [TagWriter(tokenizer, CLASSES, ATTRIBUTES, 0.3, room).context([image])[1:] for image in images]
    assert context[1:].tolist() == np.concatenate(alone).tolist()
    assert np.count_nonzero(context == tokenizer.sep) == len(images)
