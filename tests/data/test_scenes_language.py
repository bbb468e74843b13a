"""Captions, facts, word changes and questions of synthetic scenes."""

import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from dimvl.data.scenes import (
    COLOURS,
    SHAPES,
    SIZES,
    SceneOptions,
    World,
    changed_caption,
    is_true,
    judge,
    parse_caption,
    sample_world,
    score_captions,
    word_change_pairs,
)
from dimvl.data.scenes.facts import Fact
from dimvl.data.scenes.language import _PATTERNS, sample_captions
from dimvl.data.scenes.phrases import Phrase
from dimvl.data.scenes.questions import KINDS, sample_questions
from dimvl.data.scenes.scores import recalls
from dimvl.data.scenes.word_changes import WORD_CATEGORIES
from dimvl.data.scenes.world import HELD_OUT_COMBINATIONS, SceneObject

OPTIONS = SceneOptions(seed=3)
WORLDS = [sample_world(OPTIONS, "train", index) for index in range(120)]
CAPTIONS = [sample_captions(world, OPTIONS) for world in WORLDS]


def an_object(shape: str, colour: str, size: str, texture: str, x: float, y: float) -> SceneObject:
    return SceneObject(shape, colour, size, texture, (x, y), 20.0, 0.0, (x - 10, y - 10, x + 10, y + 10))


WORLD = World(
    1,
    160,
    160,
    (
        an_object("circle", "red", "large", "striped", 30, 30),
        an_object("circle", "blue", "small", "plain", 120, 40),
        an_object("star", "orange", "small", "dotted", 80, 120),
    ),
)


def truths(caption: str) -> list[tuple[str, bool]]:
    facts = parse_caption(caption)
    assert facts is not None
    return [(fact.kind, judge(fact, WORLD)) for fact in facts]


def test_every_caption_can_be_parsed_and_is_true():
    for world, captions in zip(WORLDS, CAPTIONS, strict=True):
        assert len(set(captions)) == OPTIONS.captions_per_image
        for caption in captions:
            facts = parse_caption(caption)
            assert facts is not None, caption
            assert all(judge(fact, world) for fact in facts), caption
            assert parse_caption(f"  {caption.upper().removesuffix('.').replace(',', ' ,')} ") == facts


def test_captions_are_single_sentences_of_8_to_22_words_with_correct_articles_and_clear_relations():
    for world, captions in zip(WORLDS, CAPTIONS, strict=True):
        for caption in captions:
            assert re.fullmatch(r"[a-z, ]+\.", caption)
            assert 8 <= len(caption.split()) <= 22
            assert not re.search(r"\ban (?!orange|image)|\ba orange|plain", caption)
            for fact in parse_caption(caption):
                if fact.kind == "relation":
                    axis = int(fact.side in ("above", "below"))
                    matches = [
                        [o.centre[axis] for o in world.objects if p.matches(o)] for p in (fact.phrase, fact.other)
                    ]
                    assert max(abs(a - b) for a in matches[0] for b in matches[1]) >= 0.15 * world.width


def test_captions_use_at_least_12_templates_and_every_kind_of_fact():
    captions = [caption for captions in CAPTIONS for caption in captions]
    used = {next(n for n, p in enumerate(_PATTERNS) if p.fullmatch(caption[:-1])) for caption in captions}
    assert len(used) >= 12
    kinds = Counter(fact.kind for caption in captions for fact in parse_caption(caption))
    assert min(kinds[kind] for kind in ("object", "attribute", "place", "relation", "count")) > 0.04 * kinds.total()
    assert 4 < kinds.total() / len(captions) < 8
    assert len(set(captions)) > 0.95 * len(captions)


def test_captions_also_say_object_instead_of_the_shape():
    phrases = [
        fact.phrase for captions in CAPTIONS for c in captions for fact in parse_caption(c) if fact.kind == "object"
    ]
    assert 0.2 < np.mean([phrase.shape is None for phrase in phrases]) < 0.4
    assert all(phrase.adjectives for phrase in phrases if phrase.shape is None)
    assert truths("there is a red object over a dotted object.") == [("object", True), ("attribute", True)] * 2 + [
        ("relation", True)
    ]
    assert truths("there is a red dotted object over a star.")[0] == ("object", False)


