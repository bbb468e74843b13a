import json
import logging
from pathlib import Path
from typing import get_args

import pytest

from dimvl.config.sections import InputsConfig, Match
from dimvl.data.annotations import Caption
from dimvl.data.matching import RULES, Subset, match_file, match_files
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from tests.factories import make_extractor, make_processor, make_regions

FILE, INPUTS = Path("captions.json"), InputsConfig()


def make_store(folder, *image_ids):
    with RegionStoreWriter(folder / str(hash(image_ids)), make_extractor()) as writer:
        for number, image_id in enumerate(image_ids):
            writer.add(make_regions(number, image_id))
    return RegionStore(writer.path)


def captions(*names):
    """One caption for each image (id, file name)."""
    pairs = [(name, "") if isinstance(name, str) else name for name in names]
    return [Caption(number, (image,), "a star", (file,)) for number, (image, file) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("image", "stored", "rule"),
    [
        (("391895", "COCO_val2014_000000391895.jpg"), "391895", "id"),
        (("391895", "COCO_val2014_000000391895.jpg"), "COCO_val2014_000000391895.jpg", "file_name"),
        (("391895", "val2014/COCO_val2014_000000391895.jpg"), "COCO_val2014_000000391895.jpg", "file_name"),
        (
            ("391895", "val2014/COCO_val2014_000000391895.jpg"),
            "COCO_val2014_000000391895",
            "stem",
        ),
        (("1000092795.jpg", "1000092795.jpg"), "1000092795", "stem"),
        (("a/b.v2.PNG", "a/b.v2.PNG"), "b.v2", "stem"),
        (("a/b.v2.PNG", "a/b.v2.PNG"), "a/b.v2", "path_stem"),
        (("http://some.org/x/y.jpg?w=5#z", "http://some.org/x/y.jpg?w=5#z"), "y", "stem"),
        (
            ("COCO_val2014_000000391895.jpg", "COCO_val2014_000000391895.jpg"),
            "391895",
            "coco_number",
        ),
        (("000000391895.jpg", "000000391895.jpg"), "391895", "coco_number"),
        (("391895", ""), "000000391895", "twelve_digits"),
    ],
)
def test_each_rule_finds_the_images_that_it_is_for(tmp_path, image, stored, rule):
    match = match_file(FILE, captions(image, ("other", "other.jpg")), make_store(tmp_path, stored, "z"), INPUTS)
    assert (dict(match.store_ids), match.rule, list(match.missing)) == ({image[0]: stored}, rule, ["other"])


@pytest.mark.parametrize(
    ("image", "stored"),
    [
        ("img_12.jpg", "12"),  # digits at the end are not a COCO number
        ("0000000012.jpg", "12"),  # ten digits neither
        ("row 12", "12"),
        ("b.v2", "b"),  # not every dot begins an ending
    ],
)
def test_what_only_looks_alike_is_not_the_same_image(tmp_path, image, stored):
    with pytest.raises(UserError, match="none of the 1 images"):
        match_file(FILE, captions((image, image)), make_store(tmp_path, stored), INPUTS)


def test_one_rule_serves_the_whole_file_the_one_that_finds_most(tmp_path):
    names = [("1", "a.jpg"), ("2", "b.jpg"), ("3", "c.jpg"), ("4", "d.jpg")]
    match = match_file(FILE, captions(*names), make_store(tmp_path, "1", "a", "b", "c"), INPUTS)
    assert match.store_ids == {"1": "a", "2": "b", "3": "c"} and list(match.missing) == ["4"]


# Files numbered by a loop, sorted as text: image 2 is 10.jpg.
SORTED_AS_TEXT = [(str(number), f"{name}.jpg") for number, name in enumerate(sorted(map(str, range(12))))]


@pytest.mark.parametrize("lacking", [(), ("11",), ("3", "4", "5")])
def test_rules_that_find_different_images_are_an_error_with_three_of_them_and_what_decides(tmp_path, lacking):
    store = make_store(tmp_path, *(name for name in map(str, range(12)) if name not in lacking))
    with pytest.raises(
        UserError,
        match=r"^captions\.json: id finds (\d+) images and stem \1, but they disagree on \d+ of them: "
        r"'2' is '2' or '10', .*, .*; say which is right with match=id or match=stem$",
    ) as caught:
        match_file(FILE, captions(*SORTED_AS_TEXT), store, INPUTS)
    assert str(caught.value).count(" or '") == 3
    by_id = match_file(FILE, captions(*SORTED_AS_TEXT), store, INPUTS, "id")
    by_stem = match_file(FILE, captions(*SORTED_AS_TEXT), store, INPUTS, "stem")
    assert (by_id.store_ids["2"], by_id.rule, by_stem.store_ids["2"], by_stem.rule) == ("2", "id", "10", "stem")


def test_a_rule_that_finds_nearly_as_many_images_but_others_is_an_error_too(tmp_path):
    """A subset numbered anew from 1; image 950 could not be extracted, so the wrong rule finds one image more."""
    names = [(str(place), f"{number}.jpg") for place, number in enumerate(range(945, 955), start=1)]
    store = make_store(tmp_path, *(str(number) for number in (*range(1, 12), *range(945, 955)) if number != 950))
    with pytest.raises(UserError, match="id finds 10 images and stem 9, but they disagree on 9 of them"):
        match_file(FILE, captions(*names), store, INPUTS, option="--match ")


