"""Every format, written by the tests and imported again."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from dimvl.errors import UserError
from dimvl.regions.importers.common import Assembler
from dimvl.regions.importers.lmdb import unpack
from dimvl.regions.importers.run import FORMATS, import_source, open_source, recognise
from dimvl.regions.store import RegionStore
from tests.regions.importers.written import (
    COLUMNS,
    IDS,
    WITHOUT_SIZES,
    WRITERS,
    assembler_of,
    b64,
    by_id,
    expected,
    image_of,
    images_of,
    imported,
    packed,
    pixels,
    uniter_arrays,
    with_six,
    write_lxmert,
    write_oscar_captioning,
    write_oscar_columns,
    write_plain,
    write_sizes,
    write_tsv,
    write_vlp,
)
from tests.regions.store.synthetic_store import assert_same


@pytest.mark.parametrize("name", WRITERS)
def test_imported_regions_equal_the_written_ones(name, tmp_path):
    format_name, write = WRITERS[name]
    images = images_of()
    source = write(tmp_path, images)
    needs_sizes = format_name in WITHOUT_SIZES or name == "oscar-predictions"
    sizes = write_sizes(tmp_path / "sizes.json", images) if needs_sizes else None
    assert recognise(source) == format_name
    columns = COLUMNS[format_name]
    got = imported(source, format_name, tmp_path / "out", assembler_of(tmp_path, sizes, attributes=columns[1] > 0))
    assert sorted(got) == sorted(IDS)
    for regions in images:
        wanted = expected(regions, class_columns=columns[0], attribute_columns=columns[1])
        fallback = wanted.class_ids[:, 0] < 0
        if name.startswith("oscar"):  # a region without label has no attributes, and an object always has a class
            wanted.attribute_ids[fallback], wanted.attribute_scores[fallback] = -1, 0
        if name == "oscar-predictions":
            wanted.attribute_ids[fallback], wanted.attribute_scores[fallback] = [1, 0, -1], [0.75, 0.25, 0]
        assert_same(got[regions.image_id], wanted)


@pytest.mark.parametrize("name", WRITERS)
def test_without_vocabularies_regions_have_no_classes_and_a_warning_is_logged(name, tmp_path, caplog):
    write = WRITERS[name][1]
    images = [image for image in images_of() if len(image)]
    source = write(tmp_path, images)
    sizes = write_sizes(tmp_path / "sizes.json", images)
    opened, assembler = open_source(source, sizes=sizes)
    assert "no --classes vocabulary is given: regions get no class names" in caplog.text
    import_source(opened, assembler, tmp_path / "out", "test")
    for image_id, regions in by_id(tmp_path / "out").items():
        wanted = expected(images[[i.image_id for i in images].index(image_id)], class_columns=0, attribute_columns=0)
        if "oscar" in name:  # regions without labels have no order
            assert regions.features.shape == wanted.features.shape
        else:
            assert_same(regions, wanted)
    assert RegionStore(tmp_path / "out").extractor.classes == ()


def test_the_first_synonym_of_a_line_is_the_name(tmp_path):
    imported(write_lxmert(tmp_path, images_of()), "lxmert-tsv", tmp_path / "out", assembler_of(tmp_path))
    extractor = RegionStore(tmp_path / "out").extractor
    assert extractor.classes == ("cat", "dog", "bird")
    assert extractor.attributes == ("red", "big")


def test_uniter_without_sizes_is_stored_as_unit_images_and_a_warning_is_logged(tmp_path, caplog):
    source = WRITERS["uniter"][1](tmp_path, images_of())
    got = imported(source, "uniter-npz", tmp_path / "out", assembler_of(tmp_path, attributes=False))
    for regions in images_of():
        wanted = expected(regions, class_columns=3, attribute_columns=0, size_known=False)
        assert_same(got[regions.image_id], wanted)
    assert caplog.text.count("stored as 1 x 1; give them with --sizes") == 1


def test_the_six_columns_of_the_original_publication_are_read(tmp_path):
    regions = image_of(1)
    row = ("7", 64, 32, len(regions), b64(pixels(regions)), b64(regions.features.astype("<f4")))
    source = write_tsv(tmp_path / "trainval.tsv", [row])
    assert recognise(source) == "lxmert-tsv"
    got = imported(source, "lxmert-tsv", tmp_path / "out", Assembler())["7"]
    assert_same(got, replace(expected(regions, class_columns=0, attribute_columns=0), image_id="7"))


def test_labels_of_oscar_are_matched_by_box(tmp_path):
    """VinVL's labels and features come from different runs, and differ in order and number."""
    regions = image_of(1)
    folder = write_oscar_captioning(tmp_path, [regions])
    elsewhere = {"rect": [0, 0, 1, 1], "class": "bird", "conf": 0.9}
    second = {"rect": pixels(regions)[1].tolist(), "class": "hound", "conf": 0.25}
    write_tsv(folder / "train.label.tsv", [(regions.image_id, json.dumps([elsewhere, second]))])
    got = imported(folder, "oscar-tsv", tmp_path / "out", assembler_of(tmp_path))[regions.image_id]
    assert got.class_ids.tolist() == [[1], [-1]]  # the region with a label comes first
    assert got.class_scores.tolist() == [[0.25], [0]]
    np.testing.assert_array_equal(got.boxes, regions.boxes[[1, 0]])


