import copy
import json
import os

import pytest

from dimvl.data.annotations import read_captions
from dimvl.errors import UserError
from tests.data.annotations.files import (
    BARS,
    CAPTION_FILES,
    COCO,
    COMMAS,
    CONCEPTUAL,
    IMAGES,
    KARPATHY,
    LINES,
    SPLITS,
    TEXTS,
    TOKEN,
    write,
)

CAPTION = {"id": 1, "image_id": 7, "caption": " a red star "}


def without(record, field):
    return {name: value for name, value in record.items() if name != field}


def read(tmp_path, name, content=None):
    path = write(tmp_path / name, CAPTION_FILES[name] if content is None else content)
    return read_captions(path, SPLITS.get(name, ()))


# --- every format


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_every_format_gives_the_same_captions(tmp_path, name):
    captions = read(tmp_path, name)
    assert sorted(caption.text for caption in captions) == sorted(TEXTS)
    assert len({caption.caption_id for caption in captions}) == 4
    by_text = {caption.text: caption.image_id for caption in captions}
    images = ("12", "9", "9", "12") if "json" in name[-4:] and name != "own.jsonl" else sorted(IMAGES * 2)
    if name == "conceptual.tsv":
        images = [f"cc/{image}" for image in images]
    assert [by_text[text] for text in TEXTS] == list(images)


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path, name):
    content = CAPTION_FILES[name]
    other = b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode() + b"\r\n\r\n"
    assert read(tmp_path, name, other) == read(tmp_path, name)


def test_captions_of_coco_come_in_the_order_of_the_file_with_image_ids_as_text_and_file_names(tmp_path):
    content = {"annotations": [CAPTION, {**CAPTION, "id": "0", "image_id": "x", "caption": "b"}]}
    captions = read_captions(write(tmp_path / "c.json", content))
    assert [(c.caption_id, c.image_id, c.text) for c in captions] == [(1, "7", "a red star"), ("0", "x", "b")]
    assert {c.image_ids: c.file_names for c in read(tmp_path, "coco.json")} == {
        ("9",): ("COCO_val2014_000000000009.jpg",),
        ("12",): ("COCO_train2014_000000000012.jpg",),
    }


def test_splits_of_karpathy_are_read_as_asked_and_restval_joins_train_only_on_request(tmp_path):
    path = write(tmp_path / "dataset_coco.json", KARPATHY)
    assert {caption.image_id for caption in read_captions(path, ["train"])} == {"12"}
    assert {caption.image_id for caption in read_captions(path, ["restval"])} == {"9"}
    assert {caption.image_id for caption in read_captions(path, ["train", "restval"])} == {"9", "12"}
    twice = write(tmp_path / "twice.json", karpathy(cocoid=9))
    with pytest.raises(UserError, match="image 9 appears twice"):  # though only one of them is read
        read_captions(twice, ["restval"])
    assert read_captions(path, ["train"])[0].file_names == ("train2014/COCO_train2014_000000000012.jpg",)


def test_without_a_coco_id_an_image_of_karpathy_is_its_file_name(tmp_path):
    content = copy.deepcopy(KARPATHY)
    for image, name in zip(content["images"], IMAGES, strict=True):
        del image["cocoid"], image["filepath"]
        image["filename"] = name
    captions = read_captions(write(tmp_path / "dataset_flickr30k.json", content), ["train"])
    assert {(caption.image_ids, caption.file_names) for caption in captions} == {(IMAGES[:1], IMAGES[:1])}


def test_a_split_must_be_named_where_there_are_some_be_there_and_not_be_named_elsewhere(tmp_path):
    path = write(tmp_path / "k.json", KARPATHY)
    with pytest.raises(UserError, match=r"splits restval \(1 images\), train \(1 images\); choose with"):
        read_captions(path)
    with pytest.raises(UserError, match="no split 'dev', only restval"):
        read_captions(path, ["train", "dev"])
    for name in ("coco.json", "own.jsonl", "results.token"):
        with pytest.raises(UserError, match="has no splits, but split is train; remove it"):
            read_captions(write(tmp_path / name, CAPTION_FILES[name]), ["train"])


def test_an_error_shows_what_it_quotes_even_if_no_terminal_could(tmp_path):
    records = copy.deepcopy(KARPATHY)
    records["images"][0]["split"] = "\ud800\x1b[2J\u202e"
    with pytest.raises(UserError, match="no split 'dev', only") as error:
        read_captions(write(tmp_path / "k.json", records), ["dev"])
    assert r"\ud800\x1b[2J\u202e" in str(error.value)


