"""Phrases with boxes: each official format is read as it is, and each mistake is one sentence with place and remedy."""

import copy
import json
import pickle
import random
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from dimvl.data.annotations import Phrase, read_phrases
from dimvl.errors import UserError

REFS = [
    {
        "ref_id": 1,
        "ann_id": 77,
        "image_id": 9,
        "category_id": 1,
        "split": "train",
        "file_name": "COCO_train2014_000000000009_0.jpg",
        "sent_ids": [0, 1],
        "sentences": [
            {"sent_id": 0, "sent": "the lady", "raw": "The lady!", "tokens": ["the", "lady"]},
            {"sent_id": 1, "sent": "woman left", "raw": "woman, left", "tokens": ["woman", "left"]},
        ],
    },
    {"ref_id": 2, "ann_id": 78, "image_id": 9, "split": "testA", "sentences": [{"sent_id": 2, "raw": "café table"}]},
]
INSTANCES = {
    "images": [{"id": 9, "width": 100, "height": 80, "file_name": "COCO_train2014_000000000009.jpg"}],
    "annotations": [
        {"id": 77, "image_id": 9, "category_id": 1, "bbox": [10, 20, 30.5, 40], "iscrowd": 0},
        {"id": 78, "image_id": 9, "category_id": 2, "bbox": [60, 10, 40, 70], "iscrowd": 0},
    ],
}
CAPTIONED = {
    "images": [
        {
            "id": 0,
            "original_id": 9,
            "width": 100,
            "height": 80,
            "file_name": "COCO_train2014_000000000009.jpg",
            "caption": "the lady",
        },
        {
            "id": 1,
            "original_id": 9,
            "width": 100,
            "height": 80,
            "file_name": "COCO_train2014_000000000009.jpg",
            "caption": "no such thing",
        },
    ],
    "annotations": [{"id": 5, "image_id": 0, "bbox": [10, 20, 30.5, 40]}],
}
LINE = {"image": 9, "phrase": "the lady", "boxes": [[10, 20, 40.5, 60]], "width": 100, "height": 80}
SENTENCES = """[/EN#283585/people A young child] is climbing [/EN#283587/other stairs] into [/EN#0/notvisual it] .
[/EN#283585/people/other The child] climbs [/EN#283588/scene a house] .
"""
XML = """<annotation><filename>1000.jpg</filename><size><width>100</width><height>80</height><depth>3</depth></size>
<object><name>283585</name><name>283587</name>
<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>40</xmax><ymax>60</ymax></bndbox></object>
<object><name>283585</name><bndbox><xmin>50</xmin><ymin>20</ymin><xmax>90</xmax><ymax>60</ymax></bndbox></object>
<object><name>283588</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>"""


def write_refs(folder, refs=None, instances=None, protocol=2):
    (folder / "refs(unc).p").write_bytes(pickle.dumps(REFS if refs is None else refs, protocol))
    (folder / "instances.json").write_text(json.dumps(instances or INSTANCES))
    return folder / "refs(unc).p", folder / "instances.json"


