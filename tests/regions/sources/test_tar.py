"""WebDataset shards as a source of images: what is read, skipped, counted and refused."""

import re
import tarfile
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest

from dimvl.data.annotations.reading import read_captions
from dimvl.errors import UserError
from dimvl.regions.sources import tar
from dimvl.regions.sources.base import Packed, Part
from dimvl.regions.sources.captions import write_captions
from dimvl.regions.sources.opening import open_images
from dimvl.regions.sources.tar import TarShards
from tests.regions.sources.shards import greys, picture, run, write_tar


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of two samples each: a to d, of grey 10 to 40, with a caption and other facts."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, keys in enumerate(("ab", "cd")):
        members = {}
        for key in keys:
            grey = 10 * ("abcd".index(key) + 1)
            members |= {f"{key}.jpg": picture(grey), f"{key}.txt": f"Grey {grey}\n".encode()}
            members[f"{key}.json"] = f'{{"caption": ["{key} one", "{key} two"]}}'.encode()
        write_tar(folder / f"{number:03}.tar", members)
    return folder


GREYS = {"a": 10, "b": 20, "c": 30, "d": 40}


@pytest.mark.parametrize("pattern", ["", "*.tar", "{000..001}.tar", "{000,001}.tar"])
def test_the_images_of_all_shards_are_read_in_order_under_their_keys(shards, tmp_path, pattern):
    source = open_images(shards / pattern if pattern else shards)
    calls = []
    report = run(source, tmp_path / "store", workers=2, progress=lambda *call: calls.append(call))
    assert (report.done, report.already, report.skipped) == (4, 0, [])
    assert list(greys(tmp_path / "store").items()) == list(GREYS.items())
    assert str(source.passed) == "passed over: 8 not images"
    assert source.unit == "MB" and calls[0] == (0, 1) and calls[-1] == (1, 1)


def test_a_second_extraction_reads_only_headers_of_images_that_are_there(shards, tmp_path, monkeypatch):
    run(open_images(shards / "000.tar"), tmp_path / "store")
    read = []
    content = tar._content
    monkeypatch.setattr(tar, "_content", lambda *arguments: read.append(arguments[-1]) or content(*arguments))
    report = run(open_images(shards), tmp_path / "store")
    assert (report.done, report.already) == (2, 2) and greys(tmp_path / "store") == GREYS
    assert [name.split()[0] for name in read] == ["c.jpg", "d.jpg"]


@pytest.mark.parametrize("of", [2, 3])
def test_parts_together_have_each_image_once_by_shards_or_by_images_where_shards_are_fewer(shards, of):
    source = open_images(shards)
    parts = [[image.image_id for image in source.part(Part(number, of))] for number in range(1, of + 1)]
    assert parts == {2: [["a", "b"], ["c", "d"]], 3: [["a", "d"], ["b"], ["c"]]}[of]