def test_rules_that_find_the_same_images_agree(tmp_path):
    names = [(str(number), f"COCO_val2014_{number:012}.jpg") for number in range(1, 9)]
    assert match_file(FILE, captions(*names), make_store(tmp_path, *"12345678"), INPUTS).rule == "id"


def test_a_rule_that_was_asked_for_is_the_only_one(tmp_path):
    names, store = [("1", "a.jpg"), ("2", "b.jpg")], make_store(tmp_path, "a", "b")
    assert match_file(FILE, captions(*names), store, INPUTS, "stem").store_ids == {"1": "a", "2": "b"}
    with pytest.raises(UserError, match=r"none of the 2 images of captions\.json is in the region store .* by id: "):
        match_file(FILE, captions(*names), store, INPUTS, "id")


def test_the_rules_are_those_that_a_configuration_may_name():
    assert ["auto", *RULES] == list(get_args(Match))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (("1", "train/1.jpg"), ("1", "val/1.jpg"), False),
        (("1", "a.jpg"), ("1", "b.jpg"), False),
        (("1", "val2014/COCO_val2014_000000000001.jpg"), ("1", "train2017/000000000001.jpg"), True),
        (("1", "images/train/1.jpg"), ("1", "train/1.png"), True),
        (("1", "1.jpg"), ("1", "train/1.jpg"), True),
        (("1", "http://some.org/x/1.jpg?w=5"), ("1", "train/1.jpg"), True),
        (("1", "a.jpg"), ("1", "1"), True),  # an id in place of a file name
        (("1", "a.jpg"), ("1", ""), True),
    ],
)
def test_files_that_mean_different_images_by_one_id_do_not_train_together(tmp_path, first, second, same):
    files = [(Path("a"), captions(first)), (Path("b"), captions(second))]
    store = make_store(tmp_path, "1")
    if same:
        assert len(match_files(files, store, INPUTS, "error", tmp_path / "m.json")) == 2
        return
    with pytest.raises(UserError, match=rf"image '1' of the store is {first[1]} in a but {second[1]} in b; give each"):
        match_files(files, store, INPUTS, "error", tmp_path / "m.json")
    assert len(match_files(files, store, INPUTS, "error", tmp_path / "m.json", rule="id")) == 2


def test_a_rule_that_maps_two_images_to_one_is_not_used_and_if_the_only_one_refused(tmp_path):
    twins = [("train/12.jpg", "train/12.jpg"), ("val/12.jpg", "val/12.jpg")]
    match = match_file(FILE, captions(*twins), make_store(tmp_path, "12", "train/12"), INPUTS)
    assert match.store_ids == {"train/12.jpg": "train/12"}
    with pytest.raises(UserError, match=r"images 'train/12\.jpg' and 'val/12\.jpg' would both be image '12'"):
        match_file(FILE, captions(*twins), make_store(tmp_path, "12"), INPUTS)


def test_images_are_found_though_the_sample_has_none_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("dimvl.data.matching.SAMPLE", 2)
    names = [(f"x{number}", f"x{number}.jpg") for number in range(9)]
    match = match_file(FILE, captions(*names, ("a", "b.jpg")), make_store(tmp_path, "b"), INPUTS)
    assert match.store_ids == {"a": "b"}


def test_nothing_matched_is_an_error_with_examples_of_both_sides(tmp_path):
    store = make_store(tmp_path, "one", "two")
    with pytest.raises(
        UserError, match=r"none of the 4 images of captions\.json .* the file has '7', 'x\.jpg', '9', the "
    ):
        match_file(FILE, captions("7", ("8", "x.jpg"), "9", "10"), store, INPUTS)
    with pytest.raises(UserError, match=r"the store 'one', 'two'; give files that belong together"):
        match_file(FILE, captions("7"), store, INPUTS)
    with pytest.raises(UserError, match=r"captions\.json has no text for any image"):
        match_file(FILE, [], store, INPUTS)


def test_the_report_tells_what_was_found_and_what_not_before_missing_images_are_refused(tmp_path, caplog):
    store = make_store(tmp_path, "1", "2", "3", "4")
    files = [
        (Path("dir/a.json"), captions("1", "2", "1", "77", "78")),
        (Path("dir/b.csv"), captions(("3.jpg", "3.jpg"))),
    ]
    report = tmp_path / "run" / "match.json"
    with pytest.raises(
        UserError, match=r"lacks image '77' and 1 others of the 4 of dir/a\.json; extract .* missing=skip"
    ):
        match_files(files, store, INPUTS, "error", report)
    written = json.loads(report.read_text())
    assert written == {
        "files": [
            {
                "file": "a.json",
                "texts": 5,
                "images_found": 2,
                "found_by": "id",
                "images_missing": 2,
                "missing_examples": ["77", "78"],
            },
            {
                "file": "b.csv",
                "texts": 1,
                "images_found": 1,
                "found_by": "stem",
                "images_missing": 0,
                "missing_examples": [],
            },
        ],
        "store": {"images": 4, "without_text": 1, "without_text_examples": ["4"]},
        "texts_used": 4,
        "texts_dropped": {"image not in the store": 2},
    }
    caplog.set_level(logging.INFO)
    records = match_files(files, store, INPUTS, "skip", report, {"unanswered": 3})
    assert [record.image_id for record in records] == ["1", "2", "1", "3"]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("lacks image '77' and 1 others" in line and "2 of 5 texts are dropped" in line for line in said)
    assert any("3 texts are dropped: unanswered" in line for line in said)
    assert any("5 texts on 4 images; 2 of these are in the store (found by id), 2" in line for line in caplog.messages)


