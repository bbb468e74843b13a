"""Well-formed sources that mean something else than they seem to: never followed in silence."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.importers.given import ClashError, Sizes
from dimvl.regions.importers.run import FORMATS, open_source, part_of
from dimvl.regions.store import RegionStore
from dimvl.regions.vocabulary import is_background
from tests.cli.calls import Run, call
from tests.regions.importers.written import (
    ATTRIBUTES,
    CLASSES,
    WRITERS,
    assembler_of,
    by_id,
    image_of,
    images_of,
    import_file,
    lxmert_line,
    uniter_arrays,
    write_lineidx,
    write_lxmert,
    write_oscar_captioning,
    write_plain,
    write_sizes,
    write_uniter,
    write_vlp,
)


@pytest.fixture
def run(monkeypatch, capfd) -> Run:
    return partial(call, monkeypatch, capfd)


# Matching


def sizes_of(folder: Path, images: list[tuple[object, str, int]], match: str | None = None) -> Sizes:
    records = [{"id": one, "file_name": name, "width": width, "height": 50} for one, name, width in images]
    (folder / "sizes.json").write_text(json.dumps({"images": records}))
    return Sizes(folder / "sizes.json", match)


TWO_FOLDERS: list[tuple[object, str, int]] = [(1, "train/1.jpg", 100), (2, "train/2.jpg", 100), (11, "val/1.jpg", 640)]
RENUMBERED: list[tuple[object, str, int]] = [(number, f"{number + 1}.jpg", 100 + number) for number in range(5)]


def test_rules_that_find_images_of_different_sizes_are_an_error_that_shows_three_of_them(tmp_path: Path) -> None:
    with pytest.raises(ClashError) as told:
        sizes_of(tmp_path, RENUMBERED).of("3")
    message = str(told.value)
    assert "'3' may be id '3' ('4.jpg') of 103 x 50 or id '2' ('3.jpg') of 102 x 50" in message
    assert message.count(" may be ") == 3 and "--match" in message
    with pytest.raises(ClashError, match=r"'1' may be id '1' \('train/1.jpg'\) of 100 x 50 or id '11'") as told:
        sizes_of(tmp_path, TWO_FOLDERS).of("1")
    assert str(told.value).count(" may be ") == 1  # the others are of the same two images


@pytest.mark.parametrize(("match", "width"), [("id", 103), ("file_name", 102), ("number", 103)])
def test_the_chosen_rule_decides_alone(match: str, width: int, tmp_path: Path) -> None:
    assert sizes_of(tmp_path, RENUMBERED, match).of("3") == (width, 50)


def test_a_rule_that_finds_two_images_itself_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(ClashError, match="'1' may be"):
        sizes_of(tmp_path, TWO_FOLDERS, "file_name").of("1")
    with pytest.raises(ClashError, match="'7' may be"):
        sizes_of(tmp_path, [(7, "a.jpg", 10), (7, "b.jpg", 20)]).of("7")


def test_images_that_all_rules_may_mean_but_that_have_one_size_are_no_error(tmp_path: Path) -> None:
    assert sizes_of(tmp_path, TWO_FOLDERS).of("2") == (100, 50)
    assert sizes_of(tmp_path, [(1, "a/1.jpg", 9), (2, "b/1.jpg", 9)]).of("1") == (9, 50)


def test_a_clash_of_sizes_ends_the_import_and_keeps_what_was_there(tmp_path: Path, run: Run) -> None:
    images = [replace(image_of(1), image_id=name) for name in ("2", "1")]
    source = write_uniter(tmp_path, images)
    sizes_of(tmp_path, TWO_FOLDERS)
    asked = ("import", source, tmp_path / "out", "--sizes", tmp_path / "sizes.json")
    code, _, err = run(*asked)
    assert code == 2 and "'1' may be id '1' ('train/1.jpg')" in err and "--match" in err
    code, out, _ = run(*asked, "--match", "id")
    assert code == 0 and "passed over: 1 images of sizes.json that have no features here" in out
    assert {one: regions.width for one, regions in by_id(tmp_path / "out").items()} == {"1": 100, "2": 100}


# Ids


def test_two_images_with_one_number_are_an_error_with_coco_ids(tmp_path: Path) -> None:
    both = [replace(image_of(number), image_id=f"{name}_2") for number, name in ((1, "train"), (2, "val"))]
    (tmp_path / "both.tsv").write_text("".join(lxmert_line(one) + "\n" for one in both))
    with pytest.raises(ClashError, match=r"image '2' \('val_2' in the source\).*other content under the same id"):
        import_file(tmp_path / "both.tsv", tmp_path / "out", coco_ids=True)
    for one in both:
        (tmp_path / f"{one.image_id}.tsv").write_text(lxmert_line(one) + "\n")
    import_file(tmp_path / "train_2.tsv", tmp_path / "store", coco_ids=True)
    with pytest.raises(ClashError, match="other content under the same id"):
        import_file(tmp_path / "val_2.tsv", tmp_path / "store", coco_ids=True)
    np.testing.assert_array_equal(by_id(tmp_path / "store")["2"].features, both[0].features)


def test_one_image_under_two_ids_is_an_error(tmp_path: Path) -> None:
    source = write_lxmert(tmp_path, [image_of(0)])  # COCO_val2014_000000000071
    import_file(source, tmp_path / "named")
    import_file(source, tmp_path / "numbered", coco_ids=True)
    with pytest.raises(ClashError, match=r"'COCO_val2014_000000000071' .* has the regions of image '71'"):
        import_file(source, tmp_path / "named", coco_ids=True)
    twice = [image_of(0), replace(image_of(0), image_id="000000000071")]
    with pytest.raises(ClashError, match="one image under two ids"):
        import_file(write_lxmert(tmp_path, twice), tmp_path / "twice")
    with pytest.raises(UserError, match=r"have one image under two ids, 'COCO_val2014_000000000071' and '71'"):
        RegionStore([tmp_path / "named", tmp_path / "numbered"])


def test_equal_regions_of_images_with_other_numbers_are_no_error(tmp_path: Path) -> None:
    """Data sets have copies of a photograph, and images on which a detector finds nothing."""
    copies = [replace(image_of(1), image_id=name) for name in ("1", "2", "a_3")]
    copies += [replace(image_of(2), image_id=name) for name in ("train_9", "val_9")]
    empty = [replace(image_of(5), image_id=name) for name in ("x_8", "8")]
    assert import_file(write_lxmert(tmp_path, [*copies, *empty]), tmp_path / "out").done == 7
    import_file(write_lxmert(tmp_path, [replace(image_of(1), image_id="4"), *empty[:1]]), tmp_path / "4")
    import_file(write_lxmert(tmp_path, [replace(image_of(1), image_id="b_5"), *empty[1:]]), tmp_path / "5")
    assert len(RegionStore([tmp_path / "4", tmp_path / "5"])) == 4


# Vocabularies


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((name, True) for name in ("__background__", "background", "BG", "bg", "_BG_", "[background]", "Background")),
        *((name, True) for name in ("__no_attribute__", "no attribute", "No-Attribute", "no class", "unlabeled")),
        *((name, False) for name in ("no", "back", "blackground", "cat", "backgrounds")),
    ],
)
def test_names_of_the_background_are_recognised(name: str, found: bool) -> None:
    assert is_background(name) == found


@pytest.mark.parametrize("name", WRITERS)
def test_a_background_in_first_place_never_shifts_names(name: str, tmp_path: Path, caplog) -> None:
    format_name, write = WRITERS[name]
    images = images_of()
    source = write(tmp_path, images)
    attributes = format_name in ("oscar-tsv", "npz", "lxmert-tsv")
    sizes = write_sizes(tmp_path / "sizes.json", images)
    assembler_of(tmp_path)
    options = {"classes": tmp_path / "classes.txt", "sizes": sizes} | (
        {"attributes": tmp_path / "attributes.txt"} if attributes else {}
    )
    import_file(source, tmp_path / "out", **options)
    (tmp_path / "classes.txt").write_text("__background__\n" + CLASSES)
    (tmp_path / "attributes.txt").write_text("no attribute\n" + ATTRIBUTES)
    shifted = by_id(tmp_path / "out")
    if format_name == "npz":  # its ids count the lines of the vocabulary
        for file in source.iterdir():
            with np.load(file) as arrays:
                ids = {key: arrays[key] + 1 if key.endswith("_ids") else arrays[key] for key in arrays.files}
            np.savez(file, **ids)
    import_file(source, tmp_path / "shifted", **options)
    assert "begins with '__background__', which is no class: it gets no id, and class 0 is 'cat'" in caplog.text
    store = RegionStore(tmp_path / "shifted")
    assert store.extractor == RegionStore(tmp_path / "out").extractor
    for image_id, regions in by_id(tmp_path / "shifted").items():
        np.testing.assert_array_equal(regions.class_ids, shifted[image_id].class_ids)
        np.testing.assert_array_equal(regions.attribute_ids, shifted[image_id].attribute_ids)


@pytest.mark.parametrize("background", ["", "__background__\n"])
def test_ids_from_1_end_an_import_at_the_first_that_shows_it(background: str, tmp_path: Path) -> None:
    """LXMERT's ids do not count the background; those of another program may."""
    (tmp_path / "classes.txt").write_text(background + CLASSES)
    names = len(CLASSES.split())
    first, last = (replace(image_of(1), class_ids=np.full_like(image_of(1).class_ids, one)) for one in (1, names))
    last = replace(last, image_id="2")
    source = write_lxmert(tmp_path, [first, last, replace(first, image_id="3")])
    with pytest.raises(
        ClashError, match=rf"'2' has class id {names}, but .* {names} names, from 0: ids that begin at 1"
    ):
        import_file(source, tmp_path / "out", classes=tmp_path / "classes.txt")
    assert list(by_id(tmp_path / "out")) == [first.image_id]


