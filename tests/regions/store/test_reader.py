"""Reading a region store: images are read as they were written, and damage is found."""

import json
import multiprocessing
import os
import pickle
from dataclasses import replace
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.files import sha256, write_sealed
from dimvl.regions.records import ARRAYS
from dimvl.regions.store import RegionStore, feature_statistics
from dimvl.regions.store import folder as store_folder
from dimvl.regions.store import format as store_format
from dimvl.regions.store import reader as store_reader
from dimvl.regions.store import writer as store_writer
from dimvl.regions.store.check import verify_store
from dimvl.regions.store.writer import RegionStoreWriter
from tests.factories import make_extractor, make_regions
from tests.regions.store.synthetic_store import EXTRACTOR, IMAGES, assert_same, regions_of, write_store


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
    assert len(store.folders[0].manifest.shards) > 3
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


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("limit", [0, 2, 100])
def test_the_first_regions_of_each_image_can_be_read_alone(path, limit, check):
    positions = np.random.default_rng(0).permutation(IMAGES)
    packed = RegionStore(path, check).read_packed(positions, limit=limit)
    wanted = [regions_of(number) for number in positions]
    assert packed.num_regions.tolist() == [min(len(regions), limit) for regions in wanted]
    for found, regions in zip(packed.images(), wanted, strict=True):
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(found, name), getattr(regions, name)[:limit], err_msg=name)


def test_packed_reading_fills_the_given_memory(path):
    given = []

    def allocate(shape, dtype):
        given.append(np.zeros(shape, dtype))
        return given[-1]

    packed = RegionStore(path).read_packed(np.array([5, 3]), allocate=allocate)
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


def test_images_with_colliding_hashes_are_distinguished(tmp_path, monkeypatch):
    for module in (store_folder, store_writer):
        monkeypatch.setattr(module, "hash_of_id", lambda encoded: len(encoded) % 2)
    write_store(tmp_path / "store")
    store = RegionStore(tmp_path / "store")
    assert store.positions([regions_of(number).image_id for number in range(IMAGES)]).tolist() == list(range(IMAGES))
    assert "unknown" not in store


def test_a_file_name_that_is_not_utf8_is_a_valid_id(tmp_path):
    image_id = os.fsdecode(b"caf\xe9")
    with RegionStoreWriter(tmp_path / "store", EXTRACTOR) as writer:
        writer.add(replace(regions_of(1), image_id=image_id))
    store = RegionStore(tmp_path / "store")
    assert store.image_id(store.position(image_id)) == image_id


def test_a_store_without_images_opens(tmp_path):
    write_store(tmp_path / "store", range(0))
    store = RegionStore(tmp_path / "store")
    assert len(store) == 0
    assert "1" not in store
    assert store.positions([]).tolist() == []
    assert verify_store(store.folders[0].path) == []


def test_more_shards_than_descriptors_can_be_read(path, monkeypatch):
    monkeypatch.setattr(store_reader, "MAX_OPEN_SHARDS", 2)
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
        [folder] = store.folders
        arrays = [value for value in vars(folder).values() if isinstance(value, np.ndarray)]
        assert len(arrays) == 4 and all(isinstance(base_of(array), np.memmap) for array in arrays)
        per_store = {name for name, value in vars(folder).items() if not isinstance(value, np.ndarray)}
        assert per_store == {"path", "manifest", "_max_open", "_shards"}
        assert set(vars(store)) == {"check", "folders", "fingerprint", "_ends", "_manifest"} and len(store._ends) == 1
        sizes.append(len(pickle.dumps(store)))
    assert sizes[0] == sizes[1] - 1  # one more digit in the path