def test_a_subset_is_drawn_by_its_seed_and_lies_inside_larger_ones_and_the_rest_is_counted(tmp_path):
    store = make_store(tmp_path, *map(str, range(12)))
    texts = [Caption(number, (str(number // 3),), "a star") for number in range(36)]

    def drawn(number, seed=0, key=lambda caption: caption):
        subset = Subset(number, seed, "caption", key)
        found = match_files([(FILE, texts)], store, INPUTS, "error", tmp_path / "report.json", subset=subset)
        return [caption.caption_id for caption in found]

    few, more = drawn(5), drawn(20)
    assert len(few) == 5 and few == sorted(few) and set(few) < set(more) and drawn(5, seed=1) != few
    reported = json.loads((tmp_path / "report.json").read_text())
    assert reported["texts_used"] == 5 and reported["texts_dropped"]["not drawn for subset"] == 31
    assert drawn(None) == list(range(36)) == drawn(36)
    images = [number // 3 for number in drawn(4, key=lambda caption: caption.images)]
    assert len(images) == 12 and len(set(images)) == 4, "all captions of an image, or none"
    with pytest.raises(UserError, match=r"subset is 37 but captions\.json has 36 captions; lower subset"):
        drawn(37)


def test_a_whole_file_without_a_match_is_an_error_even_where_missing_images_are_skipped(tmp_path):
    files = [(Path("a.json"), captions("1")), (Path("b.json"), captions("77"))]
    with pytest.raises(UserError, match=r"none of the 1 images of b\.json"):
        match_files(files, make_store(tmp_path, "1"), INPUTS, "skip", tmp_path / "match.json")


# --- several images in a record


def about(*groups, times=()):
    return [Caption(number, tuple(images), "a star", tuple(images), times) for number, images in enumerate(groups)]


def test_a_text_is_kept_only_if_all_its_images_are_in_the_store_and_counted_once(tmp_path):
    store, report = make_store(tmp_path, "000000000001", "000000000002", "000000000003"), tmp_path / "match.json"
    records = about("12", "1", "27", "781", "7")
    found = match_files([(FILE, records)], store, INPUTS, "skip", report)
    assert [record.image_ids for record in found] == [("000000000001", "000000000002"), ("000000000001",)]
    assert [record.caption_id for record in found] == [0, 1]
    reported = json.loads(report.read_text())
    assert reported["files"][0] == {
        "file": "captions.json",
        "texts": 5,
        "images_found": 2,
        "found_by": "twelve_digits",
        "images_missing": 2,
        "missing_examples": ["7", "8"],
    }
    assert reported["texts_used"] == 2 and reported["texts_dropped"] == {"image not in the store": 3}
    assert reported["store"] == {"images": 3, "without_text": 1, "without_text_examples": ["000000000003"]}
    with pytest.raises(UserError, match=r"lacks image '7' and 1 others of the 4 of captions\.json"):
        match_files([(FILE, records)], store, INPUTS, "error", report)


def test_an_image_of_dropped_texts_only_has_no_text(tmp_path):
    report = tmp_path / "match.json"
    match_files([(FILE, about("1", "27"))], make_store(tmp_path, "1", "2"), INPUTS, "skip", report)
    assert json.loads(report.read_text())["store"] == {
        "images": 2,
        "without_text": 1,
        "without_text_examples": ["2"],
    }


def test_more_images_than_the_model_takes_are_one_sentence_that_names_the_record(tmp_path):
    store = make_store(tmp_path, *"12345")
    match_file(FILE, about("1234"), store, INPUTS)
    with pytest.raises(
        UserError, match=r"captions\.json: caption 1 has 5 images, more than inputs\.max_images 4; train"
    ):
        match_file(FILE, about("12", "12345"), store, INPUTS)
    match_file(FILE, about("12345"), store, make_processor(max_images=5))


@pytest.mark.parametrize("used", [True, False])
def test_times_that_are_not_used_are_counted_in_one_warning(tmp_path, caplog, used):
    records = [*about("12", "23", times=(0.0, 1.0)), *about("13")]
    match_files([(FILE, records)], make_store(tmp_path, *"123"), InputsConfig(times=used), "error", tmp_path / "m.json")
    ignored = "captions.json: the times of 2 texts are ignored; train with inputs.times=true to use them"
    assert [message for message in caplog.messages if "the times of" in message] == ([] if used else [ignored])
