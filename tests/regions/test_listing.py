"""Which files of a folder or a COCO file are images, under which ids, and what is passed over."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dimvl.errors import UserError
from dimvl.regions.images import AVIF, load_image
from dimvl.regions.listing import PassedOver, images_of_coco, images_of_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images a to c of 1 x 1 pixel."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abc":
        Image.new("RGB", (1, 1)).save(folder / f"{name}.png")
    return folder


def coco(tmp_path: Path, *images: dict[str, object]) -> Path:
    (tmp_path / "instances.json").write_text(json.dumps({"images": images}))
    return tmp_path / "instances.json"


def test_a_folder_lists_its_images_sorted_by_name(folder):
    (folder / "a.png").rename(folder / "f.PNG")
    assert [image_id for image_id, _ in images_of_folder(folder)] == ["b", "c", "f"]


def test_images_of_any_ending_and_links_that_lead_nowhere_are_listed_and_the_rest_is_counted(folder):
    Image.new("RGB", (1, 1)).save(folder / "d.jfif", "JPEG")
    Image.new("RGB", (1, 1)).save(folder / "e", "WEBP")
    Image.new("RGB", (1, 1)).save(folder / "v1.2", "TIFF")
    (folder / "gone").symlink_to("nowhere")
    (folder / "notes.txt").write_text("BMW")
    (folder / ".hidden.png").touch()
    (folder / "empty").mkdir()
    (folder / "more" / "below").mkdir(parents=True)
    Image.new("RGB", (1, 1)).save(folder / "more" / "below" / "x.png")
    passed = PassedOver()
    assert [image_id for image_id, _ in images_of_folder(folder, passed)] == ["a", "b", "c", "d", "e", "gone", "v1.2"]
    assert passed == PassedOver(hidden=1, others=2, folders=[folder / "more"])
    assert str(passed) == "passed over: 1 hidden, 2 not images, folders with images (more; give them one by one)"


def test_every_file_that_looks_like_an_image_is_read_or_named(folder):
    for name, form in (("d.jpe", "JPEG"), ("E.JFIF", "JPEG"), ("f.heic", "JPEG"), ("g.dng", "TIFF"), ("h.jp2", "PNG")):
        Image.new("RGB", (1, 1)).save(folder / name, form)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "round").symlink_to("round")
    for name in ("i.heic", "j"):
        (folder / name).write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "k.svg").write_text("<svg/>")
    (folder / "l.tar").touch()
    passed = PassedOver()
    found = [image_id for image_id, _ in images_of_folder(folder, passed)]
    assert found == ["E", "a", "b", "c", "d", "f.heic", "h.jp2", "loop", "round"]
    assert sorted(passed.unread) == ["g.dng", "i.heic", "j", "k.svg"] and passed.shards == [folder / "l.tar"]
    assert passed.left_out and str(passed) == (
        "passed over: images of formats that are not read (g.dng, i.heic, j and 1 more; convert them to JPEG), files "
        "of images (l.tar; extract them by a command of their own)"
    )


@pytest.mark.skipif(not AVIF, reason="needs a PIL with AVIF")
def test_avif_images_are_read_by_their_ending_or_first_bytes(folder):
    for name in ("d.avif", "e"):
        Image.new("RGB", (3, 2), (200, 0, 0)).save(folder / name, "AVIF")
    assert [image_id for image_id, _ in images_of_folder(folder)][3:] == ["d", "e"]
    assert load_image(folder / "e").size == (3, 2)


def test_a_folder_of_formats_that_are_not_read_is_rejected_by_name(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match=r"only images of formats that are not read: a\.heic; convert them to JPEG"):
        images_of_folder(tmp_path)


def test_a_folder_without_images_is_rejected(tmp_path):
    with pytest.raises(UserError, match="has no images"):
        images_of_folder(tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist"):
        images_of_folder(tmp_path / "nowhere")
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    with pytest.raises(UserError, match="has no images itself but its folders do: a, b, c and 1 more;"):
        images_of_folder(tmp_path, PassedOver(folders=[tmp_path / "of another folder"]))


def test_two_images_with_one_id_are_rejected(folder):
    Image.new("RGB", (1, 1)).save(folder / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png have the same id 'a'; rename one"):
        images_of_folder(folder)


def test_ids_of_a_coco_file_that_are_text_stay_that_text_and_numbers_become_digits(tmp_path, folder):
    ids = {"0001": "0001", "scan-1": "scan-1", 42: "42", 7.0: "7"}
    names = ["a.png", "b.png", "c.png", "d.png"]
    path = coco(tmp_path, *({"id": given, "file_name": name} for given, name in zip(ids, names, strict=True)))
    assert images_of_coco(path, folder) == [(id_, folder / name) for id_, name in zip(ids.values(), names, strict=True)]


def test_names_written_with_backslashes_name_the_files_of_folders(tmp_path, folder):
    (folder / "in").mkdir()
    (folder / "in" / "a.png").write_bytes(b"")
    (folder / "in\\b.png").write_bytes(b"")  # a legal name here
    path = coco(tmp_path, {"id": 1, "file_name": "in\\a.png"}, {"id": 2, "file_name": "in\\b.png"})
    assert images_of_coco(path, folder) == [("1", folder / "in/a.png"), ("2", folder / "in\\b.png")]


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        ([{"id": 1, "file_name": "a.png"}, {"id": "1", "file_name": "b.png"}], "have the same id '1'"),
        ([{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "./a.png"}], "lists a.png under two ids, 1 and 2"),
        ([{"id": 1, "file_name": "../a.png"}], r"\.\./a.png is outside the folder"),
        ([{"id": 1, "file_name": "/etc/a.png"}], "/etc/a.png is outside the folder"),
        ([{"id": 1, "file_name": "val.png"}], "none of the 1 images that .* lists exists, such as .*val.png; give"),
        ([{"id": 1.5, "file_name": "a.png"}], "item 0 of 'images': id 1.5 is not an id; give a whole number"),
        ([{"id": True, "file_name": "a.png"}], "id True is not an id"),
        ([{"id": float("inf"), "file_name": "a.png"}], "id inf is not an id"),
        ([{"id": " ", "file_name": "a.png"}], "id ' ' is not an id"),
        ([{"id": 1}], "has no field 'file_name'; give a COCO"),
        ([3], "item 0 of 'images' is not a JSON object"),
        ([], "lists no images"),
    ],
)
def test_a_coco_file_with_unusable_images_is_rejected(tmp_path, folder, images, problem):
    with pytest.raises(UserError, match=problem):
        images_of_coco(coco(tmp_path, *images), folder)


@pytest.mark.parametrize("content", ["{}", "[]", '{"images": [{"id": ', '{"images": 3}'])
def test_a_file_that_is_not_a_coco_file_of_images_is_rejected(tmp_path, content):
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(UserError, match=r"instances\.json"):
        images_of_coco(tmp_path / "instances.json", tmp_path)
