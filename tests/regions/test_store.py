"""Reading a region store: what is read is what was written, and damage is found."""

import json
import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions import store as store_module
from dimvl.regions import store_format, store_writer
from dimvl.regions.store import RegionStore
from dimvl.regions.store_writer import RegionStoreWriter
from tests.regions.synthetic_store import ARRAYS, EXTRACTOR, IMAGES, assert_same, regions_of, write_store


@pytest.fixture
def path(tmp_path):
    write_store(tmp_path / "store")
    return tmp_path / "store"


def flip_bit(file: Path, byte: int) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 1
    file.write_bytes(data)


# Reading


def test_every_image_is_read_as_it_was_written(path):
    store = RegionStore(path)
    assert len(store) == IMAGES
    assert len(store.manifest.shards) > 3
    assert store.extractor == EXTRACTOR
    for number in range(IMAGES):
        wanted = regions_of(number)
        assert store.position(wanted.image_id) == number
        assert store.image_id(number) == wanted.image_id
        assert_same(store.read(number), wanted)


def test_packed_reading_equals_reading_one_by_one(path):
    store = RegionStore(path)
    positions = np.random.default_rng(0).permutation(np.arange(IMAGES).repeat(2))
    packed = store.read_packed(positions)
    singles = [store.read(int(position)) for position in positions]
    assert packed.num_regions.tolist() == [len(regions) for regions in singles]
    for name in ARRAYS:
        stacked = np.concatenate([getattr(regions, name) for regions in singles])
        np.testing.assert_array_equal(getattr(packed, name), stacked, err_msg=name)


def test_packed_reading_fills_the_memory_that_it_is_given(path):
    given = []

    def allocate(shape, dtype):
        given.append(np.zeros(shape, dtype))
        return given[-1]

    packed = RegionStore(path).read_packed(np.array([5, 3]), allocate)
    assert all(any(getattr(packed, name) is array for array in given) for name in ARRAYS)


def test_numbers_and_sizes_come_from_the_index_alone(path):
    for shard in path.glob("shard-*"):
        shard.unlink()
    store = RegionStore(path)
    positions = store.positions([regions_of(number).image_id for number in (4, 0, 11)])
    assert positions.tolist() == [4, 0, 11]
    assert store.num_regions(positions).tolist() == [4, 0, 5]
    assert store.sizes(positions).tolist() == [[104, 204], [100, 200], [111, 211]]


def test_an_image_that_the_store_lacks_is_named(path):
    store = RegionStore(path)
    assert regions_of(3).image_id in store
    assert "unknown" not in store
    with pytest.raises(UserError, match=r"store lacks image 'unknown'; extract"):
        store.position("unknown")
    with pytest.raises(UserError, match=r"lacks image 'unknown' and 1 others"):
        store.positions([regions_of(3).image_id, "unknown", "other"])


def test_images_whose_hashes_collide_are_told_apart(tmp_path, monkeypatch):
    for module in (store_module, store_writer):
        monkeypatch.setattr(module, "hash_of_id", lambda encoded: len(encoded) % 2)
    write_store(tmp_path / "store")
    store = RegionStore(tmp_path / "store")
    assert store.positions([regions_of(number).image_id for number in range(IMAGES)]).tolist() == list(range(IMAGES))
    assert "unknown" not in store


def test_a_file_name_that_is_not_utf8_is_an_id_like_others(tmp_path):
    image_id = os.fsdecode(b"caf\xe9")
    with RegionStoreWriter(tmp_path / "store", EXTRACTOR) as writer:
        writer.add(replace(regions_of(1), image_id=image_id))
    store = RegionStore(tmp_path / "store")
    assert store.image_id(store.position(image_id)) == image_id


def test_a_store_of_no_images_opens(tmp_path):
    write_store(tmp_path / "store", range(0))
    store = RegionStore(tmp_path / "store")
    assert len(store) == 0
    assert "1" not in store
    assert store.positions([]).tolist() == []
    assert store.verify() == []


