"""Writing a region store: invalid data is rejected, and finished images survive any end of the writer."""

import os
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.regions.store import writer as store_writer
from dimvl.regions.store.check import verify_store
from dimvl.regions.store.writer import RegionStoreWriter
from tests.regions.store.synthetic_store import (
    EXTRACTOR,
    IMAGES,
    SHARD_BYTES,
    assert_same,
    contents,
    regions_of,
    write_store,
)


@pytest.fixture
def path(tmp_path):
    write_store(tmp_path / "store")
    return tmp_path / "store"


def test_an_image_cannot_be_written_twice(path):
    with (
        pytest.raises(UserError, match=r"'111' is in region store .* already"),
        RegionStoreWriter(path, EXTRACTOR) as writer,
    ):
        writer.add(replace(regions_of(4), image_id=regions_of(3).image_id))


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "xyz"}, {"parameters": {"threshold": 0.2}}, {"feature_width": 6}, {"classes": ("circle",)}],
)
def test_another_extractor_is_rejected(path, change):
    before = contents(path)
    with pytest.raises(UserError, match=rf"made by another extractor: {next(iter(change))}[.a-z]* is"):
        RegionStoreWriter(path, replace(EXTRACTOR, **change))
    assert contents(path) == before
    write_store(path)  # and the folder is not left locked


@pytest.mark.parametrize(("name", "width"), [("features", 4), ("class_ids", 3), ("boxes", 5)])
def test_arrays_of_another_width_are_rejected(path, name, width):
    regions = replace(regions_of(2), image_id="new", **{name: np.zeros((2, width), dtype=np.float16)})
    with (
        pytest.raises(UserError, match=rf"'new' has {name} of (shape \(2, )?(width )?{width}"),
        RegionStoreWriter(path, EXTRACTOR) as writer,
    ):
        writer.add(regions)
    assert len(RegionStore(path)) == IMAGES


@pytest.mark.parametrize(
    ("name", "value"), [("features", np.nan), ("features", np.inf), ("features", 1e6), ("boxes", np.nan)]
)
def test_values_that_are_not_finite_are_rejected_with_the_image(path, name, value):
    array = getattr(regions_of(2), name).astype(np.float32)
    array[1, 2] = value
    with (
        pytest.raises(UserError, match=f"'new' has {name} that are not finite"),
        RegionStoreWriter(path, EXTRACTOR) as writer,
    ):
        writer.add(replace(regions_of(2), image_id="new", **{name: array}))
    assert len(RegionStore(path)) == IMAGES


def refused(path: Path, message: str, **changes: object) -> None:
    with pytest.raises(UserError, match=message), RegionStoreWriter(path, EXTRACTOR) as writer:
        writer.add(replace(regions_of(2), **{"image_id": "new", **changes}))
    assert len(RegionStore(path)) == IMAGES and verify_store(path) == []


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0.5, 0.2, 0.4, 0.9], r"'new' has box 1, .* whose corners are swapped; give x1, y1, x2, y2"),
        ([0.1, 0.9, 0.4, 0.2], "whose corners are swapped"),
        ([10, 20, 30, 40], "outside the image; give fractions of its width and height, not pixels"),
        ([-0.5, 0.2, 0.4, 0.9], "outside the image"),
        ([0.1, 0.2, np.inf, 0.9], "not finite"),
    ],
)
def test_an_invalid_box_is_rejected(path, box, message):
    boxes = regions_of(2).boxes.copy()
    boxes[1] = box
    refused(path, message, boxes=boxes)