def test_names_in_folders_and_other_endings_are_keys_and_what_is_not_an_image_is_counted(tmp_path):
    file = write_tar(
        tmp_path / "x.tar",
        {
            "./in/v1.2.jpeg": picture(1),
            "noending": picture(2, "WEBP"),
            "in/._v1.2.jpeg": b"resource fork",
            "photo.heic": b"\0\0\0\x18ftypheic",
            "label.cls": b"3",
        },
    )
    with tarfile.open(file, "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    source = open_images(file)
    run(source, tmp_path / "store")
    assert greys(tmp_path / "store") == {"in/v1.2": 1, "noending": 2}
    assert source.passed.left_out and str(source.passed) == (
        "passed over: 1 hidden, 1 not images, 1 links in tar files, images of formats that are not read (photo.heic; "
        "convert them to JPEG)"
    )


def test_an_image_whose_id_occurred_before_is_skipped_by_name_also_when_resumed(shards, tmp_path):
    write_tar(shards / "002.tar", {"a.png": picture(99), "a.txt": b"Of the other a"})
    for done in (4, 0):
        source = open_images(shards)
        report = run(source, tmp_path / "store")
        assert (report.done, len(report.skipped)) == (done, 1)
        [(image, reason)] = report.skipped
        assert str(image).startswith("a.png in ") and "has the id 'a' of an earlier image, in " in reason
    assert greys(tmp_path / "store") == GREYS
    write_captions(source, GREYS, tmp_path / "captions.jsonl")
    assert [caption.text for caption in read_captions(tmp_path / "captions.jsonl")][:2] == ["Grey 10", "Grey 20"]
    assert "other" not in (tmp_path / "captions.jsonl").read_text()


@pytest.mark.parametrize(
    ("damage", "problem", "kept"),
    [
        (lambda data: data[: 512 + 40], "image a.jpg in .* is cut off; copy the tar file again", ""),
        (lambda data: data[:1024], "is cut off or damaged after a.jpg", "a"),
        (lambda data: data[:1024] + b"\xff" * 512 + data[1536:], "is cut off or damaged after a.jpg", "a"),
        (lambda data: b"\xff" * len(data), "is cut off or damaged", ""),
        (lambda data: b"", "is cut off or damaged", ""),
    ],
)
def test_the_rest_of_a_damaged_shard_is_left_out_by_name_and_the_other_shards_are_read(
    shards, tmp_path, damage, problem, kept
):
    file = shards / "000.tar"
    file.write_bytes(damage(file.read_bytes()))
    report = run(open_images(shards), tmp_path / "store")
    assert greys(tmp_path / "store") == {key: GREYS[key] for key in (*kept, *"cd")}
    assert any(re.search(problem, reason) for _, reason in report.skipped), report.skipped


@contextmanager
def memory_below(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_a_member_that_claims_too_much_is_skipped_without_reading_it(tmp_path, monkeypatch):
    file = write_tar(tmp_path / "x.tar", {"a.jpg": picture(1)})
    size = len(picture(1))
    monkeypatch.setattr(tar, "MAX_FILE_BYTES", size - 1)
    [(_, reason)] = run(open_images(file), tmp_path / "store").skipped
    assert "a.jpg in " in reason and f"has {size} bytes but an image file has at most {size - 1}; remove" in reason
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.XHDTYPE, 2**40
    file.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with memory_below(2**22):
        [image] = open_images(file)
    assert "(a header of 1,099,511,627,776 bytes); copy it again" in image.problem


def test_members_are_not_kept_in_memory(tmp_path):
    file = write_tar(tmp_path / "x.tar", {f"{number}.txt": b"" for number in range(500)})
    shards = TarShards([file])
    with memory_below(2**16):  # a kept member takes about a kilobyte
        assert list(shards) == [] and shards.passed.others == 500


def test_captions_become_json_lines_that_training_reads(shards, tmp_path):
    source, out = open_images(shards), tmp_path / "captions.jsonl"
    list(source)
    report = write_captions(source, {"a", "c"}, out)
    assert (report.written, report.bad, str(report)) == (2, 0, "2 captions")
    assert [(caption.images[0][0], caption.text) for caption in read_captions(out)] == [
        ("a", "Grey 10"),
        ("c", "Grey 30"),
    ]
    write_captions(source, {"a"}, out, "caption")
    assert [caption.text for caption in read_captions(out)] == ["a one", "a two"]
    before = out.read_bytes()
    with pytest.raises(UserError, match=r"no captions in alt of .* \(the first: a.json.* None, not text.*\); name"):
        write_captions(source, {"a"}, out, "alt")
    assert out.read_bytes() == before


def test_texts_that_are_not_captions_are_counted_with_the_first(tmp_path):
    members = {"a.jpg": picture(1), "a.txt": b"good", "b.jpg": picture(2), "b.txt": b"\xff", "c.txt": b" "}
    source = TarShards([write_tar(tmp_path / "x.tar", members)])
    list(source)
    report = write_captions(source, {"a", "b", "c"}, tmp_path / "captions.jsonl")
    assert (report.written, report.bad) == (1, 2) and "b.txt in " in str(report)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.tar", b"\x1f\x8b\x08" + bytes(600), "x.tar is compressed by gzip; decompress it"),
        ("x.zip", b"PK", "neither a folder of images nor a file of images"),
    ],
)
def test_other_archives_are_refused_with_what_to_do(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem):
        list(open_images(tmp_path / name))


def test_options_that_do_not_apply_and_mixed_folders_are_refused_or_named(shards, tmp_path):
    with pytest.raises(UserError, match=r"--coco .* lists image files"):
        open_images(shards, tmp_path / "coco.json")
    with pytest.raises(UserError, match="--id-column names a column of Parquet files"):
        open_images(shards, id_column="id")
    (shards / "2.parquet").touch()
    with pytest.raises(UserError, match="files of several kinds"):
        open_images(shards)
    (shards / "e.png").write_bytes(picture(50))
    source = open_images(shards)
    assert [image.image_id for image in source] == ["e"] and source.passed.left_out
    assert "files of images (000.tar, 001.tar, 2.parquet; extract them" in str(source.passed)


def test_an_image_in_a_file_is_named_with_it():
    assert str(Packed("a.jpg in x.tar", bytes)) == "a.jpg in x.tar"