def test_a_background_among_the_names_is_a_class(tmp_path: Path) -> None:
    """The 957th of bottom-up attention's 1,600 classes is called `background`."""
    (tmp_path / "classes.txt").write_text("cat\nbackground\nbird\n")
    import_file(write_lxmert(tmp_path, [image_of(1)]), tmp_path / "out", classes=tmp_path / "classes.txt")
    assert RegionStore(tmp_path / "out").extractor.classes == ("cat", "background", "bird")


def test_as_many_probabilities_as_names_are_told(tmp_path: Path, caplog) -> None:
    """A list of 1,601 names against 1,601 columns, the first of them the background, would be off by one."""
    (tmp_path / "classes.txt").write_text(CLASSES + "one too many\n")
    import_file(write_uniter(tmp_path, images_of()), tmp_path / "out", classes=tmp_path / "classes.txt")
    assert caplog.text.count("4 columns for 4 names, so none is taken for the background") == 1


# Side files


def test_an_index_that_lacks_a_line_is_named_and_not_followed(tmp_path: Path) -> None:
    source = write_lxmert(tmp_path, images_of(40))
    write_lineidx(source)
    offsets = source.with_suffix(".lineidx").read_text().splitlines(keepends=True)
    source.with_suffix(".lineidx").write_text("".join(offsets[:26] + offsets[27:]))
    message = r"features.lineidx does not fit features.tsv: it does not have the offset of every line; delete it"
    with pytest.raises(UserError, match=message):
        import_file(source, tmp_path / "out")
    write_lineidx(source)
    with source.open("a") as file:  # the file grew after its index was made
        file.write(lxmert_line(replace(image_of(1), image_id="new")) + "\n")
    with pytest.raises(UserError, match=message):
        open_source(source)