def write_lines(folder, *lines):
    (folder / "phrases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "phrases.jsonl"


def write_entities(folder, sentences=SENTENCES, xml=XML, prefix=""):
    with zipfile.ZipFile(folder / "annotations.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{prefix}Sentences/1000.txt", sentences)
        archive.writestr(f"{prefix}Sentences/2000.txt", "")
        for image in (1000, 2000):
            archive.writestr(f"{prefix}Annotations/{image}.xml", xml)
    return folder / "annotations.zip"


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_refcoco_is_read_from_its_pickle_and_from_json(tmp_path, protocol):
    refs, instances = write_refs(tmp_path, protocol=protocol)
    found = read_phrases(refs, instances)
    file = ("COCO_train2014_000000000009.jpg",)
    lady = Phrase(0, ("9",), "the lady", ((10, 20, 40.5, 60),), (100, 80), "train", (), file, written_ids=(9,))
    table = Phrase(2, ("9",), "café table", ((60, 10, 100, 80),), (100, 80), "testA", (), file, written_ids=(9,))
    assert found == [lady, replace(lady, phrase_id=1, text="woman left"), table]
    assert read_phrases(refs, instances, ["testA"]) == [table]
    (tmp_path / "refs.json").write_text(json.dumps(REFS))
    assert read_phrases(tmp_path / "refs.json", instances) == found


def test_cocos_layout_with_a_caption_for_each_image_is_read(tmp_path):
    (tmp_path / "refcoco.json").write_text(json.dumps(CAPTIONED))
    lady, nothing = read_phrases(tmp_path / "refcoco.json")
    file = ("COCO_train2014_000000000009.jpg",)
    assert lady == Phrase(0, ("9",), "the lady", ((10, 20, 40.5, 60),), (100, 80), "", (), file, written_ids=(9,))
    assert (nothing.text, nothing.boxes) == ("no such thing", ())


@pytest.mark.parametrize("prefix", ["", "flickr30k_entities/"])
def test_flickr30k_entities_are_read_from_their_archive_without_what_has_no_box(tmp_path, prefix):
    file, first = write_entities(tmp_path, prefix=prefix), (10, 20, 40, 60)
    found = read_phrases(file)
    both = (first, (50, 20, 90, 60))
    names = ("1000.jpg",)
    assert found == [
        Phrase(0, ("1000",), "A young child", both, (100, 80), kinds=("people",), file_names=names),
        Phrase(1, ("1000",), "stairs", (first,), (100, 80), kinds=("other",), file_names=names),
        Phrase(2, ("1000",), "The child", both, (100, 80), kinds=("people", "other"), file_names=names),
    ]
    (tmp_path / "val.txt").write_text("2000\n")
    assert read_phrases(file, tmp_path / "val.txt") == []
    (tmp_path / "val.txt").write_text("1000\n2000\n")
    assert read_phrases(file, tmp_path / "val.txt") == found


def test_lines_of_our_own_are_read_and_a_split_is_chosen(tmp_path):
    more = {"image": "a.jpg", "phrase": "it", "boxes": [], "id": "x", "split": "val", "types": ["people"]}
    file = write_lines(tmp_path, LINE, more, {**LINE, "image": 3, "file_name": "b.jpg", "split": "val"})
    first, second, third = read_phrases(file)
    assert first == Phrase(0, ("9",), "the lady", ((10, 20, 40.5, 60),), (100, 80), file_names=("9",), written_ids=(9,))
    assert (second.phrase_id, second.boxes, second.kinds, second.size) == ("x", (), ("people",), None)
    assert third.file_names == ("b.jpg",)
    assert read_phrases(file, split=["val"]) == [second, third]


LINES = {
    r"line 1: box \[10.0, 20.0, 5.0, 60.0\] of phrase 0 is in another form; give x1, y1, x2, y2": [[10, 20, 5, 60]],
    r"second corner at x \+ width": [[50, 60, 20, 10]],
    r"box \[10.0, 20.0, 140.0, 60.0\] of phrase 0 is outside its image of 100 x 80; give x1": [[10, 20, 140, 60]],
    r"is outside its image": [[-9, 20, 40, 60]],
    r"smaller than a pixel; give pixels, not fractions": [[0.1, 0.2, 0.5, 0.9]],
    r"box \[1, 2, 3\] of phrase 0 is not a list of four numbers": [[1, 2, 3]],
    r"box \[1, 2, 3, True\] of phrase 0 is not": [[1, 2, 3, True]],
    r"box \[1, 2, 3, nan\] of phrase 0 is not": [[1, 2, 3, float("nan")]],
    r"box 7 of phrase 0 is not": [7],
    r"boxes of phrase 0 is 'x', not a list": "x",
}


@pytest.mark.parametrize("message", LINES)
def test_a_box_in_the_wrong_form_is_one_sentence_with_its_place(tmp_path, message):
    with pytest.raises(UserError, match=message) as error:
        read_phrases(write_lines(tmp_path, {**LINE, "boxes": LINES[message]}))
    assert str(error.value).startswith(f"{tmp_path / 'phrases.jsonl'}, line 1")


def changed(content, *places, value):
    content = copy.deepcopy(content)
    node = content
    for place in places[:-1]:
        node = node[place]
    node[places[-1]] = value
    return content


REFERRING = [
    (changed(REFS, 0, "ann_id", value=5), None, "item 0 is about object 5, which .*instances.json lacks"),
    (changed(REFS, 0, "image_id", value=5), None, "item 0 is about image 5, which .*lacks; give the instances"),
    (changed(REFS, 0, "sentences", 1, "sent_id", value=0), None, "item 0: sent_id 0 appears twice"),
    (changed(REFS, 0, "sentences", 0, "sent", value=" "), None, "item 0: expression 0 is empty"),
    (changed(REFS, 1, value={}), None, "item 1 has no field 'ann_id'"),
    ({"refs": []}, None, r"refs\(unc\)\.p: the file is .*, not a list"),
    (
        None,
        changed(INSTANCES, "annotations", 0, "bbox", value=[60, 20, 90, 60]),
        "COCO's boxes are x, y, width, height",
    ),
    (
        None,
        changed(INSTANCES, "annotations", 0, "bbox", value=[60, 20, 0, 60]),
        "has no area; give x, y, width, height",
    ),
    (None, changed(INSTANCES, "annotations", 1, "id", value=77), "id 77 appears twice"),
    (None, changed(INSTANCES, "images", 0, "width", value=0), "has width 0; give its size in whole pixels"),
]


@pytest.mark.parametrize(("refs", "instances", "message"), REFERRING)
def test_a_mistake_in_referring_expressions_is_one_sentence(tmp_path, refs, instances, message):
    with pytest.raises(UserError, match=message):
        read_phrases(*write_refs(tmp_path, refs, instances))


def test_an_object_of_another_image_is_refused(tmp_path):
    instances = copy.deepcopy(INSTANCES)
    instances["images"].append({"id": 10, "width": 5, "height": 5})
    with pytest.raises(UserError, match=r"object 77 is in image 10 but in image 9 in .*; give files that belong"):
        read_phrases(*write_refs(tmp_path, changed(REFS, 0, "image_id", value=10), instances))


BOMB = '<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c SYSTEM "file:///etc/passwd">]><annotation>&c;</annotation>'
ENTITIES = [
    ({"xml": BOMB}, r"Annotations/1000.xml is not an annotation of this data set \(it declares a document type\)"),
    ({"xml": "<annotation>"}, "Annotations/1000.xml is not an annotation of this data set"),
    ({"xml": "<annotation/>"}, "is not an annotation"),
    ({"xml": XML.replace("<xmin>10", "<xmin>x")}, "is not an annotation of this data set .*could not convert"),
    ({"xml": XML.replace("<xmax>40", "<xmax>140")}, "entity 283585 is outside its image of 100 x 80"),
    ({"xml": XML.replace("<xmax>40", "<xmax>4")}, "entity 283585 is in another form; give x1, y1, x2, y2"),
    ({"sentences": "x" * 2**20 + "y"}, "Sentences/1000.txt has more than 1,048,576 bytes"),
    ({"prefix": "x/", "sentences": b"\xff\xff"}, "Sentences/1000.txt is not UTF-8"),
]


@pytest.mark.parametrize(("change", "message"), ENTITIES)
def test_a_mistake_in_flickr30k_entities_is_one_sentence(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read_phrases(write_entities(tmp_path, **change))


def test_files_that_do_not_belong_together_are_one_sentence(tmp_path):
    refs, instances = write_refs(tmp_path)
    entities, lines = write_entities(tmp_path), write_lines(tmp_path, LINE)
    (tmp_path / "val.txt").write_text("3\n")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "plain.zip").write_bytes(b"PK no archive")
    (tmp_path / "twice.txt").write_text("3\n3\n")
    for message, arguments in {
        "contains its own boxes; remove the file": (lines, instances),
        "has no splits, and split is 'val'; name one": (lines, None, ["val"]),
        "has the splits testA, train, and split is 'val'": (refs, instances, ["val"]),
        "give COCO's instances.json beside it as images": (refs,),
        "has expressions without boxes; give COCO's instances": (tmp_path / "list.json",),
        "has no sentences of image 3 of": (entities, tmp_path / "val.txt"),
        "image '3' appears twice": (entities, tmp_path / "twice.txt"),
        "cannot be read as an archive": (tmp_path / "plain.zip",),
        "does not exist": (Path(tmp_path / "none.p"), instances),
    }.items():
        with pytest.raises(UserError, match=message):
            read_phrases(*arguments)


def test_a_phrase_about_two_images_or_without_its_boxes_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="line 1: phrase 0 is about 2 images; write a line for each image"):
        read_phrases(write_lines(tmp_path, {"images": [1, 2], "phrase": "x", "boxes": []}))
    with pytest.raises(UserError, match="line 1 has no field 'boxes'"):
        read_phrases(write_lines(tmp_path, {"image": 1, "phrase": "x"}))
    with pytest.raises(UserError, match="line 1 has only one of width and height; give both"):
        read_phrases(write_lines(tmp_path, {"image": 1, "phrase": "x", "boxes": [], "width": 4}))


def test_a_changed_file_is_read_or_is_one_sentence(tmp_path):
    refs, instances = write_refs(tmp_path)
    old = tmp_path / "old.p"
    old.write_bytes(pickle.dumps(REFS, 0))
    (tmp_path / "captioned.json").write_text(json.dumps(CAPTIONED))
    entities, lines = write_entities(tmp_path), write_lines(tmp_path, LINE)
    generator = random.Random(0)
    calls = [(refs, instances), (old, instances), (tmp_path / "captioned.json",), (entities,), (lines,)]
    refused = 0
    for arguments in calls:
        sound = arguments[0].read_bytes()
        for _ in range(150):
            data = bytearray(sound)
            for _ in range(generator.randint(1, 3)):
                place = generator.randrange(len(data))
                data[place : place + generator.randint(0, 3)] = generator.randbytes(generator.randint(0, 3))
            arguments[0].write_bytes(data)
            try:
                assert all(isinstance(one, Phrase) for one in read_phrases(*arguments))
            except UserError as error:
                refused += 1
                assert "; " in str(error)
    assert refused > 300