def test_a_flickr_row_that_lacks_a_bar_is_repaired_and_no_other_row_is(tmp_path):
    assert read(tmp_path, "results.csv")[3].text == TEXTS[3]
    with pytest.raises(UserError, match=r"line 2 is not of the form image\| number\| caption"):
        read(tmp_path, "results.csv", "image_name| comment_number| comment\na.jpg| a red star\n")


def test_only_line_feeds_end_a_line(tmp_path):
    text = "a red\u2028star\x0b\x85of"
    captions = read(tmp_path, "conceptual.tsv", f"{text}\ta.jpg\n")
    assert [caption.text for caption in captions] == [text]


def test_the_header_of_conceptual_captions_is_skipped_but_a_caption_like_it_is_read(tmp_path):
    content = "caption\turl\na red star\thttp://some.org/a.jpg?w=5\ncaption\turl\n"
    captions = read(tmp_path, "conceptual.tsv", content)
    assert [(c.caption_id, c.image_id, c.text) for c in captions] == [
        (0, "http://some.org/a.jpg?w=5", "a red star"),
        (1, "url", "caption"),
    ]


def test_the_format_is_recognised_from_the_first_line_not_from_the_file_name(tmp_path):
    for name in ("results.token", "results.csv", "captions.txt", "conceptual.tsv"):
        assert len(read_captions(write(tmp_path / "file", CAPTION_FILES[name]))) == 4


# --- what is wrong


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"annotations": [{"id": ' + "9" * 5000 + "}]}", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        ([CAPTION], "item 0 has an id, so it is no result; put the list under the key 'annotations'"),
        ([], "no list 'annotations'"),
        ({"annotations": {}}, "no list 'annotations'"),
        ({"questions": []}, "no list 'annotations'"),
        ({"annotations": [CAPTION, 3]}, "item 1 .* is not a JSON object"),
        ({"annotations": [CAPTION, "id image_id caption"]}, "item 1 .* is not a JSON object"),
        ({"annotations": [without(CAPTION, "caption")]}, "no field 'caption'"),
        ({"annotations": [without(CAPTION, "image_id")]}, "no field 'image_id'"),
        ({"annotations": [{**CAPTION, "caption": " \n"}]}, "caption 1 of image 7 is empty; remove"),
        ({"annotations": [{**CAPTION, "caption": "\u200b"}]}, r"1 of image 7 is empty \(it has only '\\u200b'\)"),
        ({"annotations": [{**CAPTION, "caption": "\x01 \u0301\ufeff"}]}, "caption 1 of image 7 is empty"),
        ({"annotations": [{**CAPTION, "caption": "a" * 100_001}]}, "has 100,001 characters, more than 100,000"),
        ('{"annotations": [], "annotations": []}', "an object has the key 'annotations' twice"),
        ({**COCO, "annotations": []}, "lists 2 images but no captions"),
        ({**COCO, "images": [{"id": 9, "file_name": "a"}, {"id": "9", "file_name": "b"}]}, "'9' appears twice, for a"),
        ({**COCO, "images": [{"id": 9, "file_name": "a"}, {"id": 9}]}, "id 9 appears twice, for a and for no file"),
        (
            {**COCO, "images": [{"id": 9, "file_name": "a"}, {"id": 8, "file_name": "a"}]},
            "'a' has two ids, '9' and '8'",
        ),
        ({"annotations": [{**CAPTION, "caption": None}]}, "caption 1 of image 7 is None, not text"),
        ({"annotations": [{**CAPTION, "caption": ["a"]}]}, "caption 1 of image 7 is .*, not text"),
        ('{"annotations": [{"id": 1, "image_id": 7, "caption": "\\ud800"}]}', "not valid Unicode"),
        ({"annotations": [{**CAPTION, "id": True}]}, "id True is not an id"),
        ({"annotations": [{**CAPTION, "id": 1.5}]}, "id 1.5 is not an id"),
        ({"annotations": [{**CAPTION, "id": float("nan")}]}, "id nan is not an id"),
        ({"annotations": [{**CAPTION, "id": float("inf")}]}, "id inf is not an id"),
        ({"annotations": [{**CAPTION, "id": 1e300}]}, r"id 1e\+300 is not an id"),
        ({"annotations": [{**CAPTION, "id": "9" * 5001}]}, "has more than 5,000 characters"),
        ({"annotations": [{**CAPTION, "image_id": None}]}, "image_id None is not an id"),
        ({"annotations": [{**CAPTION, "image_id": False}]}, "image_id False is not an id"),
        ({"annotations": [{**CAPTION, "image_id": " "}]}, "image_id ' ' is not an id"),
        ({"annotations": [{**CAPTION, "image_id": "a\nb"}]}, "is not an id"),
        ({"annotations": [{**CAPTION, "image_id": [1]}]}, "is not an id"),
        ({"annotations": [CAPTION, CAPTION]}, "item 1 .* caption id 1 appears twice"),
        ({**COCO, "images": [3]}, "item 0 of 'images' is not a JSON object"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_bad_coco_file_is_one_sentence_with_its_name(tmp_path, content, says):
    with pytest.raises(UserError, match=says) as caught:
        read_captions(write(tmp_path / "c.json", content))
    assert str(tmp_path / "c.json") in str(caught.value) and "\n" not in str(caught.value)


def test_written_captions_are_read_in_cocos_result_format_in_their_order(tmp_path):
    content = [{"image_id": 7, "caption": " a red star "}, {"image_id": "07", "caption": ""}]
    captions = read_captions(write(tmp_path / "predictions.json", content))
    assert [(c.caption_id, c.image_id, c.named_images[0], c.text) for c in captions] == [
        (0, "7", (7,), "a red star"),
        (1, "07", ("07",), "."),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"image_id": 7, "question": "a"}], "item 0 has no field 'caption'"),
        ([{"image_id": 7, "caption": " "}], "item 0: the caption of 7 is empty"),
        ([{"image_id": 7.5, "caption": "a"}], "is not an id"),
        (["a"], "item 0 is not a JSON object"),
    ],
)
def test_bad_written_captions_are_one_sentence(tmp_path, content, says):
    with pytest.raises(UserError, match=says):
        read_captions(write(tmp_path / "predictions.json", content))


