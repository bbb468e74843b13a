"""Rules of zero-shot answering: which statements a question becomes, and what their scores mean."""

import re
from math import exp
from pathlib import Path

import pytest
import yaml

from dimvl.data.scenes import SceneOptions, World, is_true, parse_caption, sample_world
from dimvl.data.scenes.phrases import clear_sides
from dimvl.data.scenes.questions import Question, sample_questions
from dimvl.demo.config import shipped_config
from dimvl.errors import UserError
from dimvl.tasks.answering.statements import Asked, Statement, StatementRules, read_statements

COLOUR = {
    "questions": ["what colour is the {thing}?"],
    "statement": "the {thing} is {answer}.",
    "answers": ["red", "orange"],
}
THERE = {"questions": ["is there a(n) {size?} {thing}?"], "statement": "there is a(n) {size} {thing}."}
SIDE = {
    "questions": ["is the {thing} {side} the {other}?"],
    "statement": "the {thing} is {answer} the {other}",
    "answers": {"yes": "{side}", "no": "{opposite side}"},
}
WORDS = {"size": ["small", "large"], "side": ["left of", "to the left of"]}
CHANGES = {"opposite": {"left": "right"}}


def write(folder: Path, *rules: object, **others: object) -> Path:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump({"statements": list(rules)} | others, sort_keys=False))
    return path


def rules(folder: Path, *own: object, **others: object) -> StatementRules:
    return read_statements(write(folder, *own, **others))


def texts(asked: Asked | None) -> list[tuple[str, str]] | None:
    return asked and [(answer, statement.text) for level in asked.levels for answer, statement in level]


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        (
            "What colour  is the large star ?",
            [("red", "the large star is red."), ("orange", "the large star is orange.")],
        ),
        ("is there a small orange star?", [("yes", "there is a small orange star.")]),
        ("is there an orange star", [("yes", "there is an orange star.")]),
        ("is there red?", None),
        ("what colour is the?", None),
        (
            "is the red star to the left of the box?",
            [("yes", "the red star is to the left of the box"), ("no", "the red star is to the right of the box")],
        ),
    ],
)
def test_a_question_becomes_the_statements_of_the_rule_that_it_fits(
    tmp_path: Path, question: str, wanted: list[tuple[str, str]] | None
) -> None:
    words = {"words": WORDS, "changes": CHANGES}
    assert texts(rules(tmp_path, COLOUR, THERE, SIDE, **words).ask(question)) == wanted


def test_the_first_pattern_that_fits_decides(tmp_path: Path) -> None:
    other = {**COLOUR, "questions": ["what colour is the {kind} star?"], "statement": "a {kind} star is {answer}"}
    assert texts(rules(tmp_path, other, COLOUR).ask("what colour is the big star?"))[0][1] == "a big star is red"
    assert texts(rules(tmp_path, COLOUR, other).ask("what colour is the big star?"))[0][1] == "the big star is red."


def test_an_article_that_is_fitted_to_the_answer_is_a_part_of_it(tmp_path: Path) -> None:
    rule = {**COLOUR, "statement": "a(n) {answer} {thing} and a(n) {thing} of {answer}, here"}
    asked = rules(tmp_path, rule).ask("what colour is the star?")
    assert asked.statements[1].parts == ("", "an orange", " star and a star of ", "orange", ", here")


def test_the_probabilities_are_those_of_true_statements_and_the_rest_is_for_otherwise(tmp_path: Path) -> None:
    counting = {
        "questions": ["how many {things} are there?"],
        "statement": "there are {answer} {things}",
        "answers": {"2": "two", "3": "three"},
        "otherwise": {"statement": "there is a(n) {one things}", "answers": ["1"], "otherwise": "0"},
    }
    asked = rules(tmp_path, counting, changes={"one": {"stars": "star"}}).ask("how many red stars are there?")
    assert [text for _, text in texts(asked)] == [
        "there are two red stars",
        "there are three red stars",
        "there is a red star",
    ]
    found = dict(asked.ranked([1.0, -1.0, 0.5]))
    rest = 1 / (exp(1) + exp(-1) + 1)
    one = rest / (1 + exp(-0.5))
    wanted = {"2": exp(1) * rest, "3": exp(-1) * rest, "1": one, "0": rest - one}
    assert found == pytest.approx(wanted, abs=1e-12) and sum(found.values()) == pytest.approx(1)
    assert list(found) == sorted(wanted, key=wanted.get, reverse=True)