def test_the_parser_returns_the_facts_of_a_sentence():
    red, star = Phrase(size="large", colour="red", shape="circle"), Phrase(texture="dotted", shape="star")
    assert parse_caption("There are three objects and a large red circle is to the left of the dotted star") == [
        Fact(kind="object", phrase=red),
        Fact(kind="attribute", phrase=red, adjective="large"),
        Fact(kind="attribute", phrase=red, adjective="red"),
        Fact(kind="object", phrase=star),
        Fact(kind="attribute", phrase=star, adjective="dotted"),
        Fact(kind="relation", phrase=red, side="left", other=star),
        Fact(kind="count", phrase=Phrase(), count=3),
    ]
    assert parse_caption("a circle sits in the top left, right of the red star.")[-2:] == [
        Fact(kind="place", phrase=Phrase(shape="circle"), place="top left"),
        Fact(kind="relation", phrase=Phrase(shape="circle"), side="right", other=Phrase(colour="red", shape="star")),
    ]
    circle, cross = Phrase(colour="red", shape="circle"), Phrase(shape="cross")
    assert parse_caption("a red circle has a cross under it")[-1] == Fact(
        kind="relation", phrase=cross, side="below", other=circle
    )


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a red circle",
        "a red large circle is above a square.",
        "a red circle is above above a square.",
        "a plain circle is above a square.",
        "a red circle is above a square. a star.",
        "there are one circles and a square.",
        "a red [UNK] is above a square.",
    ],
)
def test_a_sentence_outside_the_grammar_cannot_be_parsed(caption):
    assert parse_caption(caption) is None


def test_facts_are_judged_against_the_world():
    assert truths("a large red circle is left of a small blue circle.") == [
        *(("object", True), ("attribute", True), ("attribute", True)),
        *(("object", True), ("attribute", True), ("attribute", True)),
        ("relation", True),
    ]
    # the best match of "small red circle" is one circle, which cannot be both small and red
    assert [truth for _, truth in truths("there is a small red circle over a star.")] in (
        [True, True, False, True, False],
        [True, False, True, True, False],
    )
    assert truths("there is a red square above a star.") == [
        *(("object", False), ("attribute", False), ("object", True), ("relation", False)),
    ]
    assert truths("a star is above a circle.")[-1] == ("relation", False)
    assert truths("a star is above a star.")[-1] == ("relation", False)  # needs two
    assert truths("a circle lies in the top left and a circle in the top right.")[2:] == [("place", True)] * 2
    assert truths("a red circle lies in the top right and a star in the bottom right.")[3:] == [
        ("place", False),
        ("place", True),
    ]
    assert truths("there are two circles, one of them is a star.")[-1] == ("count", True)
    assert truths("there are three circles, one of them is a star.")[-1] == ("count", False)


