"""Several folders read as one store, and written by several processes at once."""

import multiprocessing
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.records import ARRAYS
from dimvl.regions.store import RegionStore
from dimvl.regions.store import folder as store_folder
from dimvl.regions.store import reader as store_reader
from dimvl.regions.store import writer as store_writer
from dimvl.regions.store.writer import RegionStoreWriter
from tests.regions.store.synthetic_store import EXTRACTOR, IMAGES, assert_same, regions_of, write_store

PARTS = (range(0, 9), range(9, 9), range(9, 10), range(10, IMAGES))


@pytest.fixture
def parts(tmp_path):
    """Folders with the images of `PARTS`; one of them has none."""
    for number, images in enumerate(PARTS):
        write_store(tmp_path / f"part-{number}", images)
    return [tmp_path / f"part-{number}" for number in range(len(PARTS))]


def test_parts_are_read_as_one_store_of_all_their_images(parts, tmp_path):
    write_store(tmp_path / "whole")
    one, many = RegionStore(tmp_path / "whole"), RegionStore(parts)
    ids = [regions_of(number).image_id for number in np.random.default_rng(0).permutation(IMAGES)]
    positions = one.positions(ids)
    assert len(many) == len(one) and many.extractor == one.extractor
    np.testing.assert_array_equal(many.positions(ids), positions)
    np.testing.assert_array_equal(many.num_regions(positions), one.num_regions(positions))
    np.testing.assert_array_equal(many.sizes(positions), one.sizes(positions))
    got, wanted = many.read_packed(positions), one.read_packed(positions)
    for name in (*ARRAYS, "num_regions"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)
    for number in range(IMAGES):
        assert many.image_id(number) == one.image_id(number)
        assert_same(many.read(number), regions_of(number))
    assert ids[0] in many and "unknown" not in many
    assert len(pickle.loads(pickle.dumps(many))) == len(one)


def test_a_missing_image_names_all_stores(parts):
    with pytest.raises(UserError, match=r"part-0 and .*part-3 lacks image 'unknown'; extract"):
        RegionStore(parts).positions(["unknown"])
    with pytest.raises(UserError, match="no region store is given"):
        RegionStore([])


def test_an_image_in_two_stores_is_named(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(store_reader, "IDS_AT_ONCE", 3)
    write_store(tmp_path / "more", [*range(IMAGES, IMAGES + 10), 4, 12])
    name = regions_of(4).image_id
    with pytest.raises(UserError, match=rf"part-0 and .*more have images in common, such as '{name}'; omit one"):
        RegionStore([*parts, tmp_path / "more"])
    with pytest.raises(UserError, match=r"part-0 and .*part-0 have images in common"):
        RegionStore([parts[0], parts[0]])


def test_images_of_two_stores_with_colliding_hashes_are_distinguished(tmp_path, monkeypatch):
    for module in (store_folder, store_writer):
        monkeypatch.setattr(module, "hash_of_id", lambda encoded: len(encoded) % 2)
    write_store(tmp_path / "a", range(10))
    write_store(tmp_path / "b", range(10, 20))
    store = RegionStore([tmp_path / "a", tmp_path / "b"])
    assert store.positions([regions_of(number).image_id for number in range(20)]).tolist() == list(range(20))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"fingerprint": "xyz"}, {}, "have different extractors: fingerprint is 'abc' and 'xyz'"),
        ({"classes": ("circle", "x" * 1000)}, {}, r"have different extractors: classes is .{20,140}\.\.\.;"),
        ({}, {"feature_dtype": "int8"}, "cannot be combined: feature_dtype is 'float16' and 'int8'"),
    ],
)
def test_stores_that_do_not_fit_together_are_rejected(parts, tmp_path, changes, options, message):
    write_store(tmp_path / "other", range(IMAGES, IMAGES + 2), replace(EXTRACTOR, **changes), **options)
    with pytest.raises(UserError, match=rf"region stores .*part-0 and .*other {message}"):
        RegionStore([*parts, tmp_path / "other"])


def test_stores_with_different_numbers_of_classes_are_rejected(parts, tmp_path):
    with RegionStoreWriter(tmp_path / "other", EXTRACTOR) as writer:
        one = replace(regions_of(2), class_ids=np.zeros((2, 1)), class_scores=np.ones((2, 1)), image_id="new")
        writer.add(one)
    with pytest.raises(UserError, match="class_columns is 2 and 1"):
        RegionStore([*parts, tmp_path / "other"])


def test_the_stores_share_the_limit_of_descriptors(parts, monkeypatch):
    monkeypatch.setattr(store_reader, "MAX_OPEN_SHARDS", 5)
    store = RegionStore(parts)
    before = len(os.listdir("/proc/self/fd"))
    for position in np.random.default_rng(0).permutation(IMAGES):
        store.read(int(position))
    assert len(os.listdir("/proc/self/fd")) <= before + 5


def write_part(path: Path, numbers: range, die_at: int | None) -> None:
    with RegionStoreWriter(path, EXTRACTOR, shard_bytes=400) as writer:
        for number in numbers:
            if number == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if regions_of(number).image_id not in writer:
                writer.add(regions_of(number))


def test_processes_write_parts_of_one_store_at_once_and_a_killed_one_resumes(tmp_path):
    context = multiprocessing.get_context("spawn")
    folders = [tmp_path / f"part-{rank}" for rank in range(3)]
    for attempt, die_at in enumerate((13, None)):
        arguments = [(folder, range(rank, IMAGES, 3), die_at) for rank, folder in enumerate(folders)]
        writers = [context.Process(target=write_part, args=given) for given in arguments]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        killed = [writer.exitcode == -signal.SIGKILL for writer in writers]
        assert killed == [False, attempt == 0, False]
    store = RegionStore(folders)
    assert len(store) == IMAGES
    for number in range(IMAGES):
        assert_same(store.read(store.position(regions_of(number).image_id)), regions_of(number))
