"""Extraction with a real, tiny detector: threads, batches and interruptions leave no trace in the store."""

import logging
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import dimvl.regions.extract
from dimvl.errors import UserError
from dimvl.regions.extract import extract
from dimvl.regions.images import load_image
from dimvl.regions.listing import images_of_folder
from dimvl.regions.store import RegionStore
from dimvl.regions.store.format import read_manifest
from dimvl.regions.store.writer import RegionStoreWriter
from tests.exports import make_detector, make_image
from tests.regions.store.synthetic_store import ARRAYS

SHARD_BYTES = 600  # two or three images


@pytest.fixture(scope="module")
def detector():
    return make_detector()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eleven images of three sizes."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(11):
        make_image(number, *[(90, 70), (64, 64), (70, 90)][number % 3]).save(folder / f"{number:02}.png")
    return images_of_folder(folder)


def run(images, detector, store, shard_bytes=SHARD_BYTES, **options):
    with RegionStoreWriter(store, detector.extractor, shard_bytes=shard_bytes) as writer:
        return extract(images, detector, writer, **{"batch_size": 4, **options})


def arrays(store):
    """The whole content of a store, by image."""
    store = RegionStore(store)
    found = [store.read(position) for position in range(len(store))]
    return {r.image_id: (r.width, r.height, *(getattr(r, name).tobytes() for name in ARRAYS)) for r in found}


def files(store):
    return {path.name: path.read_bytes() for path in store.iterdir() if path.suffix == ".safetensors"}


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_store_is_the_same_bit_for_bit_with_any_number_of_threads(images, detector, tmp_path, workers):
    run(images, detector, tmp_path / "one")
    run(images, detector, tmp_path / "many", workers=workers)
    assert list(arrays(tmp_path / "many")) == [image_id for image_id, _ in images]
    assert files(tmp_path / "many") == files(tmp_path / "one") and len(files(tmp_path / "one")) > 1


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_changes_only_the_rounding(images, detector, tmp_path, batch_size):
    run(images, detector, tmp_path / "four")
    run(images, detector, tmp_path / "other", batch_size=batch_size)
    first, second = RegionStore(tmp_path / "four"), RegionStore(tmp_path / "other")
    for position in range(len(images)):
        ours, theirs = first.read(position), second.read(position)
        np.testing.assert_array_equal(ours.class_ids, theirs.class_ids)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-5)  # float32 sums in another order
        np.testing.assert_allclose(ours.features, theirs.features, rtol=2e-3, atol=1e-3)  # stored as float16


class CutError(Exception):
    pass