def test_more_shards_than_descriptors_are_read(path, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_OPEN_SHARDS", 2)
    store = RegionStore(path)
    before = len(os.listdir("/proc/self/fd"))
    for position in np.random.default_rng(0).permutation(IMAGES):
        assert_same(store.read(int(position)), regions_of(int(position)))
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    del store
    assert len(os.listdir("/proc/self/fd")) < before


def test_an_open_store_keeps_no_python_object_per_image(tmp_path):
    sizes = []
    for count in (10, 200):
        write_store(tmp_path / str(count), range(count))
        store = RegionStore(tmp_path / str(count))
        arrays = [value for value in vars(store).values() if isinstance(value, np.ndarray)]
        assert all(isinstance(base_of(array), np.memmap) for array in arrays)
        per_store = {name: value for name, value in vars(store).items() if not isinstance(value, np.ndarray)}
        assert set(per_store) == {"path", "manifest", "_shards"}
        sizes.append(len(pickle.dumps(store)))
    assert sizes[0] == sizes[1] - 1  # one more digit in the path


def base_of(array: np.ndarray) -> object:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def read_in_child(store: RegionStore, queue: multiprocessing.Queue) -> None:
    queue.put([store.read_packed(np.arange(IMAGES)).features.tobytes(), store.position(regions_of(9).image_id)])


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_another_process_reads_the_same(path, method):
    store = RegionStore(path)
    wanted = store.read_packed(np.arange(IMAGES)).features.tobytes()  # shards are open when the process forks
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    children = [context.Process(target=read_in_child, args=(store, queue)) for _ in range(2)]
    for child in children:
        child.start()
    results = [queue.get() for _ in children]
    for child in children:
        child.join()
    assert results == [[wanted, 9]] * 2


# Damage


def test_a_sound_store_verifies(path):
    calls = []
    assert RegionStore(path).verify(lambda *call: calls.append(call)) == []
    assert calls[-1][0] == calls[-1][1] == len(list(path.glob("shard-*")))


@pytest.mark.parametrize("where", [0.3, 0.9, -1])
def test_verify_finds_a_flipped_bit_and_names_shard_and_images(path, where):
    shards = RegionStore(path).manifest.shards
    file = path / shards[1].file
    flip_bit(file, -1 if where == -1 else int(file.stat().st_size * where))
    problems = RegionStore(path).verify()
    images = range(shards[0].num_images, shards[0].num_images + shards[1].num_images)
    names = ", ".join(regions_of(number).image_id for number in images)
    assert problems == [f"{file.name} is damaged: its checksum differs; it has the images {names}"]


@pytest.mark.parametrize("name", ["index.bin", "ids.bin", "lookup.npy"])
def test_verify_finds_a_flipped_bit_beside_the_shards(path, name):
    size = (path / name).stat().st_size
    for byte in (size // 2, size - 2):
        flip_bit(path / name, byte)
        assert any(problem.startswith(f"{name} is damaged") for problem in RegionStore(path).verify())
        flip_bit(path / name, byte)
    assert RegionStore(path).verify() == []


def test_verify_names_a_missing_shard(path):
    (path / "shard-00000.safetensors").unlink()
    assert [problem.split(",")[0] for problem in RegionStore(path).verify()] == ["shard-00000.safetensors is missing"]


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_shard_is_refused_when_it_is_read(path, size):
    file = path / "shard-00001.safetensors"
    os.truncate(file, size if size >= 0 else file.stat().st_size - 1)
    store = RegionStore(path)
    position = store.manifest.shards[0].num_images + 1
    with pytest.raises(UserError, match=r"shard-00001\.safetensors is missing or damaged .*`dimvl verify"):
        store.read(position)
    assert_same(store.read(1), regions_of(1))  # other shards are not affected


def test_a_shard_that_shrinks_while_it_is_open_is_refused(path):
    store = RegionStore(path)
    store.read(1)
    file = path / "shard-00000.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(UserError, match="is cut off"):
        store.read_packed(np.arange(store.manifest.shards[0].num_images))


def test_a_folder_without_a_manifest_is_not_a_store(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="is not a region store"):
            RegionStore(folder)


def edit_manifest(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version: Input should be 1"),
        ({"format": "other"}, "format: Input should be 'dimvl-regions'"),
        ({"num_images": -1}, "num_images: Input should be greater"),
        ({"num_images": 5}, "counts disagree"),
        ({"extractor": {}}, r"extractor\.name"),
        ({"shards": [{"file": "../x", "num_images": 1, "num_regions": 1, "sha256": ""}]}, r"shards\.0\.file"),
    ],
)
def test_a_damaged_manifest_is_refused_in_one_sentence(path, changes, words):
    edit_manifest(path, **changes)
    with pytest.raises(UserError, match=rf"manifest\.json .*{words}"):
        RegionStore(path)


def test_a_manifest_that_is_cut_off_is_refused(path):
    os.truncate(path / "manifest.json", 100)
    with pytest.raises(UserError, match=r"manifest\.json is not valid JSON"):
        RegionStore(path)


@pytest.mark.parametrize("name", ["index.bin", "ids.bin"])
def test_a_short_index_is_refused(path, name):
    os.truncate(path / name, 20)
    with pytest.raises(UserError, match=f"{name} is missing or too short; extract it again"):
        RegionStore(path)
    with pytest.raises(UserError, match=f"{name} is not as written"):
        write_store(path)


def test_a_damaged_lookup_is_refused_and_can_be_deleted(path):
    os.truncate(path / "lookup.npy", 20)
    with pytest.raises(UserError, match=r"lookup\.npy is damaged; delete it"):
        RegionStore(path)
    (path / "lookup.npy").unlink()
    assert RegionStore(path).position(regions_of(9).image_id) == 9


def test_a_reader_sees_the_state_at_which_it_was_opened(path):
    store = RegionStore(path)
    write_store(path, range(IMAGES + 20))
    assert len(store) == IMAGES
    assert store.verify() == []
    assert_same(store.read(IMAGES - 1), regions_of(IMAGES - 1))
    assert regions_of(IMAGES + 3).image_id not in store


def test_hashes_of_ids_never_change():
    # Stores on disk depend on it. The bytes are what `printf 42 | b2sum -l 64` prints.
    assert store_format.hash_of_id(b"42") == int.from_bytes(bytes.fromhex("57b43cf02666687a"), "little")