def test_caption_scores_equal_those_counted_by_hand():
    captions = {
        1: "a large red circle is left of a small star.",
        2: "there is a green circle above a star.",
        3: "a a a",
    }
    worlds = dict.fromkeys(captions, WORLD)
    references = {
        image: ["there are two circles and a small star.", "there is a circle and a circle."] for image in captions
    }
    scores = score_captions(captions, worlds, references)
    # facts: 6 of 6, then 4 of 5 - 1 for "green" and 1 for the relation, then 0 of 5 for the one that cannot be parsed
    assert scores.fact_precision == pytest.approx((6 + 2 + 0) / (6 + 4 + 5))
    assert scores.attribute_precision == pytest.approx(3 / 5)
    assert scores.relation_precision == pytest.approx(1 / 3)
    # the scene: 4 + 3 + 4 facts; stated: (3 + 2), (1 + 1), 0
    assert scores.fact_recall == pytest.approx((5 / 11 + 2 / 11 + 0) / 3)
    # two circles, and star + small; then the two circles, each once
    assert scores.reference_recall == pytest.approx((4 / 11 + 2 / 11) / 2)
    # none of 3 places; of 3 pairs the first caption states one, the second one falsely
    assert (scores.place_recall, scores.relation_recall) == (0, pytest.approx((1 / 3 + 0 + 0) / 3))
    assert (scores.reference_place_recall, scores.reference_relation_recall) == (0, 0)
    assert scores.facts_per_caption == pytest.approx((6 + 4 + 0) / 3)
    assert scores.distinct == 1.0
    assert scores.parsed == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("caption", "places", "relations"),
    [
        ("a circle lies in the top left and a circle in the top right.", 2, 0),
        ("a red circle lies in the top right and a star in the bottom right.", 1, 0),
        ("a circle lies in the top left and a red circle in the top left.", 1, 0),  # the same one again
        ("a star is below a circle and right of a circle.", 0, 1),  # right of the red one only, as already said
        ("a star is below a circle and below a circle.", 0, 2),
        ("a star is above a circle and below a blue circle.", 0, 1),
        ("a star lies in the bottom right, below a circle.", 1, 1),
    ],
)
def test_true_places_count_once_for_each_object_and_true_relations_once_for_each_pair(caption, places, relations):
    found = recalls(parse_caption(caption), WORLD)
    assert (found["place_recall"], found["relation_recall"]) == (
        pytest.approx(places / 3),
        pytest.approx(relations / 3),
    )


def test_the_same_words_about_two_objects_count_for_both():
    circles = tuple(an_object("circle", "red", "large", "plain", x, y) for x, y in ((30, 30), (40, 60)))
    found = recalls(
        parse_caption("a circle lies in the top left and a circle in the top left."), replace(WORLD, objects=circles)
    )
    assert (found["place_recall"], found["relation_recall"]) == (1, 0)
    above = parse_caption("a circle is above a circle and above a circle.")
    found = recalls(above, replace(WORLD, objects=(*circles, an_object("circle", "blue", "small", "plain", 50, 90))))
    assert (found["place_recall"], found["relation_recall"]) == (0, pytest.approx(2 / 3))


def test_references_scored_as_captions_are_true_and_have_their_own_recall():
    captions = {world.image_id: captions[0] for world, captions in zip(WORLDS, CAPTIONS, strict=True)}
    worlds = {world.image_id: world for world in WORLDS}
    scores = score_captions(captions, worlds, {image: [caption] for image, caption in captions.items()})
    assert scores.fact_precision == scores.attribute_precision == scores.relation_precision == scores.parsed == 1.0
    assert scores.place_precision == 1.0
    assert scores.fact_recall == scores.reference_recall > 0.3
    assert scores.place_recall == scores.reference_place_recall > 0.05
    assert scores.relation_recall == scores.reference_relation_recall > 0.15


def test_word_pairs_of_training_and_tests_are_disjoint_and_training_has_every_word():
    train, test = word_change_pairs("train"), word_change_pairs("test")
    assert not train & test
    assert {(new, old) for old, new in test} == test  # both directions: the words alone reveal nothing
    for category, words in WORD_CATEGORIES.items():
        for word in words:
            assert any(old == word for old, _ in train) and any(new == word for _, new in train)
        tested = {pair for pair in test if pair[0] in words}
        assert bool(tested) == (category not in ("size", "texture", "horizontal", "height"))
    assert ("circles", "triangles") in test and ("circle", "triangle") in test
    assert ("above", "over") not in train | test


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_changed_caption_differs_in_one_word_and_its_article_and_is_false(split):
    pairs, generator, changed = word_change_pairs(split), np.random.default_rng(0), 0
    for world, captions in zip(WORLDS, CAPTIONS, strict=True):
        for caption in captions:
            assert is_true(caption, world)
            new = changed_caption(caption, world, generator, pairs)
            if new is None:
                continue
            changed += 1
            assert not is_true(new, world) and parse_caption(new) is not None
            assert not re.search(r"\ban (?!orange|image)|\ba orange", new)
            words = zip(re.findall(r"\w+", caption), re.findall(r"\w+", new), strict=True)
            differ = [pair for pair in words if pair[0] != pair[1] and not set(pair) <= {"a", "an"}]
            assert len(differ) == 1 and differ[0] in pairs
            assert not re.search("|".join(rf"{c} (\w+ed )?{s}" for s, c in HELD_OUT_COMBINATIONS), new)
    assert changed > 0.9 * sum(len(captions) for captions in CAPTIONS)