@pytest.mark.parametrize("calls", [1, 2])
def test_an_interrupted_extraction_resumes_to_the_same_store(images, detector, tmp_path, monkeypatch, calls):
    run(images, detector, tmp_path / "whole")
    detect, seen = type(detector).detect_prepared, []

    def failing(self, *arguments):
        seen.append(1)
        if len(seen) > calls:
            raise CutError
        return detect(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(type(detector), "detect_prepared", failing)
        with pytest.raises(CutError):
            run(images, detector, tmp_path / "cut", workers=2)
    assert len(RegionStore(tmp_path / "cut")) == 4 * calls
    report = run(images, detector, tmp_path / "cut")
    assert (report.done, report.already) == (11 - 4 * calls, 4 * calls)
    assert arrays(tmp_path / "cut") == arrays(tmp_path / "whole")


def test_a_shard_ends_where_a_batch_ends_so_that_a_killed_extraction_resumes_with_the_same_batches(
    images, detector, tmp_path
):
    for shard_bytes in range(1100, 2600, 250):  # from little more than a batch of three to two of them
        store = tmp_path / str(shard_bytes)
        run(images, detector, store, shard_bytes=shard_bytes, batch_size=3)
        counts = [entry.num_images for entry in read_manifest(store).shards]
        assert len(counts) > 1 and all(count % 3 == 0 for count in counts[:-1]), (shard_bytes, counts)


def test_at_most_a_batch_and_one_image_per_thread_are_decoded_ahead(images, monkeypatch, tmp_path):
    decoded, started, counts = [], threading.Lock(), []
    load = dimvl.regions.extract.image_in_thread

    def counted(path, name):
        with started:
            decoded.append(path)
        return load(path, name)

    class Slow:
        def prepare(self, image):
            return np.asarray(image)

        def detect_prepared(self, arrays, boxes=None):
            counts.append(len(decoded))
            raise UserError("enough")

    monkeypatch.setattr(dimvl.regions.extract, "image_in_thread", counted)
    many = [(f"{number}", images[0][1]) for number in range(100)]
    with pytest.raises(UserError, match="enough"):
        run(many, Wrapped(Slow()), tmp_path / "store", workers=2)
    assert counts[0] <= 4 + 4 + 2 + 1 and len(decoded) < 20


class Wrapped:
    """A detector of another kind with the extractor of the tiny one."""

    def __init__(self, inner):
        self.prepare, self.detect_prepared = inner.prepare, inner.detect_prepared
        self.extractor = make_detector().extractor


class Fails:
    """Fails on every batch with an image of 64 x 64 pixels."""

    def __init__(self, inner, error):
        self.inner, self.error, self.prepare = inner, error, inner.prepare

    def detect_prepared(self, arrays, boxes=None):
        if any(array.shape == (64, 64, 3) for array in arrays):
            raise self.error
        return self.inner.detect_prepared(arrays, boxes)


def test_an_image_on_which_the_detector_fails_is_skipped_and_its_batch_is_not(images, detector, tmp_path, caplog):
    failing = Fails(detector, RuntimeError("kernel size cannot be greater"))
    with caplog.at_level(logging.WARNING, logger="dimvl.regions.extract"):
        report = run(images, Wrapped(failing), tmp_path / "store")
    assert (report.done, len(report.skipped)) == (7, 4)  # every third is 64 x 64 pixels
    assert [path.stem for path, _ in report.skipped] == ["01", "04", "07", "10"]
    assert "01.png: the detector fails on it (kernel size cannot be greater)" in report.skipped[0][1]
    assert len(caplog.records) == 4


def test_too_little_memory_names_the_remedy_and_keeps_what_was_written(images, detector, tmp_path):
    failing = Fails(detector, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore"))
    with pytest.raises(UserError, match=r"too small for 2 images at once \(.*9 GiB\); give a smaller batch size"):
        run([images[0], images[2], images[3], images[1]], Wrapped(failing), tmp_path / "store", batch_size=2)
    assert len(RegionStore(tmp_path / "store")) == 2


def test_the_disk_must_have_room_for_all_images_before_anything_is_written(images, detector, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(UserError, match=r"for 11 images of .* regions but its disk has 0.00 MB free"):
        run(images, detector, tmp_path / "store")
    assert len(RegionStore(tmp_path / "store")) == 0


def odd_images(folder):
    """One image as PNG, greyscale, transparent, 16 bit, rotated by the camera, JPEG, palette; and three bad files."""
    folder.mkdir()
    colour = make_image(3)
    grey = colour.convert("L")
    colour.save(folder / "colour.png")
    grey.save(folder / "grey.png")
    Image.merge("RGBA", (*colour.split(), grey)).save(folder / "transparent.png")
    Image.fromarray(np.asarray(grey, dtype=np.uint16) * 256).save(folder / "sixteen.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera was on its side
    colour.save(folder / "rotated.jpg", exif=rotated)
    colour.convert("P").save(folder / "palette.gif")
    (folder / "text.jpg").write_text("not an image")
    (folder / "torn.png").write_bytes((folder / "colour.png").read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.mark.parametrize("workers", [1, 4])
def test_odd_images_are_processed_as_a_person_sees_them_and_bad_ones_skipped(detector, tmp_path, caplog, workers):
    folder = odd_images(tmp_path / "images")
    report = run(images_of_folder(folder), detector, tmp_path / "store", workers=workers)
    assert sorted(path.name for path, _ in report.skipped) == ["empty.png", "text.jpg", "torn.png"]
    assert report.done == 6
    store = RegionStore(tmp_path / "store")
    for name in ("colour.png", "grey.png", "transparent.png", "sixteen.png", "rotated.jpg", "palette.gif"):
        image = load_image(folder / name)
        regions = store.read(store.position(name.split(".")[0]))
        (wanted,) = detector.detect([image])
        assert (regions.width, regions.height) == image.size
        np.testing.assert_allclose(regions.boxes, wanted.boxes, atol=1e-5)
        np.testing.assert_allclose(regions.features, wanted.features, rtol=2e-3, atol=1e-3)
    assert store.read(store.position("rotated")).width == 70, "upright"


def test_a_decompression_bomb_is_skipped(detector, tmp_path, images, monkeypatch):
    monkeypatch.setattr("dimvl.regions.images.MAX_PIXELS", 64 * 64 + 1)
    report = run(images, detector, tmp_path / "store", workers=2)
    assert report.done == 4 and all("pixels; make it smaller" in reason for _, reason in report.skipped)