def test_a_box_without_area_and_one_slightly_outside_the_image_are_valid(path):
    boxes = np.array([[0.5, 0.5, 0.5, 0.5], [-0.001, 0, 1.001, 1]], dtype=np.float32)
    with RegionStoreWriter(path, EXTRACTOR) as writer:
        writer.add(replace(regions_of(2), image_id="new", boxes=boxes))
    np.testing.assert_array_equal(RegionStore(path).read(IMAGES).boxes, boxes)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("class_ids", 2, "class id 2 but the extractor has 2 names, numbered from 0"),
        ("class_ids", -2, "class id -2"),
        ("attribute_ids", 9, "attribute id 9"),
        ("class_scores", 1.5, "class score 1.5; give probabilities"),
        ("attribute_scores", -0.5, "attribute score -0.5"),
    ],
)
def test_ids_without_a_name_and_scores_that_are_not_probabilities_are_rejected(path, name, value, message):
    array = getattr(regions_of(2), name).copy()
    array[1, 1] = value
    refused(path, message, **{name: array})


@pytest.mark.parametrize("value", [2**16, -(2**31), 0.5, np.nan])
def test_an_id_that_is_not_a_16_bit_integer_is_rejected(path, value):
    array = regions_of(2).class_ids.astype(np.float64)
    array[1, 1] = value
    refused(path, "class_ids that are not 16-bit integers", class_ids=array)


@pytest.mark.parametrize("size", [0, -3, 2**32])
def test_an_image_without_a_size_is_rejected(path, size):
    refused(path, f"'new' has height {size}; give its size in pixels", height=size)


@pytest.mark.parametrize(("image_id", "message"), [(42, "42 is not a string"), ("a\ud800", "half a surrogate pair")])
def test_an_id_that_is_not_a_string_is_rejected_by_writer_and_reader(path, image_id, message):
    refused(path, message, image_id=image_id)
    with pytest.raises(UserError, match=message):
        RegionStore(path).position(image_id)


def test_features_of_another_dtype_are_rejected(path):
    with pytest.raises(UserError, match="holds features as float16, not as int8; continue with float16"):
        RegionStoreWriter(path, EXTRACTOR, feature_dtype="int8")
    write_store(path)  # and the folder is not left locked


def test_a_folder_with_other_content_is_rejected(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="neither empty nor a region store"):
        RegionStoreWriter(tmp_path, EXTRACTOR)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_a_second_writer_is_rejected_until_the_first_ends(tmp_path):
    with (
        RegionStoreWriter(tmp_path / "store", EXTRACTOR),
        pytest.raises(UserError, match="another process is writing"),
    ):
        RegionStoreWriter(tmp_path / "store", EXTRACTOR)
    write_store(tmp_path / "store")


def test_arrays_may_be_reused_after_they_are_added(tmp_path):
    regions = regions_of(3)
    with RegionStoreWriter(tmp_path / "store", EXTRACTOR) as writer:
        writer.add(regions)
        regions.features[:] = 0
    np.testing.assert_array_equal(RegionStore(tmp_path / "store").read(0).features, regions_of(3).features)


def test_images_added_before_an_error_are_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt), RegionStoreWriter(tmp_path / "store", EXTRACTOR) as writer:
        writer.add(regions_of(1))
        raise KeyboardInterrupt
    assert_same(RegionStore(tmp_path / "store").read(0), regions_of(1))


# Unplanned ends