def base_of(array: np.ndarray) -> object:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def read_in_child(store: RegionStore, closed: Event, queue: SimpleQueue) -> None:
    closed.wait(60)
    queue.put([store.read_packed(np.arange(IMAGES)).features.tobytes(), store.position(regions_of(9).image_id)])


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_other_processes_read_the_same_after_the_first_has_closed_the_store(path, method):
    store = RegionStore(path)
    wanted = store.read_packed(np.arange(IMAGES)).features.tobytes()  # shards are open when the process forks
    context = multiprocessing.get_context(method)
    queue, closed = context.SimpleQueue(), context.Event()
    children = [context.Process(target=read_in_child, args=(store, closed, queue), daemon=True) for _ in range(2)]
    for child in children:
        child.start()
    descriptors = len(os.listdir("/proc/self/fd"))
    del store
    assert len(os.listdir("/proc/self/fd")) < descriptors
    closed.set()
    results = [queue.get() for _ in children]
    for child in children:
        child.join()
    assert results == [[wanted, 9]] * 2


# Damage


def test_a_sound_store_verifies(path):
    calls = []
    assert verify_store(path, lambda *call: calls.append(call)) == []
    assert calls[-1][0] == calls[-1][1] == len(list(path.glob("shard-*")))


def names(images: range) -> str:
    return ", ".join(regions_of(number).image_id for number in images)


def test_verify_names_the_one_image_whose_rows_are_damaged(path):
    file = path / "shard-00001.safetensors"
    data = file.read_bytes()
    place = data.index(regions_of(7).features.tobytes())
    flip_bit(file, place + 3)
    assert verify_store(path) == [f"{file.name} is damaged; lost images: {regions_of(7).image_id}"]


def test_verify_names_all_images_of_a_shard_without_a_readable_header(path):
    shards = RegionStore(path).folders[0].manifest.shards
    flip_bit(path / shards[1].file, 9)
    images = range(shards[0].num_images, shards[0].num_images + shards[1].num_images)
    assert verify_store(path) == [f"{shards[1].file} has a damaged header or is cut off; lost images: {names(images)}"]


def test_verify_names_the_image_of_a_damaged_record_by_its_id_or_its_number(path):
    record = store_format.INDEX_DTYPE.itemsize
    flip_bit(path / "index.bin", 5 * record + store_format.INDEX_DTYPE.fields["width"][1])
    assert verify_store(path) == [f"index.bin is damaged or cut off; lost images: {regions_of(5).image_id}"]
    flip_bit(path / "index.bin", 6 * record)  # the hash of the id
    problem = f"index.bin is damaged or cut off; lost images: {regions_of(5).image_id}, number 6"
    assert problem in verify_store(path)


def test_verify_names_the_first_images_and_counts_the_others(path):
    images = len(RegionStore(path))
    os.truncate(path / "index.bin", 0)
    named = ", ".join(f"number {number}" for number in range(8))
    assert f"index.bin is damaged or cut off; lost images: {named} and {images - 8} more" in verify_store(path)


def test_verify_names_the_images_of_damaged_ids_by_their_number(path):
    flip_bit(path / "ids.bin", 0)
    assert verify_store(path) == ["ids.bin is damaged or cut off; lost images: number 0"]


def test_no_image_is_lost_with_the_lookup(path):
    flip_bit(path / "lookup.bin", 3)
    assert verify_store(path) == [
        "lookup.bin is damaged or cut off; no image is lost: delete it, and the store works without it"
    ]
    (path / "lookup.bin").unlink()
    assert verify_store(path) == []
    assert RegionStore(path, check=True).position(regions_of(9).image_id) == 9


def test_verify_names_a_missing_shard(path):
    (path / "shard-00000.safetensors").unlink()
    images = range(RegionStore(path).folders[0].manifest.shards[0].num_images)
    assert verify_store(path) == [f"shard-00000.safetensors is missing; lost images: {names(images)}"]


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_reading_a_truncated_shard_is_an_error(path, size):
    file = path / "shard-00001.safetensors"
    os.truncate(file, size if size >= 0 else file.stat().st_size - 1)
    store = RegionStore(path)
    position = store.folders[0].manifest.shards[0].num_images + 1
    with pytest.raises(UserError, match=r"shard-00001\.safetensors is missing or damaged .*`dimvl verify"):
        store.read(position)
    assert_same(store.read(1), regions_of(1))  # other shards are not affected


