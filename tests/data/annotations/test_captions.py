import copy
import json

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
    assert [(c.caption_id, c.image_id, c.text) for c in captions] == [(1, "7", "a red star"), (0, "x", "b")]
    assert {c.image_ids: c.file_names for c in read(tmp_path, "coco.json")} == {
        ("9",): ("COCO_val2014_000000000009.jpg",),
        ("12",): ("COCO_train2014_000000000012.jpg",),
    }


def test_splits_of_karpathy_are_read_as_asked_and_restval_joins_train_only_on_request(tmp_path):
    path = write(tmp_path / "dataset_coco.json", KARPATHY)
    assert {caption.image_id for caption in read_captions(path, ["train"])} == {"12"}
    assert {caption.image_id for caption in read_captions(path, ["restval"])} == {"9"}
    assert {caption.image_id for caption in read_captions(path, ["train", "restval"])} == {"9", "12"}
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
        ([CAPTION], "no list 'annotations'"),
        ({"annotations": {}}, "no list 'annotations'"),
        ({"questions": []}, "no list 'annotations'"),
        ({"annotations": [CAPTION, 3]}, "item 1 .* is not a JSON object"),
        ({"annotations": [CAPTION, "id image_id caption"]}, "item 1 .* is not a JSON object"),
        ({"annotations": [without(CAPTION, "caption")]}, "no field 'caption'"),
        ({"annotations": [without(CAPTION, "image_id")]}, "no field 'image_id'"),
        ({"annotations": [{**CAPTION, "caption": " \n"}]}, "caption 1 of image 7 is empty"),
        ({"annotations": [{**CAPTION, "caption": None}]}, "caption 1 of image 7 is None, not text"),
        ({"annotations": [{**CAPTION, "caption": ["a"]}]}, "caption 1 of image 7 is .*, not text"),
        ('{"annotations": [{"id": 1, "image_id": 7, "caption": "\\ud800"}]}', "not valid Unicode"),
        ({"annotations": [{**CAPTION, "id": "first"}]}, "'first' is not a whole number"),
        ({"annotations": [{**CAPTION, "id": True}]}, "id True is not a whole number"),
        ({"annotations": [{**CAPTION, "id": 1.5}]}, "id 1.5 is not a whole number"),
        ({"annotations": [{**CAPTION, "id": float("nan")}]}, "id nan is not a whole number"),
        ({"annotations": [{**CAPTION, "id": float("inf")}]}, "id inf is not a whole number"),
        ({"annotations": [{**CAPTION, "id": 2**63}]}, "does not fit in 64 bits"),
        ({"annotations": [{**CAPTION, "id": 1e300}]}, "does not fit in 64 bits"),
        ({"annotations": [{**CAPTION, "image_id": None}]}, "image_id None does not name an image"),
        ({"annotations": [{**CAPTION, "image_id": False}]}, "image_id False does not name an image"),
        ({"annotations": [{**CAPTION, "image_id": " "}]}, "image_id ' ' does not name an image"),
        ({"annotations": [{**CAPTION, "image_id": "a\nb"}]}, "does not name an image"),
        ({"annotations": [{**CAPTION, "image_id": [1]}]}, "does not name an image"),
        ({"annotations": [CAPTION, CAPTION]}, "item 1 .* caption id 1 appears twice"),
        ({**COCO, "images": [3]}, "item 0 of 'images' is not a JSON object"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_bad_coco_file_is_one_sentence_with_its_name(tmp_path, content, says):
    with pytest.raises(UserError, match=says) as caught:
        read_captions(write(tmp_path / "c.json", content))
    assert str(tmp_path / "c.json") in str(caught.value) and "\n" not in str(caught.value)


def karpathy(**changes):
    content = copy.deepcopy(KARPATHY)
    content["images"][0].update(changes)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("karpathy.json", karpathy(sentences=3), "sentences of image 12 is not a list"),
        ("karpathy.json", karpathy(sentences=[{"raw": "a"}]), "a sentence of image 12 has no field 'sentid'"),
        ("karpathy.json", karpathy(sentences=[{"raw": "", "sentid": 7}]), "caption 7 of image 12 is empty"),
        ("karpathy.json", karpathy(sentences=[{"raw": "a", "sentid": 1}]), "sentid 1 appears twice"),
        ("karpathy.json", karpathy(cocoid=9), "image '9' appears twice"),
        ("karpathy.json", karpathy(filename=None), "filename None does not name an image"),
        ("karpathy.json", karpathy(split=["train"]), "no split 'train'"),
        ("results.token", TOKEN + "a.jpg#0 a star\n", "line 5 is not of the form FILE#NUMBER"),
        ("results.token", TOKEN + "a.jpg\ta star\n", "line 5 is not of the form FILE#NUMBER"),
        ("results.token", TOKEN + f"{IMAGES[0]}#1\ta star\n", f"caption '{IMAGES[0]}#1' appears twice"),
        ("results.token", TOKEN + "a.jpg#x\ta star\n", "'x' is not a whole number"),
        ("results.token", TOKEN + "a.jpg#0\t \n", r"line 5: caption of image a\.jpg is empty"),
        ("results.token", TOKEN.encode() + b"a.jpg#0\t\xff\n", "is not UTF-8 text"),
        ("results.csv", BARS + "a.jpg\n", r"line 6 is not of the form image\| number\| caption"),
        ("results.csv", BARS + "a.jpg| | a star\n", "is not a whole number"),
        ("captions.txt", COMMAS + "a.jpg,0\n", "row 6 is cut off"),
        ("captions.txt", COMMAS + 'a.jpg,0,"a star\nb.jpg,0,"a cube"\n', "is not valid CSV|is cut off"),
        ("captions.txt", COMMAS + 'a.jpg,0,"a star\nb.jpg,0,a cube\n', "is not valid CSV"),
        ("captions.txt", COMMAS + 'a.jpg,0,"a star\nb.jpg,0,a cube"\n', "quotes are not closed"),
        ("captions.txt", COMMAS + "a.jpg,0," + "x" * 200_000, "is not valid CSV"),
        ("conceptual.tsv", CONCEPTUAL + "a star\n", "line 5 has 1 columns instead of caption, tab, image"),
        ("conceptual.tsv", CONCEPTUAL + "a star\tb\tc\n", "line 5 has 3 columns"),
        ("conceptual.tsv", CONCEPTUAL + " \ta.jpg\n", "is empty"),
        ("conceptual.tsv", CONCEPTUAL + "a star\t \n", "does not name an image"),
        ("own.jsonl", LINES + "{\n", "line 5 is not valid JSON"),
        ("own.jsonl", LINES + "[" * 100_000 + "\n", "line 5 is not valid JSON"),
        ("own.jsonl", LINES + '"image caption"\n', "line 5 is not a JSON object"),
        ("own.jsonl", LINES + '{"image": 1, "captions": "a"}\n', "line 5 has no field 'caption'"),
        ("own.jsonl", LINES + '{"image": 1, "caption": "a", "id": 0}\n', "id 0 appears twice"),
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
    with pytest.raises(UserError, match="cannot be read"):
        read_captions(tmp_path)
