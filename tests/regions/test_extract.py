"""Extraction into a store: what is skipped, continued and rejected."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dimvl.regions.detectors.base import Detections
from dimvl.regions.extract import extract
from dimvl.regions.listing import images_of_folder
from dimvl.regions.records import Extractor
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter

EXTRACTOR = Extractor(
    name="fake", fingerprint="0", parameters={}, feature_width=3, classes=("thing",), attributes=("red",)
)


class MeanColourDetector:
    """Describes the whole image, or given boxes, by the mean colour. Records the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def prepare(self, image):
        return np.asarray(image)

    def detect_prepared(self, arrays, boxes=None):
        self.batches.append(len(arrays))
        if boxes is None:
            boxes = [np.array([[0, 0, 1, 1]], dtype=np.float32)] * len(arrays)
        return [self.describe(array, of) for array, of in zip(arrays, boxes, strict=True)]

    @staticmethod
    def describe(image, boxes):
        feature = image.reshape(-1, 3).mean(axis=0)
        shape = (len(boxes), 1)
        return Detections(
            boxes=boxes,
            features=np.tile(feature, shape).astype(np.float16),
            class_ids=np.zeros(shape, dtype=np.int16),
            class_scores=np.ones(shape, dtype=np.float16),
            attribute_ids=np.full(shape, -1, dtype=np.int16),
            attribute_scores=np.zeros(shape, dtype=np.float16),
        )


@pytest.fixture
def folder(tmp_path):
    """Five images a to e, each of one grey, 10 x 20 pixels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate("abcde"):
        Image.new("RGB", (10, 20), (number * 10,) * 3).save(folder / f"{name}.png")
    return folder


def test_every_image_gets_its_own_regions(folder, tmp_path):
    detector, calls = MeanColourDetector(), []
    with RegionStoreWriter(tmp_path / "store", EXTRACTOR) as writer:
        report = extract(
            images_of_folder(folder), detector, writer, batch_size=2, progress=lambda *call: calls.append(call)
        )
    assert (report.done, report.already, report.skipped) == (5, 0, [])
    assert detector.batches == [2, 2, 1]
    assert calls == [(0, 5), (0, 5), (2, 5), (2, 5), (4, 5), (5, 5)]  # an image is done when its batch is
    store = RegionStore(tmp_path / "store")
    for number, name in enumerate("abcde"):
        regions = store.read(store.position(name))
        assert (regions.width, regions.height) == (10, 20)
        assert regions.features.tolist() == [[number * 10] * 3]


def test_a_bad_image_is_logged_counted_and_skipped(folder, tmp_path, caplog):
    (folder / "b.png").write_text("not an image")
    (folder / "e.png").unlink()
    images = [(name, folder / f"{name}.png") for name in "abcde"]
    with (
        caplog.at_level(logging.WARNING, logger="dimvl.regions.extract"),
        RegionStoreWriter(tmp_path / "store", EXTRACTOR) as writer,
    ):
        report = extract(images, MeanColourDetector(), writer, batch_size=4)  # ends with a bad image
    assert report.done == 3
    assert [path.name for path, _ in report.skipped] == ["b.png", "e.png"]
    assert "b.png is not an image" in report.skipped[0][1]
    assert len(caplog.records) == 2
    store = RegionStore(tmp_path / "store")
    assert [name in store for name in "abcde"] == [True, False, True, True, False]


def test_a_second_extraction_processes_only_new_images(folder, tmp_path):
    images = images_of_folder(folder)
    with RegionStoreWriter(tmp_path / "store", EXTRACTOR) as writer:
        extract(images[:3], MeanColourDetector(), writer)
    detector = MeanColourDetector()
    with RegionStoreWriter(tmp_path / "store", EXTRACTOR) as writer:
        report = extract(images, detector, writer)
    assert (report.done, report.already, detector.batches) == (2, 3, [2])
    assert len(RegionStore(tmp_path / "store")) == 5


def test_given_boxes_are_described_in_their_own_image(folder, tmp_path):
    boxes = {name: np.array([[0, 0, 0.1 * (n + 1), 1]] * (n + 1), dtype=np.float32) for n, name in enumerate("abcd")}
    with RegionStoreWriter(tmp_path / "store", EXTRACTOR) as writer:
        report = extract(images_of_folder(folder), MeanColourDetector(), writer, batch_size=3, boxes=boxes)
    assert [path.name for path, _ in report.skipped] == ["e.png"]
    store = RegionStore(tmp_path / "store")
    for name, wanted in boxes.items():
        np.testing.assert_array_equal(store.read(store.position(name)).boxes, wanted)


def test_a_detector_that_knows_nothing_in_most_images_is_told(folder, tmp_path, caplog):
    class Blind(MeanColourDetector):
        @staticmethod
        def describe(image, boxes):
            seen = MeanColourDetector.describe(image, boxes)
            return replace(seen, class_ids=np.full((len(boxes), 1), -1 if image.max() else 0, dtype=np.int16))

    for number, expected in ((1, False), (2, False), (5, True)):
        with RegionStoreWriter(tmp_path / str(number), EXTRACTOR) as writer:
            extract(images_of_folder(folder)[:number], Blind(), writer)
        assert ("fake found no object of its 1 classes in 4 of 5 images" in caplog.text) is expected


def test_images_without_given_boxes_are_told_only_if_they_are_most(folder, tmp_path, caplog):
    for number, expected in ((2, False), (3, True)):
        boxes = {name: np.zeros((0 if n < number else 1, 4), dtype=np.float32) for n, name in enumerate("abcde")}
        with RegionStoreWriter(tmp_path / str(number), EXTRACTOR) as writer:
            extract(images_of_folder(folder), MeanColourDetector(), writer, boxes=boxes)
        assert ("no box is given for 3 of 5 images, of which the only" in caplog.text) is expected
    assert "found no object" not in caplog.text


def test_a_grid_has_no_classes_and_nothing_is_told_about_them(folder, tmp_path, caplog):
    class Cells(MeanColourDetector):
        @staticmethod
        def describe(image, boxes):
            seen, none = MeanColourDetector.describe(image, boxes), np.zeros((len(boxes), 0))
            return replace(seen, class_ids=none.astype(np.int16), class_scores=none.astype(np.float16))

    with RegionStoreWriter(tmp_path / "store", replace(EXTRACTOR, classes=())) as writer:
        assert extract(images_of_folder(folder), Cells(), writer).done == 5
    assert "found no object" not in caplog.text and "no box" not in caplog.text
