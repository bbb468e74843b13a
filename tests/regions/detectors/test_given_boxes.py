"""Boxes from a COCO file, described by a detector."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.detectors.given_boxes import GivenBoxes
from dimvl.regions.extract import extract
from dimvl.regions.listing import images_of_coco
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from tests.exports import make_detector, make_image

COCO = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 90, "height": 70} for n in (1, 2, 3)],
    "categories": [{"id": 17, "name": "cat"}, {"id": 3, "name": "car"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [9, 7, 45, 35]},
        {"id": 2, "image_id": 1, "category_id": 17, "bbox": [45, 0, 45, 70], "score": 0.25},
        {"id": 3, "image_id": 2, "category_id": 17, "bbox": [-9, 35, 999, 35]},
        {"id": 4, "image_id": 2, "category_id": 3, "bbox": [1, 1, 5, 5], "iscrowd": 1},
        {"id": 5, "image_id": 2, "category_id": 3, "bbox": [95, 1, 5, 5]},
    ],
}
REAL = Path(__file__).parents[3].parent / "shared/data/coco_small"


def written(folder, **changes):
    path = folder / "boxes.json"
    path.write_text(json.dumps({**COCO, **changes}))
    return path


@pytest.fixture
def image_folder(tmp_path):
    folder = tmp_path / "image_folder"
    folder.mkdir()
    for number in (1, 2, 3):
        make_image(number).save(folder / f"{number}.png")
    return folder


def extracted(file, folder, store, **options):
    detector, given = make_detector(**options), GivenBoxes.read(file)
    with RegionStoreWriter(store, given.extractor(detector)) as writer:
        report = extract(images_of_coco(file, folder), detector, writer, boxes=given)
    return RegionStore(store), report


def test_boxes_become_fractions_clipped_at_the_border_and_crowds_and_boxes_outside_are_skipped(tmp_path, caplog):
    given = GivenBoxes.read(written(tmp_path))
    assert given.classes == ("cat", "car")
    np.testing.assert_allclose(given.of("1", 90, 70), [[0.1, 0.1, 0.6, 0.6], [0.5, 0, 1, 1]], atol=1e-6)
    assert given.labels["1"].tolist() == [1, 0] and given.scores["1"].tolist() == [1.0, 0.25]
    np.testing.assert_allclose(given.of("2", 180, 140), [[0, 0.5, 1, 1]], atol=1e-6)  # a scaled-up image
    assert given.of("3", 90, 70).shape == (0, 4)
    assert "2 crowds and boxes without an area are skipped" in caplog.text


def test_the_boxes_of_an_image_are_sorted_by_their_scores(tmp_path):
    scored = [
        {"image_id": 1, "category_id": 3, "bbox": [10 * place, 1, 5, 5], "score": score}
        for place, score in enumerate((0.25, 0.75, 0.5, 0.75))
    ]
    given = GivenBoxes.read(written(tmp_path, annotations=scored))
    assert given.scores["1"].tolist() == [0.75, 0.75, 0.5, 0.25]
    np.testing.assert_allclose(given.boxes["1"][:, 0] * 90, [10, 30, 20, 0], atol=1e-4)


def test_regions_are_the_given_boxes_with_the_detectors_features_and_the_files_classes(image_folder, tmp_path):
    store, report = extracted(written(tmp_path), image_folder, tmp_path / "store")
    assert report.done == 3
    extractor = store.extractor
    assert extractor.classes == ("cat", "car") and extractor.attributes == make_detector().extractor.attributes
    assert extractor.fingerprint == make_detector().extractor.fingerprint
    assert extractor.parameters == {"side": 64, "whole_image": False, "given_boxes": True}
    regions = store.read(store.position("1"))
    (wanted,) = make_detector().detect([make_image(1)], [regions.boxes])
    np.testing.assert_allclose(regions.boxes, [[0.1, 0.1, 0.6, 0.6], [0.5, 0, 1, 1]], atol=1e-6)
    np.testing.assert_allclose(regions.features, wanted.features, rtol=2e-3, atol=1e-3)
    np.testing.assert_array_equal(regions.attribute_ids, wanted.attribute_ids)
    assert regions.class_ids.tolist() == [[1], [0]] and regions.class_scores.tolist() == [[1.0], [0.25]]


def test_an_image_without_boxes_is_one_region_and_the_whole_image_has_no_class(image_folder, tmp_path):
    store, _ = extracted(written(tmp_path), image_folder, tmp_path / "store")
    alone = store.read(store.position("3"))
    assert alone.boxes.tolist() == [[0, 0, 1, 1]] and alone.class_ids.tolist() == [[-1]]
    store, _ = extracted(written(tmp_path), image_folder, tmp_path / "whole", whole_image=True)
    regions = store.read(store.position("1"))
    assert regions.class_ids.tolist() == [[1], [0], [-1]] and regions.boxes[2].tolist() == [0, 0, 1, 1]


def test_an_image_of_another_shape_than_its_boxes_were_drawn_at_is_skipped(image_folder, tmp_path):
    make_image(1, 70, 90).save(image_folder / "1.png")
    store, report = extracted(written(tmp_path), image_folder, tmp_path / "store")
    assert len(store) == 2 and "is 70 x 90 pixels but its boxes were drawn at 90 x 70" in report.skipped[0][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, -3, 4]}, r"item 0 of 'annotations', of image 1: bbox .* is not x, y, width, height"),
        ({"bbox": [1, 2, float("nan"), 4]}, "is not x, y, width, height"),
        ({"bbox": [1, 2, float("inf"), 4]}, "is not x, y, width, height"),
        ({"bbox": [1, 2, 3]}, "is not x, y, width, height"),
        ({"bbox": None}, "bbox None is not x, y, width, height"),
        ({"category_id": float("inf")}, "category_id inf is not an id"),
        ({"bbox": ["a", 1, 1, 1]}, "is not x, y, width, height"),
        ({"bbox": [0.1, 0.1, 0.5, 0.5]}, r"bbox \[0.1, .*\] looks like fractions; give .* in pixels"),
        ({"bbox": [0, 0, 1, 1]}, "looks like fractions"),
        ({"image_id": 99}, "image 99: the image is not listed"),
        ({"category_id": 99}, "category 99 is not listed"),
        ({"score": 2}, r"score 2\.0 is not a probability"),
        ({"score": float("nan")}, "score nan is not a probability"),
    ],
)
def test_an_invalid_annotation_is_named(tmp_path, change, message):
    annotations = copy.deepcopy(COCO["annotations"])
    annotations[0].update(change)
    file = written(tmp_path, annotations=annotations)
    with pytest.raises(UserError, match=message):
        GivenBoxes.read(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"categories": None},
        {"categories": [{"id": 1}]},
        {"images": [{"id": 1, "file_name": "1.png"}]},
        {"images": [{"id": 1, "file_name": "1.png", "width": 0, "height": 5}]},
        {"images": [{"id": 1, "file_name": "1.png", "width": 64.5, "height": 5}]},
        {"images": [COCO["images"][0]] * 2},
        {"categories": [{"id": 1, "name": "lamp"}, {"id": 1, "name": "cat"}]},
        {"images": [{"id": float("inf"), "file_name": "1.png", "width": 5, "height": 5}]},
        {"categories": [{"id": float("inf"), "name": "lamp"}]},
        {"images": 3},
        {"annotations": 3},
        {"annotations": [3]},
    ],
    ids=str,
)
def test_a_file_of_another_form_is_rejected(tmp_path, changes):
    with pytest.raises(UserError, match=r"boxes\.json"):
        GivenBoxes.read(written(tmp_path, **changes))


def test_ids_that_are_text_stay_that_text(tmp_path):
    file = written(
        tmp_path,
        images=[{"id": name, "file_name": f"{name}.png", "width": 90, "height": 70} for name in ("0001", "1")],
        categories=[{"id": "07", "name": "lamp"}],
        annotations=[{"image_id": "0001", "category_id": "07", "bbox": [9, 7, 45, 35]}],
    )
    given = GivenBoxes.read(file)
    assert {name: len(boxes) for name, boxes in given.boxes.items()} == {"0001": 1, "1": 0}


def test_boxes_in_pixels_are_refused_where_python_takes_fractions(image_folder, tmp_path):
    detector, pixels = make_detector(), np.array([[9, 7, 45, 35]])
    with pytest.raises(UserError, match=r"image 0 has box 0, .* give fractions of its width and height, not pixels"):
        detector.detect([make_image(1)], [pixels])
    with RegionStoreWriter(tmp_path / "store", detector.extractor) as writer:
        report = extract([("1", image_folder / "1.png")], detector, writer, boxes={"1": pixels})
    assert "image '1' has box 0" in report.skipped[0][1]


@pytest.mark.skipif(not REAL.exists(), reason="needs the real images beside the checkout")
def test_real_images_and_boxes_fit_together(tmp_path):
    given = GivenBoxes.read(REAL / "instances.json")
    images = [entry for entry in images_of_coco(REAL / "instances.json", REAL / "images")][:8]
    detector = make_detector()
    with RegionStoreWriter(tmp_path / "store", given.extractor(detector)) as writer:
        report = extract(images, detector, writer, boxes=given, workers=2)
    store = RegionStore(tmp_path / "store")
    assert report.done == 8 and not report.skipped
    assert all((store.num_regions(np.arange(8)) == [max(len(given.boxes[i]), 1) for i, _ in images]).tolist())