def test_answers_that_exclude_each_other_have_the_softmax_of_their_scores() -> None:
    level = [(name, Statement((name,))) for name in ("red", "blue")]
    assert dict(Asked([level], None).ranked([-801.0, -800.0])) == pytest.approx(
        {"blue": 1 / (1 + exp(-1)), "red": 1 / (1 + exp(1))}
    )


def test_masked_words_decide_only_between_words_in_a_statement(tmp_path: Path) -> None:
    masked = rules(tmp_path, COLOUR, THERE, words={"size": ["big"]}, score="masked_word")
    assert masked.ask("what colour is the star?") is not None and masked.ask("is there a star?") is None
    with pytest.raises(UserError, match=r"no rule has words to mask.*; set score to match"):
        rules(tmp_path, THERE, words={"size": ["big"]}, score="masked_word")


@pytest.mark.parametrize(
    ("changes", "others", "message"),
    [
        (
            {"statement": "the {animal} is {answer}"},
            {},
            r"has the blank \{animal\}, which a question of its rule lacks",
        ),
        ({"answers": None}, {}, "has 0 answers to choose from"),
        ({"answers": []}, {}, "has 0 answers to choose from"),
        ({"answers": ["red"]}, {}, "has 1 answer to choose from; give two, or otherwise"),
        ({"answers": ["red", "red"]}, {}, "'red' appears twice; remove one"),
        ({"answers": ["red", " "]}, {}, "has the empty answer ' '"),
        ({"answers": {"red": "{answer}", "blue": "x"}}, {}, r"has the blank \{answer\}"),
        ({"answers": [1, 2]}, {}, "it must be text; put a number in quotes"),
        ({"statement": "the {thing} is red"}, {}, "has no {answer} but 2 answers"),
        ({"statement": "the {big thing} is {answer}"}, {}, "add 'big' to changes"),
        ({"statement": "the {thing is {answer}"}, {}, "a brace that belongs to no blank"),
        ({"statement": "the {thing} is {answer}ish"}, {}, r"letters beside \{answer\}"),
        ({"questions": []}, {}, "give at least 1"),
        ({"questions": ["what is {thing}, then?"]}, {}, "write a blank as a word of its own"),
        ({"questions": ["is {thing} {thing}?"]}, {}, r"the blank \{thing\} twice"),
        ({"questions": ["{thing}?"]}, {}, "needs words besides its blanks"),
        ({"questions": ["what {a} {b} {c} {d} {thing}?"]}, {}, "more than 4 blanks for any words"),
        ({"questions": ["what is {thing}?", "What is  {thing}"]}, {}, "two rules have the question 'what is {thing}'"),
        ({"question": ["what?"]}, {}, "unknown key 'statements.0.question'"),
        ({"score": "match"}, {}, "unknown key 'statements.0.score'; did you mean 'score'"),
        ({}, {"words": {"size": ["big"]}}, "nothing uses 'size' of words; remove it"),
        ({}, {"changes": {"one": {"stars": "star"}}}, "nothing uses 'one' of changes; remove it"),
        ({}, {"words": {"thing": [""]}}, "words of 'thing' are missing or empty"),
        ({"statement": " "}, {}, "question 'what colour is the {thing}.' has no statement; write one"),
        ({"otherwise": ""}, {}, "has no statement; write one"),
        ({"otherwise": {"statement": "", "answers": ["a", "b"]}}, {}, "has no statement; write one"),
        ({"otherwise": 0}, {}, "it must be text; put a number in quotes"),
        ({"otherwise": {"statement": "it is {answer}", "answers": ["blue"]}}, {}, "has 1 answer to choose from"),
        ({}, {"score": "matching"}, "score is 'matching'"),
        ({}, {"statements": []}, "statements is .*; give at least 1"),
    ],
)
def test_a_mistake_in_a_file_of_rules_is_one_sentence_with_its_name(
    tmp_path: Path, changes: dict[str, object], others: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        rules(tmp_path, {**COLOUR, **changes}, **others)
    assert str(caught.value).startswith(f"{tmp_path / 'rules.yaml'}: ")


def test_a_pattern_of_many_blanks_decides_about_the_longest_question(tmp_path: Path) -> None:
    open_pattern = {**COLOUR, "questions": ["{a} {b} {c} {thing} is?"]}
    asked = rules(tmp_path, open_pattern)
    assert asked.ask("a " * 50_000) is None and asked.ask("a" * 100_000) is None
    assert asked.ask("a " * 30 + "is?") is not None


def test_rules_are_read_from_json_too(tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text(
        '{"statements": [{"questions": ["is it {thing}?"], "statement": "a {thing}"}]}'
    )
    asked = read_statements(tmp_path / "rules.json").ask("Is it red?")
    assert texts(asked) == [("yes", "a red")] and asked.otherwise == "no"


def test_the_rules_on_the_page_about_scoring_are_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text()
    [code] = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "rules.yaml").write_text(code)
    rules = read_statements(tmp_path / "rules.yaml")
    assert texts(rules.ask("Is the black dog to the left of the cat?")) == [
        ("yes", "the black dog is to the left of the cat."),
        ("no", "the black dog is to the right of the cat."),
    ]
    assert texts(rules.ask("how many black dogs are there?"))[2] == ("1", "there is a black dog.")
    assert rules.ask("can you see an old cat?").otherwise == "no"


NOT_STATED = {"comparison"}
"""Kinds of questions that no caption of scenes can answer."""


def scene_questions() -> list[tuple[World, Question]]:
    options = SceneOptions(seed=5, max_objects=4, questions_per_image=20)
    worlds = [sample_world(options, "train", index) for index in range(40)]
    return [(world, question) for world in worlds for question in sample_questions(world, options)]


def test_the_true_answer_about_a_scene_has_the_only_true_statement() -> None:
    rules, seen = read_statements(shipped_config("statements")), set[tuple[str, str]]()
    for world, question in scene_questions():
        asked = rules.ask(question.text)
        assert (asked is None) == (question.kind in NOT_STATED), question
        if asked is None:
            continue
        for level in asked.levels:
            true = [answer for answer, statement in level if is_true(statement.text, world)]
            for _, statement in level:
                assert parse_caption(statement.text) is not None, f"not in the words of captions: {statement.text}"
            if {answer for answer, _ in level} == {"left", "right", "above", "below"}:
                true = [answer for answer in true if is_clear(dict(level)[answer].text, world)]
            if true:
                break
        assert true == [question.answer] or (not true and asked.otherwise == question.answer), question
        seen.add((question.kind, question.answer))
    answers = {kind: {answer for own, answer in seen if own == kind} for kind, _ in seen}
    assert answers["counting"] == {"0", "1", "2", "3", "4"} and answers["existence"] == {"yes", "no"}
    assert len(answers["attribute"]) == 17 and len(answers["place"]) == 4 and len(answers["relation"]) > 8


def is_clear(statement: str, world: World) -> bool:
    """Whether the first thing is clearly on that side: an object left of another is also a little above or below it."""
    fact = parse_caption(statement)[-1]
    [first], [second] = fact.phrase.found_in(world), fact.other.found_in(world)
    return fact.side in clear_sides(first, second, world)