# Questions. Their answers are checked here by an independent parser of the text.

_NOUN = r"((?:\w+ )*?(?:circle|square|triangle|cross|star|object)(?:e?s)?)"
_SIDES = r"(?:(?:to the |on the )?(left|right) of|(above|over)|(below|beneath|under))"
_WORDS = {"colour": tuple(COLOURS), "size": SIZES, "texture": ("plain", "striped", "dotted"), "shape": SHAPES}


def found(noun: str, world: World) -> list[SceneObject]:
    words = [re.sub("^(circle|square|triangle|star|object)s$", r"\1", word) for word in noun.split()]
    words = ["cross" if word == "crosses" else word for word in words]
    return [
        o for o in world.objects if set(words) - {"a", "an", "the", "object"} <= {o.shape, o.colour, o.size, o.texture}
    ]


def the(noun: str, world: World) -> SceneObject:
    (item,) = found(noun, world)  # fails if the phrase is not unique
    return item


def lies(item: SceneObject, side: tuple[str, ...], other: SceneObject) -> float:
    x, y = item.centre[0] - other.centre[0], item.centre[1] - other.centre[1]
    return {"left": -x, "right": x}[side[0]] if side[0] else -y if side[1] else y


def the_side(item: SceneObject, other: SceneObject, world: World) -> str:
    x, y = item.centre[0] - other.centre[0], item.centre[1] - other.centre[1]
    far = {"left": -x, "right": x, "above": -y, "below": y}
    (side,) = [side for side, distance in far.items() if distance >= 0.15 * world.width]  # fails unless it is clear
    return side


def answered(text: str, world: World) -> str:
    yes = {True: "yes", False: "no"}
    if match := re.fullmatch(rf"how many {_NOUN} (?:are there|can you see|are in the picture)\?", text):
        return str(len(found(match[1], world)))
    if match := re.fullmatch(rf"(?:is|does|can you see) the {_NOUN} (?:lie )?{_SIDES} the {_NOUN}\?", text):
        distance = lies(the(match[1], world), match.groups()[1:4], the(match[5], world))
        assert abs(distance) >= 0.15 * world.width
        return yes[distance > 0]
    if match := re.fullmatch(rf"where is the {_NOUN} relative to the {_NOUN}\?", text):
        return the_side(the(match[1], world), the(match[2], world), world)
    place = rf"(?:where in the picture is|in which part of the picture does|where is) the {_NOUN}(?: lie)?\?"
    if match := re.fullmatch(place, text):
        x, y = (the(match[1], world).centre[axis] / world.width - 0.5 for axis in (0, 1))
        assert min(abs(x), abs(y)) >= 0.06
        return f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"
    if match := re.fullmatch(rf"on which side of the {_NOUN} is the {_NOUN}\?", text):
        return the_side(the(match[2], world), the(match[1], world), world)
    if match := re.fullmatch(rf"(?:what|which) (\w+) (?:is|does) the object {_SIDES} the {_NOUN}(?: have)?\?", text):
        other = the(match[5], world)
        distances = [(o, lies(o, match.groups()[1:4], other)) for o in world.objects if o is not other]
        assert all(abs(distance) >= 0.15 * world.width for _, distance in distances)
        ((item, _),) = [pair for pair in distances if pair[1] > 0]
        return getattr(item, match[1].replace("color", "colour"))
    if match := re.fullmatch(rf"(?:what|which) (?:is the )?(\w+) (?:is|does|of) the {_NOUN}(?: have)?\?", text):
        slot = match[1].replace("color", "colour")
        assert not set(match[2].split()) & set(_WORDS[slot])
        return getattr(the(match[2], world), slot)
    if match := re.fullmatch(rf"(?:are there|do you see|does the picture show) more {_NOUN} than {_NOUN}\?", text):
        return yes[len(found(match[1], world)) > len(found(match[2], world))]
    if match := re.fullmatch(rf"(?:are there|do you see) as many {_NOUN} as {_NOUN}\?", text):
        return yes[len(found(match[1], world)) == len(found(match[2], world))]
    if match := re.fullmatch(rf"is the {_NOUN} the same (\w+) as the {_NOUN}\?", text):
        slot = match[2].replace("color", "colour")
        return yes[getattr(the(match[1], world), slot) == getattr(the(match[3], world), slot)]
    if match := re.fullmatch(rf"do the {_NOUN} and the {_NOUN} have the same (\w+)\?", text):
        slot = match[3].replace("color", "colour")
        return yes[getattr(the(match[1], world), slot) == getattr(the(match[2], world), slot)]
    match = re.fullmatch(rf"(?:is there|can you see|does the picture show) (an? {_NOUN})\?", text)
    assert match, text
    assert match[1].startswith("an ") == match[1].split()[1].startswith("o")
    return yes[bool(found(match[1], world))]


