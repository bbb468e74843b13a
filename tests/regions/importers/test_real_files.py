"""Files written by other tools, where available: exact features, and tags that a person would give."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from dimvl.data.tags import TagWriter
from dimvl.data.tokenizer import Tokenizer
from dimvl.regions.importers.run import import_source, open_source
from dimvl.regions.store import RegionStore
from tests.regions.importers.written import by_id
from tests.regions.store.synthetic_store import assert_same

DATA = Path(__file__).parents[3].parent / "shared/data"
BOTTOM_UP, COCO = DATA / "bottom_up", DATA / "coco_small"
bottom_up = pytest.mark.skipif(not BOTTOM_UP.is_dir(), reason="the ten images of bottom-up-attention are missing")
coco = pytest.mark.skipif(not COCO.is_dir(), reason="the small COCO set with region features is missing")


def rows_of(file: Path) -> dict[str, dict[str, np.ndarray]]:
    """The columns of an LXMERT TSV, decoded in the simplest way."""
    rows = {}
    for line in file.read_text().splitlines():
        image_id, height, width, *encoded, count, boxes, features = line.split("\t")
        raw = [base64.b64decode(column) for column in (*encoded, boxes, features)]
        types = ("<i8", "<f4", "<i8", "<f4", "<f4", "<f4")
        arrays = [np.frombuffer(column, dtype=dtype) for column, dtype in zip(raw, types, strict=True)]
        names = ("objects_id", "objects_conf", "attrs_id", "attrs_conf", "boxes", "features")
        rows[image_id] = dict(zip(names, arrays, strict=True)) | {"size": np.array([int(width), int(height)])}
        rows[image_id]["boxes"] = arrays[4].reshape(int(count), 4)
        rows[image_id]["features"] = arrays[5].reshape(int(count), -1)
    return rows


def run_import(source: Path, out: Path, **options: object) -> RegionStore:
    opened, assembler = open_source(source, **options)
    report = import_source(opened, assembler, out, "real")
    assert report.skipped == 0
    return RegionStore(out)


@pytest.fixture
def coco_classes(tmp_path):
    categories = json.loads((COCO / "instances.json").read_text())["categories"]
    file = tmp_path / "coco.txt"
    file.write_text("".join(f"{category['name']}\n" for category in sorted(categories, key=lambda one: one["id"])))
    return file


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(BOTTOM_UP / "train2014_obj36.tsv", marks=bottom_up, id="bottom_up"),
        pytest.param(COCO / "regions_yolox_mobilenet.tsv", marks=coco, id="coco_small"),
    ],
)
def test_features_equal_those_of_the_file_exactly(source, tmp_path):
    rows = rows_of(source)
    store = run_import(source, tmp_path / "out")
    assert len(store) == len(rows)
    for image_id, regions in by_id(tmp_path / "out").items():
        row = rows[image_id]
        order = np.argsort(-row["objects_conf"], kind="stable")
        np.testing.assert_array_equal(regions.features, row["features"][order].astype(np.float16))
        np.testing.assert_allclose(regions.boxes * np.tile(row["size"], 2), row["boxes"][order], rtol=1e-6, atol=1e-4)
        assert [regions.width, regions.height] == row["size"].tolist()


@bottom_up
def test_tags_of_bottom_up_make_sense(tmp_path):
    names = {"classes": BOTTOM_UP / "objects_vocab.txt", "attributes": BOTTOM_UP / "attributes_vocab.txt"}
    store = run_import(BOTTOM_UP / "train2014_obj36.tsv", tmp_path / "out", **names)
    extractor = store.extractor
    assert (len(extractor.classes), len(extractor.attributes)) == (1600, 400)
    tokenizer = Tokenizer.train([*extractor.classes, *extractor.attributes], 4000)
    writer = TagWriter(tokenizer, extractor.classes, extractor.attributes, 0.3, 20)
    read = {}
    for image_id, regions in by_id(tmp_path / "out").items():
        arrays = (regions.class_ids, regions.class_scores, regions.attribute_ids, regions.attribute_scores)
        read[image_id] = tokenizer.decode(writer.context([arrays]).tolist())
    assert read["COCO_train2014_000000084002"].startswith("bed headboard white pillow blue wall window curtain")
    assert read["COCO_train2014_000000201446"].startswith("carrot onion wood table cutting board")
    assert read["COCO_train2014_000000131486"].startswith("blue sky white helmet hand black pants ski yellow jacket")


@coco
def test_tsv_and_npz_of_the_same_images_agree(coco_classes, tmp_path):
    sizes = COCO / "images.json"
    run_import(COCO / "regions_yolox_mobilenet.tsv", tmp_path / "tsv", classes=coco_classes)
    run_import(COCO / "npz", tmp_path / "npz", classes=coco_classes, sizes=sizes)
    run_import(COCO / "npz_uniter6", tmp_path / "npz6", classes=coco_classes, sizes=sizes)
    extractor = RegionStore(tmp_path / "npz").extractor
    lines, seven, six = by_id(tmp_path / "tsv"), by_id(tmp_path / "npz"), by_id(tmp_path / "npz6")
    assert extractor.classes[seven["000000000071"].class_ids[0, 0]] == "train"
    assert len(seven) == 20 and seven.keys() == six.keys() <= lines.keys()
    for image_id, regions in seven.items():
        line = lines[image_id]
        assert_same(regions, six[image_id])
        np.testing.assert_array_equal(regions.features, line.features)
        np.testing.assert_allclose(regions.boxes, line.boxes, atol=1e-6)
        np.testing.assert_array_equal(regions.class_ids[:, :1], line.class_ids)
        assert (regions.width, regions.height) == (line.width, line.height)