def karpathy(**changes):
    content = copy.deepcopy(KARPATHY)
    content["images"][0].update(changes)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("karpathy.json", karpathy(sentences=3), "sentences of image 12 is 3, not a list"),
        ("karpathy.json", karpathy(sentences=[{"raw": "a"}]), "a sentence of image 12 has no field 'sentid'"),
        ("karpathy.json", karpathy(sentences=[{"raw": "", "sentid": 7}]), "caption 7 of image 12 is empty"),
        ("karpathy.json", karpathy(sentences=[{"raw": "a", "sentid": 1}]), "sentid 1 appears twice"),
        ("karpathy.json", karpathy(cocoid="9"), "image '?9'? appears twice"),
        (
            "karpathy.json",
            karpathy(filepath="val2014", filename="COCO_val2014_000000000009.jpg"),
            "file 'val2014/COCO_val2014_000000000009.jpg' appears twice",
        ),
        ("karpathy.json", karpathy(filename=None), "filename None is not an id"),
        ("karpathy.json", karpathy(split=["train"]), "no split 'train'"),
        ("results.token", TOKEN + "a.jpg#0 a star\n", "line 5 is not of the form FILE#NUMBER"),
        ("results.token", TOKEN + "a.jpg\ta star\n", "line 5 is not of the form FILE#NUMBER"),
        ("results.token", TOKEN + f"{IMAGES[0]}#1\ta star\n", f"caption '{IMAGES[0]}#1' appears twice"),
        ("results.token", TOKEN + "a.jpg#x\ta star\n", "'x' is not a whole number"),
        ("results.token", TOKEN + "a.jpg#0\t \n", r"line 5: caption of image a\.jpg is empty"),
        ("results.token", TOKEN.encode() + b"a.jpg#0\t\xff\n", "is not UTF-8 text"),
        ("results.csv", BARS + "a.jpg\n", r"line 6 is not of the form image\| number\| caption"),
        ("results.csv", BARS + "a.jpg| | a star\n", "is not a whole number"),
        ("results.csv", BARS + f"a.jpg| {'9' * 5000}| a star\n", "is not a whole number of 18 digits or fewer"),
        ("captions.txt", COMMAS + "a.jpg,0\n", "row 6 is cut off"),
        ("captions.txt", COMMAS + 'a.jpg,0,"a star\nb.jpg,0,"a cube"\n', "is not valid CSV|is cut off"),
        ("captions.txt", COMMAS + 'a.jpg,0,"a star\nb.jpg,0,a cube\n', "is not valid CSV"),
        ("captions.txt", COMMAS + 'a.jpg,0,"a star\nb.jpg,0,a cube"\n', "quotes are not closed"),
        ("captions.txt", COMMAS + "a.jpg,0," + "x" * 200_000, "is not valid CSV"),
        ("conceptual.tsv", CONCEPTUAL + "a star\n", "line 5 has 1 columns instead of caption, tab, image"),
        ("conceptual.tsv", CONCEPTUAL + "a star\tb\tc\n", "line 5 has 3 columns"),
        ("conceptual.tsv", CONCEPTUAL + " \ta.jpg\n", "is empty"),
        ("conceptual.tsv", CONCEPTUAL + "a star\t \n", "is not an id"),
        ("own.jsonl", LINES + "{\n", "line 5 is not valid JSON"),
        ("own.jsonl", LINES + '{"image": 1, "image": 2}\n', "line 5 is .* has the key 'image' twice"),
        ("own.jsonl", LINES + "x" * (10**7 + 1), "line 5 has more than 10,000,000 characters"),
        ("own.jsonl", LINES + "[" * 100_000 + "\n", "line 5 is not valid JSON"),
        ("own.jsonl", LINES + '"image caption"\n', "line 5 is not a JSON object"),
        ("own.jsonl", LINES + '{"image": 1, "captions": "a"}\n', "line 5 has no field 'caption'"),
        ("own.jsonl", LINES + 2 * '{"image": 1, "caption": "a", "id": 0}\n', "id 0 appears twice"),
        ("file.csv", "", "not in a caption format"),
        ("file.csv", "image;caption\n", "not in a caption format"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_other_bad_files_are_one_sentence_with_their_name_and_place(tmp_path, name, content, says):
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path, name, content)
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    for name in ("c.json", "c.jsonl", "c.tsv"):
        with pytest.raises(UserError, match=f"{name} does not exist"):
            read_captions(tmp_path / name)
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} is a pipe or a device"):
            read_captions(tmp_path / name)
    with pytest.raises(UserError, match="is a folder; give a file"):
        read_captions(tmp_path)