def test_reading_a_shard_that_shrank_while_open_is_an_error(path):
    store = RegionStore(path)
    store.read(1)
    file = path / "shard-00000.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(UserError, match="is cut off"):
        store.read_packed(np.arange(store.folders[0].manifest.shards[0].num_images))


def test_a_folder_without_a_manifest_is_not_a_store(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="is not a region store"):
            RegionStore(folder)


def edit_manifest(path: Path, **changes: object) -> None:
    values = json.loads((path / "manifest.json").read_text()) | changes
    write_sealed(path / "manifest.json", {name: value for name, value in values.items() if name != "checksum"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 1}, "version is 1: input should be 2"),
        ({"format": "other"}, "format is 'other': input should be"),
        ({"num_images": -1}, "num_images is -1: input should be greater"),
        ({"num_images": 10**12}, "num_images does not agree with the other counts"),
        ({"num_regions": 5}, "num_regions does not agree"),
        ({"num_images": "23"}, "num_images is '23': input should be a valid integer"),
        ({"index": {"num_bytes": 10**9, "sha256": "0" * 64}}, "index does not agree"),
        ({"extractor": {**vars(EXTRACTOR), "feature_width": -5}}, "a feature width of -5"),
        ({"extractor": {**vars(EXTRACTOR), "feature_width": 5.5}}, "extractor.feature_width is 5.5"),
        ({"shards": {}}, "shards is {}"),
        ({"extractor": {}}, r"extractor\.name"),
        ({"shards": [{"file": "../x", "num_images": 1, "num_regions": 1, "sha256": ""}]}, r"shards\.0\.file"),
    ],
)
def test_an_invalid_manifest_is_rejected_in_one_sentence(path, changes, words):
    edit_manifest(path, **changes)
    with pytest.raises(UserError, match=rf"manifest\.json .*{words}"):
        RegionStore(path)


def test_a_truncated_or_changed_manifest_is_rejected(path):
    whole = (path / "manifest.json").read_bytes()
    for damaged in (whole[:100], whole[:-1], whole.replace(b"synthetic", b"synthetik"), b"[]"):
        (path / "manifest.json").write_bytes(damaged)
        with pytest.raises(UserError, match=r"manifest\.json is "):
            RegionStore(path)
        [problem] = verify_store(path)
        assert "manifest.json" in problem and problem.endswith("without it every image is lost")


def test_a_manifest_may_be_formatted_differently_if_its_checksum_matches(path):
    edit_manifest(path)
    assert_same(RegionStore(path).read(1), regions_of(1))


@pytest.mark.parametrize("name", ["index.bin", "ids.bin"])
def test_a_short_index_is_rejected(path, name):
    os.truncate(path / name, 20)
    with pytest.raises(UserError, match=f"{name} is missing or too short; extract it again"):
        RegionStore(path)
    with pytest.raises(UserError, match=f"{name} has changed"):
        write_store(path)


def test_a_lookup_of_another_length_is_not_used(path):
    os.truncate(path / "lookup.bin", 20)
    assert RegionStore(path).position(regions_of(9).image_id) == 9
    assert [problem.split()[0] for problem in verify_store(path)] == ["lookup.bin"]


def test_a_reader_sees_the_state_at_which_it_was_opened(path):
    store = RegionStore(path)
    write_store(path, range(IMAGES + 20))
    assert len(store) == IMAGES
    assert verify_store(store.folders[0].path) == []
    assert_same(store.read(IMAGES - 1), regions_of(IMAGES - 1))
    assert regions_of(IMAGES + 3).image_id not in store


def test_hashes_of_ids_never_change():
    # Stores on disk depend on it. The bytes are what `printf 42 | b2sum -l 64` prints.
    assert store_format.hash_of_id(b"42") == int.from_bytes(bytes.fromhex("57b43cf02666687a"), "little")