def test_a_file_beside_the_features_that_lacks_an_image_is_named(tmp_path: Path, caplog) -> None:
    folder = write_oscar_captioning(tmp_path, images_of())
    whole = (folder / "train.hw.tsv").read_text()
    (folder / "train.hw.tsv").write_text("".join(whole.splitlines(keepends=True)[:-2]))
    assert import_file(folder, tmp_path / "out").skipped == 2
    assert "image 'x.y' has no line in" in caplog.text and "train.hw.tsv; restore this file" in caplog.text
    (folder / "train.hw.tsv").write_text(whole + whole)
    with pytest.raises(
        UserError, match=r"train.hw.tsv has two lines for image 'COCO_val2014_000000000071'; remove one"
    ):
        import_file(folder, tmp_path / "other")


def test_a_stale_index_beside_labels_changes_nothing(tmp_path: Path) -> None:
    folder = write_oscar_captioning(tmp_path, images_of())
    (folder / "train.label.lineidx").write_text("0\n5\n")
    assembler_of(tmp_path)
    assert import_file(folder, tmp_path / "out", classes=tmp_path / "classes.txt").done == 6


def test_an_lmdb_that_lacks_images_of_its_list_is_told(tmp_path: Path) -> None:
    import lmdb

    source = WRITERS["lmdb-npz"][1](tmp_path, images_of())
    assert open_source(source)[0].images == 6
    with lmdb.open(str(source), map_size=2**22) as environment, environment.begin(write=True) as transaction:
        transaction.delete(b"17.npz")
    report = import_file(source, tmp_path / "out")
    assert (report.done, report.left_out) == (5, 1)
    assert report.passed_over == ("1 images that __keys__ of data.mdb lists but that are not in it",)


# What was passed over


