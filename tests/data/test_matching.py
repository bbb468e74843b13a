import json
import logging
from pathlib import Path

import pytest

from dimvl.config.sections import InputsConfig
from dimvl.data.annotations import Caption
from dimvl.data.matching import RULES, match_file, match_files
from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from tests.factories import make_extractor, make_processor, make_regions

FILE, INPUTS = Path("captions.json"), InputsConfig()


def make_store(folder, *image_ids):
    with RegionStoreWriter(folder / "-".join(map(str, map(hash, image_ids))), make_extractor()) as writer:
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
        (("391895", "COCO_val2014_000000391895.jpg"), "391895", "its id"),
        (("391895", "COCO_val2014_000000391895.jpg"), "COCO_val2014_000000391895.jpg", "its file name"),
        (("391895", "val2014/COCO_val2014_000000391895.jpg"), "COCO_val2014_000000391895.jpg", "its file name"),
        (
            ("391895", "val2014/COCO_val2014_000000391895.jpg"),
            "COCO_val2014_000000391895",
            "its file name without the ending",
        ),
        (("1000092795.jpg", "1000092795.jpg"), "1000092795", "its file name without the ending"),
        (("a/b.v2.PNG", "a/b.v2.PNG"), "b.v2", "its file name without the ending"),
        (("a/b.v2.PNG", "a/b.v2.PNG"), "a/b.v2", "its path without the ending"),
        (("http://some.org/x/y.jpg?w=5#z", "http://some.org/x/y.jpg?w=5#z"), "y", "its file name without the ending"),
        (
            ("COCO_val2014_000000391895.jpg", "COCO_val2014_000000391895.jpg"),
            "391895",
            "the number in its COCO file name",
        ),
        (("000000391895.jpg", "000000391895.jpg"), "391895", "the number in its COCO file name"),
        (("391895", ""), "000000391895", "its number in twelve digits"),
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
    names = [("1", "a.jpg"), ("2", "b.jpg"), ("3", "c.jpg")]
    match = match_file(FILE, captions(*names), make_store(tmp_path, "1", "a", "b"), INPUTS)
    assert match.store_ids == {"1": "a", "2": "b"} and list(match.missing) == ["3"]
    assert list(RULES).index(match_file(FILE, captions(*names), make_store(tmp_path, "1", "a"), INPUTS).rule) == 0


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
                "found_by": "its id",
                "images_missing": 2,
                "missing_examples": ["77", "78"],
            },
            {
                "file": "b.csv",
                "texts": 1,
                "images_found": 1,
                "found_by": "its file name without the ending",
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
    assert any(
        "5 texts on 4 images; 2 of these are in the store (each found by its id), 2" in line for line in caplog.messages
    )


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
        "found_by": "its number in twelve digits",
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
    assert [message for message in caplog.messages if "times" in message] == ([] if used else [ignored])
