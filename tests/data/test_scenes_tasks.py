"""Statements, phrases and stories of synthetic scenes, judged by parsers of their own."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dimvl.data.annotations import read_captions
from dimvl.data.scenes import (
    COLOURS,
    SceneOptions,
    World,
    is_true,
    judge_story,
    read_worlds,
    sample_world,
    write_scenes,
)
from dimvl.data.scenes.references import sample_references
from dimvl.data.scenes.statements import KINDS, Statement, sample_statements
from dimvl.data.scenes.stories import length, sample_story
from dimvl.data.scenes.world import HELD_OUT_COMBINATIONS, SceneObject, moved
from dimvl.errors import UserError
from tests.data.test_scenes import files_of

OPTIONS = SceneOptions(seed=5, statements_per_image=8, phrases_per_image=6, images_per_story=2)
NUMBER = 60
WORLDS = {
    split: [sample_world(OPTIONS, split, index) for index in range(NUMBER)] for split in ("train", "compositional")
}
STATEMENTS = {
    split: [each for place in range(NUMBER) for each in sample_statements(worlds, place, OPTIONS)]
    for split, worlds in WORLDS.items()
}
BY_ID = {world.image_id: world for worlds in WORLDS.values() for world in worlds}
NOUN = r"((?:\w+ )*?(?:circle|square|triangle|cross|star|object)(?:e?s)?)"
SIDE = r"(?:(?:to the |on the )?(left|right) of|(above|over)|(below|beneath|under))"
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
POSITIONS = {2: ("left", "right"), 3: ("left", "middle", "right")}
HELD_OUT = re.compile("|".join(rf"{colour} (\w+ed )?{shape}" for shape, colour in HELD_OUT_COMBINATIONS))


def found(noun: str, world: World) -> list[SceneObject]:
    words = {re.sub(r"^(circle|square|triangle|star|object|cross)(?:e?s)?$", r"\1", word) for word in noun.split()}
    return [o for o in world.objects if words - {"a", "an", "the", "object"} <= {o.shape, o.colour, o.size, o.texture}]


def lies(item: SceneObject, side: tuple[str, ...], other: SceneObject, world: World) -> bool:
    """Whether an object is on a side of another; fails unless that is clear."""
    x, y = item.centre[0] - other.centre[0], item.centre[1] - other.centre[1]
    distance = {"left": -x, "right": x}[side[0]] if side[0] else -y if side[1] else y
    assert abs(distance) >= 0.15 * world.width
    return distance > 0


def quarter(item: SceneObject, world: World) -> str:
    x, y = (item.centre[axis] / world.width - 0.5 for axis in (0, 1))
    assert min(abs(x), abs(y)) >= 0.06
    return f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"


def shows(thing: str, world: World) -> bool:
    """Whether an image has "a red star" or "a red star above a square"; fails if a side is not clear."""
    match = re.fullmatch(rf"an? {NOUN} {SIDE} an? {NOUN}", thing)
    if match is None:
        return bool(found(thing, world))
    pairs = [(one, two) for one in found(match[1], world) for two in found(match[5], world) if one is not two]
    side = match.groups()[1:4]
    axis = 0 if side[0] else 1
    far = [(one, two) for one, two in pairs if abs(one.centre[axis] - two.centre[axis]) >= 0.15 * world.width]
    clear = [lies(one, side, two, world) for one, two in far]
    assert any(clear) or len(clear) == len(pairs)
    return any(clear)


def holds(text: str, worlds: list[World]) -> bool:
    count = len(worlds)
    at = {name: world for name, world in zip(POSITIONS[count], worlds, strict=True)}
    place = f"({'|'.join(at)})"
    if match := re.fullmatch(rf"only the {place} image has (.+)\.", text):
        return [shows(match[2], world) for world in worlds] == [name == match[1] for name in at]
    if match := re.fullmatch(rf"the {place} image has (.+) and the {place} image has (.+)\.", text):
        return shows(match[2], at[match[1]]) and shows(match[4], at[match[3]])
    if match := re.fullmatch(
        rf"there are (more|fewer|as many) {NOUN} in the {place} image (?:than|as) in the {place} one\.", text
    ):
        first, second = (len(found(match[2], at[match[number]])) for number in (3, 4))
        assert match[3] != match[4] and first + second > 0
        return {"more": first > second, "fewer": first < second, "as many": first == second}[match[1]]
    if match := re.fullmatch(rf"there are (\w+) {NOUN} in the images altogether\.", text):
        return sum(len(found(match[2], world)) for world in worlds) == NUMBERS.index(match[1])
    match = re.fullmatch(r"([a-z ]+?)(?: of the)? images (has|have) (.+)\.", text)
    assert match, text
    how, verb, thing = match.groups()
    right = sum(shows(thing, world) for world in worlds)
    assert (verb == "have") == (how in ("both", "all three", "exactly two", "at least two"))
    assert (count == 2) == (how in ("both", "neither")) or how in ("exactly one", "at least one")
    return {
        "both": right == count,
        "all three": right == count,
        "exactly one": right == 1,
        "exactly two": right == 2,
        "at least one": right >= 1,
        "at least two": right >= 2,
        "neither": right == 0,
        "none": right == 0,
    }[how]


def groups(split: str) -> list[list[Statement]]:
    statements = STATEMENTS[split]
    return [statements[start : start + 4] for start in range(0, len(statements), 4)]


def test_an_independent_parser_finds_the_label_of_every_statement():
    for statements in STATEMENTS.values():
        assert len(statements) == 8 * NUMBER
        for statement in statements:
            assert holds(statement.text, [BY_ID[image] for image in statement.images]) == statement.label, statement


def test_neither_the_text_nor_the_images_of_a_statement_tell_its_label():
    for split in STATEMENTS:
        for group in groups(split):
            by_text, by_images = defaultdict(list), defaultdict(list)
            for statement in group:
                by_text[statement.text].append(statement.label)
                by_images[statement.images].append(statement.label)
            for labels in (*by_text.values(), *by_images.values()):
                assert sorted(labels) == [False, True]
    patterns = defaultdict(Counter)
    words = "|".join((*COLOURS, *NUMBERS, "circle", "square", "triangle", "star", "cross", "left", "middle", "right"))
    for statement in STATEMENTS["train"]:
        patterns[re.sub(words, "_", statement.text)][statement.label] += 1
    majority = sum(counts.most_common(1)[0][1] for counts in patterns.values())
    assert len(patterns) > 50 and majority == len(STATEMENTS["train"]) / 2


def with_quantity_as_a_word(text: str) -> str:
    quantity = r"^(both|neither|none|(all|exactly|at least) \w+)( of the)? images (has|have) "
    return re.sub(quantity, lambda match: match[0].strip().replace(" ", "_") + " ", text)


def test_wrong_statements_differ_in_one_place_of_the_text_or_in_one_image():
    for split in STATEMENTS:
        for group in groups(split):
            texts, images = (list(dict.fromkeys(getattr(each, name) for each in group)) for name in ("text", "images"))
            one, other = (re.sub(r"\ban\b", "a", text).split() for text in map(with_quantity_as_a_word, texts))
            assert sum(word != changed for word, changed in zip(one, other, strict=True)) == 1
            assert sum(one != other for one, other in zip(*images, strict=True)) == 1
            assert all(len(set(each)) == len(each) for each in images)


def test_all_kinds_of_statements_are_frequent_about_two_and_three_images():
    for statements in STATEMENTS.values():
        kinds = Counter(statement.kind for statement in statements)
        assert set(kinds) == set(KINDS) and min(kinds.values()) > 0.08 * len(statements)
        assert 0.2 < np.mean([len(statement.images) == 3 for statement in statements]) < 0.45


def test_only_statements_of_the_compositional_split_name_held_out_combinations():
    assert not any(HELD_OUT.search(statement.text) for statement in STATEMENTS["train"])
    named = [any(HELD_OUT.search(statement.text) for statement in group) for group in groups("compositional")]
    assert np.mean(named) > 0.95


def referents(text: str, world: World) -> list[SceneObject]:
    if match := re.fullmatch(rf"the {NOUN} in the (top left|top right|bottom left|bottom right)", text):
        items = found(match[1], world)
        assert len(items) > 1, "attributes alone would do"
        return [item for item in items if quarter(item, world) == match[2]]
    if match := re.fullmatch(rf"the {NOUN} {SIDE} the {NOUN}", text):
        (landmark,), items = found(match[5], world), found(match[1], world)
        assert len(items) > 1, "attributes alone would do"
        side = match.groups()[1:4]
        return [item for item in items if item is not landmark and lies(item, side, landmark, world)]
    match = re.fullmatch(rf"the {NOUN}", text)
    assert match, text
    return found(match[1], world)


def test_every_phrase_describes_exactly_one_object_by_attributes_place_or_relation():
    kinds = Counter[str]()
    for worlds in WORLDS.values():
        for world in worlds:
            references = sample_references(world, OPTIONS)
            assert len({reference.text for reference in references}) == len(references)
            for reference in references:
                kinds[reference.kind] += 1
                assert referents(reference.text, world) == [reference.item], reference.text
    assert kinds.total() > 0.95 * 6 * 2 * NUMBER and min(kinds.values()) > 0.15 * kinds.total()


def told(sentence: str, before: World, now: World) -> str:
    """Return what a sentence says has happened; fails unless exactly that has."""
    gone = [item for item in before.objects if item.centre not in [other.centre for other in now.objects]]
    new = [item for item in now.objects if item.centre not in [other.centre for other in before.objects]]
    where = "(?: in the (top left|top right|bottom left|bottom right))?"
    if match := re.fullmatch(rf"an? {NOUN} appears{where}|now there is an? {NOUN}{where}", sentence):
        noun, place = (match[1], match[2]) if match[1] else (match[3], match[4])
        assert found(noun, now) == new and not gone and len(new) == 1
        assert place is None or place == quarter(new[0], now)
        return "appears"
    if match := re.fullmatch(rf"the {NOUN} (?:disappears|leaves)|now the {NOUN} is gone", sentence):
        noun = match[1] or match[2]
        assert [item.centre for item in found(noun, before)] == [item.centre for item in gone]
        assert not new and len(gone) == 1 and not found(noun, now)
        return "leaves"
    if match := re.fullmatch(rf"the {NOUN} (?:moves|goes) (to the left|to the right|up|down)", sentence):
        (item,), (moved,) = found(match[1], before), found(match[1], now)
        x, y = np.subtract(moved.centre, item.centre) / now.width
        assert (x == 0) != (y == 0) and max(abs(x), abs(y)) >= 0.25
        assert match[2] == ("to the left" if x < 0 else "to the right" if x > 0 else "up" if y < 0 else "down")
        return "moves"
    match = re.fullmatch(rf"the {NOUN} (?:turns|becomes) (\w+)|now the {NOUN} is (\w+)", sentence)
    assert match, sentence
    noun, colour = (match[1], match[2]) if match[1] else (match[3], match[4])
    (item,) = found(noun, before)
    (turned,) = [other for other in now.objects if other.centre == item.centre]
    assert (item.colour != colour) and turned.colour == colour and turned.shape == item.shape
    return "turns"


def test_every_sentence_of_a_story_is_true_of_its_image_and_tells_what_has_changed():
    changes, images = Counter[str](), []
    for split in WORLDS:
        for index in range(40):
            story = sample_story(OPTIONS, split, index)
            assert len(story.worlds) == len(story.sentences) == length(index) and 3 <= length(index) <= 5
            first = re.fullmatch(rf"there are (\w+) {NOUN}", story.sentences[0])
            many = first and len(found(first[2], story.worlds[0])) == NUMBERS.index(first[1])
            assert many or is_true(story.sentences[0], story.worlds[0]), story.sentences[0]
            for number, sentence in enumerate(story.sentences[1:]):
                changes[told(sentence, *story.worlds[number : number + 2])] += 1
            images += [world.image_id for world in story.worlds]
            if split == "train":
                assert not any(item.is_held_out for world in story.worlds for item in world.objects)
            assert min(item.visible for world in story.worlds for item in world.objects) >= 0.7
            assert all(2 <= len(world.objects) <= 5 for world in story.worlds)
    assert len(set(images)) == len(images) and not set(images) & set(BY_ID)
    assert set(changes) == {"appears", "leaves", "moves", "turns"} and min(changes.values()) > 0.1 * changes.total()


def test_a_told_story_is_judged_sentence_by_sentence():
    stories = [sample_story(OPTIONS, "train", index) for index in range(60)]
    texts = [". ".join(story.sentences) + " ." for story in stories]
    assert all(all(judge_story(text, story.worlds)) for text, story in zip(texts, stories, strict=True))
    for story in stories:
        one, *others = story.sentences
        assert judge_story(". ".join([one, *others[:-1]]), story.worlds) == [*[True] * len(others), False]
        assert not any(judge_story(". ".join([one, *[one] * len(others)]), story.worlds)[1:])
        assert judge_story("", story.worlds) == [False] * len(story.worlds)
    by_length = sorted(range(60), key=lambda index: (len(stories[index].worlds), index))
    swapped = [judge_story(texts[other], stories[own].worlds) for own, other in pairwise(by_length)]
    assert np.mean(np.concatenate(swapped)) < 0.1


@pytest.mark.parametrize(
    ("sentence", "is_said"),
    [
        ("the star moves to the left", True),
        ("the red star goes to the left", True),
        ("the star moves to the right", False),
        ("the star moves up", False),
        ("the circle moves to the left", False),
        ("the plain star moves to the left", False),
        ("the object moves to the left", False),
        ("the small object moves to the left", False),
        ("the star leaves", False),
        ("the star turns red", False),
        ("the red circle moves to the left", False),
    ],
)
def test_a_change_is_told_only_by_the_right_object_and_way(sentence, is_said):
    star = SceneObject("star", "red", "small", "plain", (100.0, 50.0), 24.0, 0.0, (88.0, 38.0, 112.0, 62.0))
    circle = SceneObject("circle", "blue", "small", "plain", (40.0, 120.0), 24.0, 0.0, (28.0, 108.0, 52.0, 132.0))
    before, now = (World(1, 160, 160, (item, circle)) for item in (star, moved(star, 30.0, 50.0)))
    assert judge_story(f"there is a red star and a blue circle. {sentence}.", [before, now]) == [True, is_said]


MORE = {"statements_per_image": 4, "phrases_per_image": 3, "images_per_story": 4}
FEW = {"seed": 7, "train": 10, "heldout": 0, "compositional": 0}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "out"
    write_scenes(folder, SceneOptions(**FEW, **MORE))
    return folder


def test_files_of_versions_without_statements_phrases_and_stories_keep_their_bytes(tmp_path: Path) -> None:
    write_scenes(tmp_path / "out", SceneOptions(seed=7, train=4, heldout=2, compositional=2))
    digest = hashlib.sha256()
    for path in sorted((tmp_path / "out").rglob("*.json*")):
        digest.update(str(path.relative_to(tmp_path / "out")).encode() + path.read_bytes())
    assert digest.hexdigest() == "cbba4a3abdd04616224ea59cf45a6cda262e2082449416dc354228dbcb77ef14"


def test_statements_phrases_and_stories_change_no_byte_of_the_other_files(written: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "out", SceneOptions(**FEW))
    plain, more = files_of(tmp_path / "out"), files_of(written)
    assert {name for name in plain if plain[name] != more[name]} == {"scenes.json"}
    own = {name for name in more.keys() - plain.keys() if not name.startswith("train/stories/")}
    assert {name for name in own if name.startswith("train")} == {
        f"train/{name}.jsonl" for name in ("statements", "phrases", "stories")
    }


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_name_images_and_boxes_as_the_other_files_do(written: Path) -> None:
    folder = written / "train"
    worlds = read_worlds(folder / "worlds.jsonl")
    statements = lines(folder / "statements.jsonl")
    assert Counter(line["label"] for line in statements) == {"true": 20, "false": 20}
    assert {image for line in statements for image in line["images"]} <= set(worlds)
    for line in lines(folder / "phrases.jsonl"):
        (item,) = referents(line["phrase"], worlds[line["image"]])
        assert line["boxes"] == [list(item.box)]
    for name in ("statements", "phrases"):
        ids = [line["id"] for line in lines(folder / f"{name}.jsonl")]
        assert len(set(ids)) == len(ids) >= 29
    stories = read_captions(folder / "stories.jsonl")
    drawn = [int(path.stem) for path in sorted((folder / "stories" / "images").iterdir())]
    instances = json.loads((folder / "stories" / "instances.json").read_text())
    assert [len(story.image_ids) for story in stories] == [3, 4]
    assert [int(image) for story in stories for image in story.image_ids] == drawn
    assert (
        [image["id"] for image in instances["images"]]
        == drawn
        == list(read_worlds(folder / "stories" / "worlds.jsonl"))
    )


def test_stories_that_were_interrupted_go_on_and_progress_counts_their_images(written: Path, tmp_path: Path) -> None:
    done = []

    def stop_at_the_first_story(images: int, total: int) -> None:
        done.append((images, total))
        if images == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "out", SceneOptions(**FEW, **MORE), stop_at_the_first_story)
    assert done[-1] == (13, 17)
    write_scenes(tmp_path / "out", SceneOptions(**FEW, **MORE), lambda *counts: done.append(counts))
    assert done[-1] == (17, 17)
    assert files_of(tmp_path / "out") == files_of(written)


def test_statements_need_whole_groups_and_images_to_choose_from():
    with pytest.raises(UserError, match="statements_per_image is 6; give a multiple of 4"):
        SceneOptions(statements_per_image=6)
    with pytest.raises(UserError, match=r"heldout is 9, too few .* give 0 or at least 10, or statements_per_image 0"):
        SceneOptions(heldout=9, statements_per_image=4)
