"""Parquet files with image bytes as a source of images, as datasets of Hugging Face have them."""

import builtins

import pytest

from dimvl.data.annotations.reading import read_captions
from dimvl.errors import UserError
from dimvl.regions.sources.base import Part
from dimvl.regions.sources.captions import write_captions
from dimvl.regions.sources.opening import open_images
from tests.regions.sources.shards import greys, picture, run

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path, rows, **options):
    parquet.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def row(name, grey, **more):
    return {"image": {"bytes": picture(grey), "path": name}, "n": grey * 100, "caption": [f"Grey {grey}"]} | more


@pytest.fixture
def folder(tmp_path):
    """Two files of two rows each, of grey 1 to 4."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train-0.parquet", [row("in/a.jpg", 1), row("b.png", 2)])
    write(folder / "train-1.parquet", [row("c", 3), row(None, 4)])
    return folder


def test_ids_are_file_names_or_the_place_of_a_row_or_a_column_that_is_named(folder, tmp_path):
    run(open_images(folder), tmp_path / "names", workers=2)
    assert list(greys(tmp_path / "names").items()) == [("a", 1), ("b", 2), ("c", 3), ("train-1-1", 4)]
    run(open_images(folder, id_column="n"), tmp_path / "numbers")
    assert greys(tmp_path / "numbers") == {"100": 1, "200": 2, "300": 3, "400": 4}


def test_plain_bytes_are_images_and_of_several_columns_one_is_named(tmp_path):
    file = write(tmp_path / "x.parquet", [{"photo": picture(1), "mask": picture(2), "key": "k"}])
    with pytest.raises(UserError, match=r"2 columns of bytes \(photo, mask\); name that of the images with --image"):
        open_images(file)
    for column, grey in (("photo", 1), ("mask", 2)):
        run(open_images(file, image_column=column, id_column="key"), tmp_path / column)
        assert greys(tmp_path / column) == {"k": grey}
    for options, problem in [
        ({"image_column": "key"}, "column key holds no bytes"),
        ({"image_column": "no"}, "has no column no; it has photo, mask, key; name one of them with --image-column"),
        ({"image_column": "photo", "id_column": "no"}, "name one of them with --id-column"),
    ]:
        with pytest.raises(UserError, match=problem):
            open_images(file, **options)


def test_rows_that_repeat_an_image_are_counted_and_another_image_of_its_id_is_skipped_by_name(tmp_path):
    rows = [row("a.png", 1, q="one"), row("a.png", 1, q="two"), row("b.png", 2, q="three"), row("a.png", 3, q="four")]
    source = open_images(write(tmp_path / "x.parquet", rows))
    report = run(source, tmp_path / "store")
    assert (report.done, len(report.skipped)) == (2, 1) and greys(tmp_path / "store") == {"a": 1, "b": 2}
    assert "row 3 of " in report.skipped[0][1] and "has the id 'a' of an earlier image" in report.skipped[0][1]
    assert str(source.passed) == "passed over: 1 rows that repeat an image"


def test_a_row_without_bytes_or_id_is_skipped_by_name(tmp_path):
    rows = [
        row("a.png", 1),
        {**row("b.png", 2), "image": {"bytes": None, "path": "b.png"}},
        {**row(None, 3), "n": None},
    ]
    file = write(tmp_path / "x.parquet", rows)
    reasons = [reason for _, reason in run(open_images(file, id_column="n"), tmp_path / "store").skipped]
    assert "row 1 of " in reasons[0] and "no image bytes, only the path 'b.png'; write them" in reasons[0]
    assert "row 2 of " in reasons[1] and "n None is not an id" in reasons[1] and len(reasons) == 2


def test_a_damaged_file_is_left_out_by_name_and_the_others_are_read(folder, tmp_path):
    file = folder / "train-1.parquet"
    data = file.read_bytes()
    for number, damaged in enumerate((data[:-20], data[:4] + b"\xff" * 400 + data[404:])):
        file.write_bytes(damaged)
        report = run(open_images(folder), tmp_path / str(number))
        assert greys(tmp_path / str(number)) == {"a": 1, "b": 2}
        assert "train-1.parquet" in report.skipped[0][1] and "copy it again" in report.skipped[0][1]
    (folder / "train-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"train-0.parquet cannot be read as Parquet \(.*\); copy it again"):
        open_images(folder)


def test_parts_and_captions_are_those_of_the_rows(folder, tmp_path):
    source = open_images(folder)
    parts = [[image.image_id for image in source.part(Part(number, 3))] for number in (1, 2, 3)]
    assert parts == [["a", "train-1-1"], ["b"], ["c"]]
    assert [image.image_id for image in source.part(Part(2, 2))] == ["c", "train-1-1"]
    report = write_captions(source, {"a", "train-1-1"}, tmp_path / "out.jsonl")
    found = [(caption.images[0][0], caption.text) for caption in read_captions(tmp_path / "out.jsonl")]
    assert report.written == 2 and found == [("a", "Grey 1"), ("train-1-1", "Grey 4")]
    with pytest.raises(UserError, match="no column alt; it has image, n, caption; name one of them with --caption-fi"):
        write_captions(source, {"a"}, tmp_path / "out.jsonl", "alt")


def test_only_a_few_rows_are_in_memory(tmp_path):
    rows = [{"image": {"bytes": bytes(2**17), "path": f"{number}"}} for number in range(100)]
    file = write(tmp_path / "x.parquet", rows, compression="none", use_dictionary=False, write_batch_size=4)
    del rows
    before, peak = pa.total_allocated_bytes(), 0
    for _ in open_images(file):
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 6 * 2**20, "of 13 MB, in pages of half a megabyte"


def test_without_pyarrow_one_sentence_says_what_to_install(folder, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs the package pyarrow; pip install 'dimvl\[parquet\]'"):
        open_images(folder)