def test_what_is_passed_over_in_a_folder_is_counted_and_named(tmp_path: Path, run: Run) -> None:
    source = write_plain(tmp_path, images_of())
    (source / "README.txt").write_text("x")
    (source / "._17.npz").write_bytes(b"x")
    asked = ("import", source, tmp_path / "out")
    code, out, _ = run(*asked)
    assert code == 1 and "passed over: 2 not named *.npz ('._17.npz', 'README.txt')\n6 images done" in out
    (source / "._17.npz").unlink()
    assert run(*asked)[0] == 0
    (source / "more").mkdir()
    code, out, _ = run(*asked)
    assert code == 1 and "2 not named *.npz ('README.txt', 'more/')" in out


def test_a_dangling_link_is_named_and_the_rest_is_imported(tmp_path: Path, run: Run, caplog) -> None:
    source = write_plain(tmp_path, images_of())
    os.symlink("nowhere", source / "0.npz")
    code, out, _ = run("import", source, tmp_path / "out")
    assert code == 1 and "6 images done, 0 already there, 1 skipped" in out
    assert "0.npz is a link to something that does not exist" in caplog.text


def test_boxes_without_features_are_told(tmp_path: Path) -> None:
    source = WRITERS["vlp"][1](tmp_path, images_of(3))
    (source / "feat_cls_1000" / "vg_100dets_feat-17.h5").unlink()
    (source / "x_feat123.h5.part").write_bytes(b"")
    report = import_file(source, tmp_path / "out", sizes=write_sizes(tmp_path / "sizes.json", images_of()))
    assert report.passed_over[0] == "1 images with boxes but without features"
    assert "1 not named *_feat???.h5" in report.passed_over[1] and "x_feat123.h5.part" in report.passed_over[1]
    assert report.left_out == 1


def test_parts_of_vlp_are_taken_by_prefix(tmp_path: Path) -> None:
    """Files of two splits in one folder may have the same ending."""
    source = write_vlp(tmp_path, [image_of(0)])
    folder = source / "feat_cls_1000"
    (source / "all_bbox_thresh0.2.h5").rename(folder / "vg_100dets_bbox071.h5")
    for kind in ("bbox", "cls"):
        with h5py.File(folder / f"a_{kind}071.h5", "w") as other, h5py.File(folder / f"z_{kind}071.h5", "w"):
            other[image_of(0).image_id] = np.zeros((9, 9))
    assembler_of(tmp_path)
    sizes = write_sizes(tmp_path / "sizes.json", images_of())
    import_file(source, tmp_path / "out", classes=tmp_path / "classes.txt", sizes=sizes)
    np.testing.assert_array_equal(by_id(tmp_path / "out")[image_of(0).image_id].boxes, image_of(0).boxes)
    (folder / "vg_100dets_cls071.h5").unlink()
    with pytest.raises(UserError, match=r"has several files \*_cls071.h5; give it one for vg_100dets_feat071.h5"):
        import_file(source, tmp_path / "other", classes=tmp_path / "classes.txt", sizes=sizes)


def test_the_arrays_that_are_there_and_those_that_are_needed_are_named(tmp_path: Path) -> None:
    """Another port of bottom-up attention writes x (F, R), bbox, num_bbox and an object array."""
    (tmp_path / "npz").mkdir()
    info = np.array([{"objects": 1}], dtype=object)
    np.savez(tmp_path / "npz" / "0.jpg.npz", x=np.zeros((8, 3)), bbox=np.zeros((3, 4)), num_bbox=3, info=info)
    with pytest.raises(UserError, match=r"it has 'bbox', 'info', 'num_bbox', 'x', but needs features, boxes; write it"):
        import_file(tmp_path / "npz", tmp_path / "out")
    arrays = uniter_arrays(image_of(1))
    np.savez(tmp_path / "npz" / "0.jpg.npz", norm_bb=arrays["norm_bb"], feat=arrays["features"])
    with pytest.raises(
        UserError, match=r"has no array 'features': it has norm_bb, 'feat', but needs features, norm_bb"
    ):
        import_file(tmp_path / "npz", tmp_path / "out")


def test_the_images_of_a_source_are_counted_or_said_to_be_estimated(
    tmp_path: Path, monkeypatch, run: Run, caplog
) -> None:
    source = write_lxmert(tmp_path, [image_of(3), *images_of(40)])
    opened = FORMATS["lxmert-tsv"](source, open_source(source)[1])
    assert (opened.images, opened.exact) == (41, True)
    assert [part_of(opened, slice(k, None, 3)).images for k in range(3)] == [14, 14, 13]
    run("import", source, tmp_path / "out")
    assert "MB for 41 images of" in caplog.text
    monkeypatch.setattr("dimvl.regions.importers.tsv.QUICKLY_READ", 100)
    run("import", source, tmp_path / "other")
    assert "MB for about " in caplog.text
