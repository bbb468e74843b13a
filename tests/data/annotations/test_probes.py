"""Pairwise probes are read from the files as their authors publish them, and mistakes in them are one sentence."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimvl.data.annotations import Probe, read_probes
from dimvl.data.annotations.probes import ALONE, INVALID
from dimvl.errors import UserError
from tests.data.annotations.files import write
from tests.data.annotations.test_fuzz import FUZZING, damaged_bytes, damaged_tree

VALSE = {
    "actions_test_0": {
        "dataset": "SWiG",
        "original_split": "test",
        "dataset_idx": "exercising_255.jpg",
        "linguistic_phenomena": "actions",
        "image_file": "exercising_255.jpg",
        "caption": "A man exercises his torso. ",
        "classes": "man",
        "classes_foil": "torso",
        "mturk": {"foil": 0, "caption": 3, "other": 0},
        "foil": "A torso exercises for a man.",
    },
    "actions_test_58": {
        "image_file": "teaching_1.jpg",
        "caption": "A man teaches a woman.",
        "mturk": {"foil": 0, "caption": 1, "other": 2},
        "foil": "A man teaches a woman.",
    },
}
SUGAR_CREPE = {
    "0": {"filename": "000000222235.jpg", "caption": "a cat on a mat", "negative_caption": "a mat on a cat"},
    "3": {"filename": "000000000009.jpg", "caption": "two dogs", "negative_caption": "three dogs"},
}
FOIL = {
    "info": {"description": "FOIL"},
    "images": [{"id": 9, "file_name": "COCO_val2014_000000000009.jpg"}, {"id": 12, "file_name": "c.jpg"}],
    "annotations": [
        {"id": 4, "image_id": 9, "caption": "a bus", "foil": True, "foil_id": 70, "foil_word": "bus"},
        {"id": 4, "image_id": 9, "caption": "a car", "foil": False, "foil_id": 70, "foil_word": "ORIG"},
        {"id": 4, "image_id": 9, "caption": "a truck", "foil": True, "foil_id": 71, "foil_word": "truck"},
        {"id": 5, "image_id": 12, "caption": "a cup", "foil": False, "foil_id": 72, "foil_word": "ORIG"},
    ],
}
WINOGROUND = {
    "id": 0,
    "image_0": "ex_0_img_0",
    "image_1": "ex_0_img_1",
    "caption_0": "an old person kisses a young person",
    "caption_1": "a young person kisses an old person",
    "tag": "Adjective-Age",
    "secondary_tag": "",
    "num_main_preds": 1,
    "collapsed_tag": "Relation",
}
OWN = {"image": 17, "caption": "a red kite", "foil": "a blue kite"}
FILES = {
    "valse.json": json.dumps(VALSE),
    "sugar-crepe.json": json.dumps(SUGAR_CREPE),
    "foil.json": json.dumps(FOIL),
    "winoground.jsonl": json.dumps(WINOGROUND),
    "own.jsonl": json.dumps(OWN) + '\n{"image": "a.png", "caption": "x y", "foil": "y x", "id": 0}\n',
}
TREES = {"valse.json": VALSE, "sugar-crepe.json": SUGAR_CREPE, "foil.json": FOIL}
COCO_9 = "COCO_val2014_000000000009.jpg"
EXPECTED = {
    "valse.json": [
        Probe(
            "actions_test_0",
            ("A man exercises his torso.", "A torso exercises for a man."),
            *[("exercising_255.jpg",)] * 2,
        )
    ],
    "sugar-crepe.json": [
        Probe("0", ("a cat on a mat", "a mat on a cat"), *[("000000222235.jpg",)] * 2),
        Probe("3", ("two dogs", "three dogs"), *[("000000000009.jpg",)] * 2),
    ],
    "foil.json": [
        Probe(0, ("a car", "a bus"), (9,), (COCO_9,)),
        Probe(1, ("a car", "a truck"), (9,), (COCO_9,)),
    ],
    "winoground.jsonl": [
        Probe(0, (WINOGROUND["caption_0"], WINOGROUND["caption_1"]), ("ex_0_img_0", "ex_0_img_1")),
    ],
    "own.jsonl": [Probe(2, ("a red kite", "a blue kite"), (17,)), Probe(0, ("x y", "y x"), ("a.png",))],
}
LEFT_OUT = {"valse.json": {INVALID: 1}, "foil.json": {ALONE: 1}}


@pytest.mark.parametrize("name", FILES)
def test_published_files_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    found = read_probes(write(tmp_path / name, FILES[name]))
    assert found.items == EXPECTED[name] and found.left_out == LEFT_OUT.get(name, {})
    images = [record.images for probe in found.items for record in probe.records]
    assert images == [((str(image),), ()) for probe in found.items for image in probe.images]


def changed(tree: dict, *path: object, to: object) -> str:
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = to
    return json.dumps(tree)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "[]", "not in a format of probes that dimvl knows; docs/annotations.md"),
        ("a.json", '{"1": {"caption": "a"}}', "not in a format of probes"),
        ("a.json", changed(VALSE, "actions_test_0", "foil", to="A man exercises his torso."), "are both 'A man"),
        ("a.json", changed(VALSE, "actions_test_0", "mturk", "caption", to="3"), "caption of mturk is '3'; give the"),
        ("a.json", changed(VALSE, "actions_test_0", "mturk", to={}), "mturk has no field 'caption'"),
        ("a.json", changed(VALSE, "actions_test_0", "mturk", "caption", to=1), "has no usable item; check"),
        ("a.json", changed(SUGAR_CREPE, "3", "negative_caption", to=" "), "foil of item 3 is empty; remove it"),
        ("a.json", changed(SUGAR_CREPE, "3", to=7), "item '3' is not a JSON object"),
        ("a.json", changed(FOIL, "annotations", 1, "foil", to=0), "foil is 0; give true or false"),
        ("a.json", changed(FOIL, "annotations", 1, "id", to=8), "foil 4 has no caption of its image with that id"),
        ("a.json", changed(FOIL, "annotations", 1, "image_id", to=12), "foil 4 has no caption of its image"),
        ("a.json", changed(FOIL, "annotations", 2, "foil", to=False), "id 4 has two captions that are not foils"),
        ("a.json", '{"annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}', "has no field 'foil'"),
        ("a.jsonl", changed(WINOGROUND, "image_1", to="ex_0_img_0"), "both images of item 0 are 'ex_0_img_0'; give"),
        ("a.jsonl", f"{json.dumps(WINOGROUND)}\n{json.dumps(WINOGROUND)}", "line 2: id 0 appears twice"),
        ("a.jsonl", f"{json.dumps(WINOGROUND)}\n{json.dumps(OWN)}", "line 2 has no field 'id'"),
        ("a.jsonl", '{"images": [1, 2], "caption": "a b", "foil": "b a"}', "a probe is about one; give image"),
        ("a.jsonl", '{"image": 1, "caption": "a b"}', "has no field 'foil'"),
        ("a.jsonl", "", "has no usable item"),
    ],
)
def test_a_mistake_in_a_file_of_probes_is_one_sentence(name: str, content: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_probes(write(tmp_path / name, content))
    assert str(tmp_path / name) in str(error.value) and words in str(error.value)


@settings(FUZZING, max_examples=200)
@given(data=st.data())
def test_a_damaged_file_of_probes_is_one_sentence_or_a_correct_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(FILES)))
    changed_tree = name in TREES and data.draw(st.booleans())
    content = data.draw(damaged_tree(TREES[name]) if changed_tree else damaged_bytes(FILES[name]))
    path = write(tmp_path_factory.getbasetemp() / name, content)
    try:
        found = read_probes(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert len({str(probe.probe_id) for probe in found.items}) == len(found.items) > 0
    for probe in found.items:
        one, two = probe.texts
        assert one.strip() == one != two == two.strip() and one and two
        assert len(set(map(str, probe.images))) == len(probe.images) in (1, 2)