def test_oscar_rows_without_a_box_use_that_of_their_label(tmp_path):
    regions = image_of(1)
    row = (regions.image_id, len(regions), b64(regions.features.astype("<f4")))
    write_tsv(tmp_path / "features.tsv", [row])
    objects = [{"rect": box, "class": "cat", "conf": 0.5} for box in pixels(regions).tolist()]
    write_tsv(tmp_path / "label.tsv", [(regions.image_id, json.dumps(objects))])
    sizes = write_sizes(tmp_path / "sizes.json", [regions])
    got = imported(tmp_path, "oscar-tsv", tmp_path / "out", assembler_of(tmp_path, sizes))[regions.image_id]
    np.testing.assert_array_equal(got.boxes, regions.boxes)
    np.testing.assert_array_equal(got.features, regions.features)


@pytest.mark.parametrize("columns", ([4, 5], [5, 4]), ids=["width-height", "height-width"])
def test_oscar_rows_end_in_width_and_height_in_either_order(columns, tmp_path):
    regions = image_of(1)
    rows = with_six(regions)
    rows[:, [-2, -1]] = rows[:, [WIDTH_AT + column for column in columns]]
    write_tsv(tmp_path / "features.tsv", [(regions.image_id, len(regions), b64(rows))])
    got = imported(tmp_path, "oscar-tsv", tmp_path / "out", Assembler())[regions.image_id]
    np.testing.assert_array_equal(got.boxes, regions.boxes[::-1])
    assert got.features.shape[1] == 4


WIDTH_AT = 4  # where the six numbers start


def test_sizes_of_oscar_can_come_from_the_images_beside(tmp_path):
    regions = image_of(1)
    write_oscar_columns(tmp_path, [regions])
    (tmp_path / "predictions.tsv").unlink()
    (tmp_path / "predictions.lineidx").unlink()
    image = io.BytesIO()
    Image.new("RGB", (77, 55)).save(image, "JPEG")
    write_tsv(tmp_path / "image.tsv", [(regions.image_id, base64.b64encode(image.getvalue()).decode())])
    got = imported(tmp_path, "oscar-tsv", tmp_path / "out", Assembler())[regions.image_id]
    assert (got.width, got.height) == (77, 55)


def test_vlp_may_have_one_box_file_per_ending(tmp_path):
    regions = image_of(0)
    path = write_vlp(tmp_path, [regions])
    (path / "all_bbox_thresh0.2.h5").rename(path / "raw_bbox071.h5")
    sizes = write_sizes(tmp_path / "sizes.json", [regions])
    assert list(imported(path, "vlp-hdf5", tmp_path / "out", assembler_of(tmp_path, sizes, attributes=False)))


def test_arrays_of_an_old_msgpack_numpy_without_kind_are_read():
    import msgpack

    arrays = uniter_arrays(image_of(1))
    old = {name: {k: v for k, v in packed(array).items() if k != b"kind"} for name, array in arrays.items()}
    for name, array in unpack(msgpack.packb(old, use_bin_type=True), "x")[0].items():
        np.testing.assert_array_equal(array, arrays[name])


# Never unpickled


class Trap:
    """Unpickling it would create a file."""

    def __reduce__(self):
        return open, ("unpickled", "w")


def test_an_archive_of_python_objects_is_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_plain(tmp_path, [image_of(1)])
    np.savez(folder / "trap.npz", features=np.array([Trap()], dtype=object), boxes=np.zeros((1, 4)))
    source, assembler = open_source(folder)
    trap = next(entry for entry in source.entries() if entry.image_id == "trap")
    with pytest.raises(UserError, match=r"trap.npz is not an archive .*Python objects, which are never unpickled"):
        trap.read()
    assert not (tmp_path / "unpickled").exists()
    assert import_source(source, assembler, tmp_path / "out", "test").skipped == 1


@pytest.mark.parametrize("kind", [b"O", b"V"])
def test_msgpack_of_python_objects_is_rejected(kind, tmp_path, monkeypatch):
    import msgpack

    monkeypatch.chdir(tmp_path)
    data = np.array([Trap()], dtype=object).dumps()
    record = {b"nd": True, b"type": "|O", b"kind": kind, b"shape": [1], b"data": data}
    with pytest.raises(UserError, match=r"image 'x' is not msgpack .*Python objects, which are never unpickled"):
        unpack(msgpack.packb({"features": record}, use_bin_type=True), "x")
    assert not (tmp_path / "unpickled").exists()


def test_hdf5_of_anything_but_floats_is_rejected(tmp_path):
    regions = image_of(0)
    path = write_vlp(tmp_path, [regions])
    with h5py.File(path / "all_bbox_thresh0.2.h5", "a") as boxes:
        del boxes[regions.image_id]
        boxes[regions.image_id] = ["text"] * len(regions)
    source, assembler = open_source(path)
    with pytest.raises(UserError, match=r"has no array of floats in .*bbox"):
        import_source(source, assembler, tmp_path / "out", "test")


@pytest.mark.parametrize(("format_name", "module"), [("uniter-lmdb", "lmdb"), ("vlp-hdf5", "h5py")])
def test_a_missing_package_is_named_with_its_extra(format_name, module, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=rf"needs the package.*{module}.*pip install 'dimvl\[import\]'"):
        FORMATS[format_name](Path("anything"), Assembler())