# --- ids


def test_an_image_twice_in_the_list_of_a_file_is_no_mistake_if_both_say_the_same(tmp_path):
    content = {**COCO, "images": COCO["images"] * 2}
    assert read_captions(write(tmp_path / "c.json", content)) == read(tmp_path, "coco.json")


def test_ids_stay_numbers_or_text_as_the_file_has_them(tmp_path):
    annotations = [{**CAPTION, "id": id_, "image_id": image} for id_, image in ((1, 7), ("01", "07"), (2.0, 7.0))]
    found = read_captions(write(tmp_path / "c.json", {"annotations": annotations}))
    assert [(c.caption_id, *c.named_images[0], c.image_id) for c in found] == [
        (1, 7, "7"),
        ("01", "07", "07"),
        (2, 7, "7"),
    ]
    lines = (
        '{"image": 7, "caption": "a", "id": 1}\n{"images": ["07", 3], "caption": "b"}\n{"image": 8, "caption": "c"}\n'
    )
    found = read_captions(write(tmp_path / "c.jsonl", lines))
    assert [(c.caption_id, c.named_images[0]) for c in found] == [(1, (7,)), (3, ("07", 3)), (2, (8,))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.json", {"images": COCO["images"]}),
        ("c.json", {"images": COCO["images"], "annotations": []}),
        ("k.json", {"images": [{**image, "sentences": []} for image in reversed(KARPATHY["images"])]}),
        ("c.jsonl", '{"image": 9}\n{"image": 12}\n'),
    ],
)
def test_images_whose_captions_are_not_published_are_read_for_predictions_only(tmp_path, name, content):
    path = write(tmp_path / name, content)
    splits = ("train", "restval") if name == "k.json" else ()
    found = read_captions(path, splits, bare=True)
    assert [(*c.named_images[0], c.text) for c in found] == [(9, ""), (12, "")]
    assert name == "c.jsonl" or all("COCO_" in c.file_names[0] for c in found)
    try:
        assert read_captions(path, splits) == [], "no empty caption is trained on"
    except UserError as error:
        assert "no captions" in str(error) or "has no field 'caption'" in str(error)