def in_child(work) -> int:
    """Run `work` in a forked process and return its exit code; a signal is negative."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_until(path: Path, kill_at: int) -> None:
    """Write images and be killed at the given flush to disk or renaming of a file, counted from 1."""
    calls = 0

    def dying(function):
        def wrapper(*arguments):
            nonlocal calls
            calls += 1
            if calls == kill_at:
                die()
            return function(*arguments)

        return wrapper

    os.fsync, os.replace = dying(os.fsync), dying(os.replace)  # only in this child process
    write_store(path)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_writer_killed_at_any_step_leaves_a_store_that_opens_and_continues_to_the_same_bytes(path, tmp_path):
    undisturbed = contents(path)
    steps = 0
    while True:
        steps += 1
        killed = tmp_path / f"killed-{steps}"
        code = in_child(lambda killed=killed, step=steps: write_until(killed, step))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if (killed / "manifest.json").exists():
            store = RegionStore(killed)
            assert verify_store(killed) == []
            for position in range(len(store)):
                assert_same(store.read(position), regions_of(position))
                assert store.position(regions_of(position).image_id) == position
        else:
            assert steps <= 2  # only before the store exists
        write_store(killed)
        assert contents(killed) == undisturbed
    assert steps > 4 * len(RegionStore(path).folders[0].manifest.shards)  # every commit was cut at each of its steps


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_continuing_writer_killed_between_images_loses_only_the_last_shard(tmp_path):
    path = tmp_path / "store"
    write_store(path, range(5))  # finished, so it has a lookup, of 5 images

    def add_some_and_die() -> None:
        with RegionStoreWriter(path, EXTRACTOR, shard_bytes=SHARD_BYTES) as writer:
            for number in range(5, 20):
                writer.add(regions_of(number))
            die()

    assert in_child(add_some_and_die) == -signal.SIGKILL
    store = RegionStore(path)
    assert 10 < len(store) < 20
    ids = [regions_of(number).image_id for number in range(20)]
    assert store.positions(ids[: len(store)]).tolist() == list(range(len(store)))
    with RegionStoreWriter(path, EXTRACTOR) as writer:
        assert [image_id in writer for image_id in ids] == [number < len(store) for number in range(20)]


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_full_disk_is_one_sentence_and_leaves_the_store_unchanged(path):
    before = contents(path)

    def fill() -> None:
        # A limit on the size of files simulates the full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            with RegionStoreWriter(path, EXTRACTOR, shard_bytes=10_000) as writer:
                for number in range(IMAGES, 2000):
                    writer.add(regions_of(number))
        except UserError as error:
            os._exit(11 if str(error).startswith("cannot write") and "free space" in str(error) else 12)

    assert in_child(fill) == 11
    assert contents(path) == before
    write_store(path, range(IMAGES + 5))
    assert len(RegionStore(path)) == IMAGES + 5


@pytest.mark.parametrize("failing", ["_append", "write_manifest", "make_lookup"])
def test_a_write_that_fails_at_any_step_keeps_finished_images(path, failing, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_writer, failing, full)
        with pytest.raises(UserError, match=r"cannot write .*store.*: No space left on device; free space"):
            write_store(path, range(IMAGES + 5))
    store = RegionStore(path)
    assert verify_store(path) == []
    assert len(store) >= IMAGES
    for position in range(len(store)):
        assert_same(store.read(position), regions_of(position))
    write_store(path, range(IMAGES + 5))
    assert len(RegionStore(path)) == IMAGES + 5


def test_a_writer_may_try_again_after_a_failed_commit(path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with RegionStoreWriter(path, EXTRACTOR) as writer:
        writer.add(regions_of(IMAGES))
        with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
            patch.setattr(store_writer, "write_manifest", full)  # the last step: the index has been appended to
            writer.flush()
    store = RegionStore(path)
    assert verify_store(path) == []
    assert_same(store.read(IMAGES), regions_of(IMAGES))
    assert len((path / "index.bin").read_bytes()) == store.folders[0].manifest.index.num_bytes


@pytest.mark.parametrize("name", ["index.bin", "ids.bin"])
def test_the_writer_never_writes_through_a_link(tmp_path, name):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "store").mkdir()
    write_store(tmp_path / "empty", range(0))
    shutil.copy(tmp_path / "empty" / "manifest.json", tmp_path / "store")
    (tmp_path / "store" / name).symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=rf"store/{name} is a symbolic link, which is not written through; remove it"):
        write_store(tmp_path / "store")
    assert (tmp_path / "precious").read_text() == "kept"


def test_the_files_of_a_store_have_the_modes_that_the_umask_asks_for(tmp_path):
    old = os.umask(0o027)
    try:
        write_store(tmp_path / "store")
    finally:
        os.umask(old)
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "store").iterdir()} == {"0o640"}