def test_feature_statistics_cover_all_regions_and_bound_dimensions_that_hardly_vary(tmp_path):
    generator = np.random.default_rng(0)
    features = generator.normal([0, 5, -100, 3], [1, 20, 0.5, 0], size=(300, 4)).astype(np.float16)
    extractor = replace(make_extractor(), feature_width=4)
    with RegionStoreWriter(tmp_path / "store", extractor) as writer:
        for number, part in enumerate(np.split(features, 100)):
            writer.add(replace(make_regions(number, str(number), 3), features=part))
    mean, std = feature_statistics(RegionStore(tmp_path / "store"))
    variance = features.astype(np.float64).var(axis=0)
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(std, np.sqrt(variance + variance.mean() / 1000), rtol=1e-5)
    assert std[3] > 0.2  # the fourth dimension is constant


def test_without_two_different_regions_the_statistics_change_nothing(tmp_path):
    for images in (0, 1):
        with RegionStoreWriter(tmp_path / str(images), make_extractor()) as writer:
            for number in range(images):
                writer.add(make_regions(number, str(number), 1))
        mean, std = feature_statistics(RegionStore(tmp_path / str(images)))
        assert not mean.any() and (std == 1).all()


# Stores that lie: their checksums are right, their content is not


def lie(path: Path, name: str, content: bytes) -> None:
    """Write a file of a store, and its checksum into the manifest."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    entry = manifest[name.removesuffix(".bin")] if name.endswith(".bin") else manifest["shards"][0]
    entry["sha256"] = sha256(path / name)
    edit_manifest(path, **manifest)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("shard", 10**6, "a shard that does not exist"),
        ("num_regions", 2**32 - 1, "regions that do not exist"),
        ("first_row", 2**64 - 1, "regions that do not exist"),
        ("id_start", 2**64 - 1, "ids that do not exist"),
        ("id_length", 2**40, "ids that do not exist"),
    ],
)
def test_an_index_of_what_does_not_exist_is_refused_before_memory_is_reserved(path, field, value, problem):
    index = np.fromfile(path / "index.bin", dtype=store_format.INDEX_DTYPE)
    index[field][7] = value
    lie(path, "index.bin", index.tobytes())
    with pytest.raises(UserError, match=f"index.bin describes {problem}; extract it again"):
        RegionStore(path)
    assert verify_store(path) == [f"index.bin describes {problem}; without it every image is lost"]


@pytest.mark.parametrize(
    "header",
    [
        {"data_offsets": [-8, 40]},
        {"data_offsets": [0.0, 40.0]},
        {"data_offsets": [0]},
        {"shape": [True, 5]},
        {"dtype": 3},
        {"deep": "[" * 20_000},
        {"long": " " * 70_000},
    ],
    ids=["negative", "fractions", "one number", "true", "number", "deep", "long"],
)
def test_a_shard_whose_header_lies_is_damaged_although_its_checksum_is_right(path, header):
    name = "shard-00000.safetensors"
    data = (path / name).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    values = json.loads(data[8:end])
    values["features"].update(header)
    text = json.dumps(values).replace('"' + "[" * 20_000 + '"', "[" * 20_000).encode()
    lie(path, name, len(text).to_bytes(8, "little") + text + data[end:])
    with pytest.raises(UserError, match=r"shard-00000\.safetensors is missing or damaged"):
        RegionStore(path).read(1)
    [problem] = verify_store(path)
    assert problem.startswith(f"{name} has a damaged header or is cut off; lost images: ")


@pytest.mark.parametrize("name", ["index.bin", "ids.bin", "lookup.bin"])
def test_a_flipped_bit_of_an_index_is_found_on_opening(path, name):
    flip_bit(path / name, 60)
    with pytest.raises(UserError, match=rf"{name} is damaged: its checksum differs; `dimvl verify"):
        RegionStore(path)