def test_an_independent_parser_finds_every_answer():
    for split in ("train", "compositional"):
        for index in range(100):
            world = sample_world(OPTIONS, split, index)
            questions = sample_questions(world, OPTIONS, compositional=split == "compositional")
            assert len({question.text for question in questions}) == OPTIONS.questions_per_image
            for question in questions:
                assert answered(question.text, world) == question.answer, question.text


def test_kinds_are_equally_frequent_and_templates_reveal_little_of_the_answer():
    questions = [
        question
        for index in range(300)
        for question in sample_questions(sample_world(OPTIONS, "train", index), OPTIONS)
    ]
    words = {
        word: slot for slot, values in _WORDS.items() for value in values for word in (value, value + "s", value + "es")
    }
    # A template is the form of a question with the kinds of attributes, but not their values. The best answer for each
    # template is chosen on one half and scored on the other, like a question-only model.
    limits = {
        "existence": 0.56,
        "counting": 0.42,
        "attribute": 0.36,
        "place": 0.32,
        "relation": 0.45,
        "comparison": 0.57,
    }
    for kind in KINDS:
        of_kind = [question for question in questions if question.kind == kind]
        assert len(of_kind) / len(questions) == pytest.approx(1 / 6, abs=0.02)
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        right = []
        for number, question in enumerate(of_kind):
            template = " ".join(words.get(word, word) for word in question.text.split())
            template = re.sub(_SIDES, "SIDE", template)
            if number % 2 == 0:
                counts[template][question.answer] += 1
            else:
                right.append(
                    counts[template].most_common(1)[:1] and counts[template].most_common(1)[0][0] == question.answer
                )
        assert np.mean([bool(hit) for hit in right]) < limits[kind], kind
        answers = Counter(question.answer for question in of_kind)
        if kind in ("existence", "comparison"):
            assert abs(answers["yes"] / len(of_kind) - 0.5) < 0.06
        if kind == "counting":
            assert answers.most_common(1)[0][1] < 0.32 * len(of_kind) and set(answers) >= set("01234")


def test_half_the_compositional_questions_ask_about_held_out_combinations_and_no_others_do():
    pattern = "|".join(rf"{colour} (\w+ed )?{shape}" for shape, colour in HELD_OUT_COMBINATIONS)
    named = defaultdict(list)
    for index in range(60):
        for split in ("train", "heldout", "compositional"):
            questions = sample_questions(sample_world(OPTIONS, split, index), OPTIONS, split == "compositional")
            named[split] += [bool(re.search(pattern, question.text)) for question in questions]
    assert np.mean(named["compositional"]) >= 0.5
    assert not any(named["train"] + named["heldout"])
