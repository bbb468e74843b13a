"""Several stores become one, with the same rows, without decoding them."""

import shutil

import pytest

from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.regions.store.check import verify_store
from dimvl.regions.store.format import checksum_of_record, read_manifest
from dimvl.regions.store.join import join_stores
from dimvl.regions.store.writer import RegionStoreWriter
from tests.regions.store.synthetic_store import EXTRACTOR, IMAGES, assert_same, regions_of, write_store


def write_parts(folder, *parts, **options):
    paths = [folder / f"{number}" for number in range(len(parts))]
    for path, numbers in zip(paths, parts, strict=True):
        write_store(path, numbers, **options)
    return paths


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_joined_store_has_the_images_and_rows_of_one_that_was_written_at_once(tmp_path, dtype):
    order = [number for start in range(3) for number in range(start, IMAGES, 3)]
    parts = write_parts(tmp_path, *(range(start, IMAGES, 3) for start in range(3)), [], feature_dtype=dtype)
    write_store(tmp_path / "once", order, feature_dtype=dtype)
    calls = []
    report = join_stores(tmp_path / "out", parts, lambda *call: calls.append(call))
    assert report == (IMAGES, 0) and calls[-1][0] == calls[-1][1] == len(read_manifest(tmp_path / "out").shards)
    assert verify_store(tmp_path / "out") == []
    once, joined = RegionStore(tmp_path / "once", check=True), RegionStore(tmp_path / "out", check=True)
    for place in range(IMAGES):
        assert_same(joined.read(place), once.read(place))
    records = [store.folders[0].index for store in (once, joined)]
    for name in ("hash", "id_start", "id_length", "width", "height", "num_regions", "rows_checksum"):
        assert (records[0][name] == records[1][name]).all(), name
    assert [checksum_of_record(record) for record in records[1]] == records[1]["checksum"].tolist()


def test_a_joined_store_can_be_continued(tmp_path):
    join_stores(tmp_path / "out", write_parts(tmp_path, range(5), range(5, 9)))
    write_store(tmp_path / "out", range(IMAGES))
    assert verify_store(tmp_path / "out") == [] and len(RegionStore(tmp_path / "out")) == IMAGES
    assert_same(RegionStore(tmp_path / "0", check=True).read(3), regions_of(3))  # shares files with the joined store


def test_shards_are_linked_or_copied_and_the_parts_may_be_removed(tmp_path, monkeypatch):
    parts = write_parts(tmp_path, range(5), range(5, 9))
    join_stores(tmp_path / "linked", parts)

    def refuse(*paths):
        raise OSError("another file system")

    monkeypatch.setattr("os.link", refuse)
    join_stores(tmp_path / "copied", parts)
    for name in ("linked", "copied"):
        assert {file.stat().st_nlink for file in (tmp_path / name).glob("shard-*")} == {2 if name == "linked" else 1}
    for part in parts:
        shutil.rmtree(part)
    for name in ("linked", "copied"):
        assert verify_store(tmp_path / name) == []


def test_an_image_of_several_stores_is_written_once_if_its_content_is_the_same(tmp_path):
    parts = write_parts(tmp_path, range(8), [3, 9, 20, 7], range(4, 8), shard_bytes=10**6)
    report = join_stores(tmp_path / "out", parts)
    assert report == (10, 6) and verify_store(tmp_path / "out") == []
    store = RegionStore(tmp_path / "out", check=True)
    for place, number in enumerate([*range(8), 9, 20]):
        assert_same(store.read(place), regions_of(number))
    manifest = read_manifest(tmp_path / "out")
    assert [entry.num_images for entry in manifest.shards] == [8, 2]
    assert manifest.num_regions == sum(len(regions_of(number)) for number in [*range(8), 9, 20])


def test_what_cannot_be_joined_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    first, other = write_parts(tmp_path, range(3), [3])
    with RegionStoreWriter(tmp_path / "clash", EXTRACTOR) as writer:
        regions = regions_of(4)
        writer.add(type(regions)(**{**vars(regions), "image_id": regions_of(1).image_id}))
    with pytest.raises(UserError, match=r"image '.*37' has different regions in .*clash and .*0; give different"):
        join_stores(tmp_path / "out", [first, tmp_path / "clash"])
    with pytest.raises(UserError, match=r"0 exists already; remove it, or choose another folder"):
        join_stores(first, [other])
    (tmp_path / "int8").mkdir()
    write_store(tmp_path / "int8", [9], feature_dtype="int8")
    with pytest.raises(UserError, match="feature_dtype is 'float16' and 'int8'"):
        join_stores(tmp_path / "out", [first, tmp_path / "int8"])
    shard = next(first.glob("shard-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"shard .* is missing or damaged .*; `dimvl verify"):
        join_stores(tmp_path / "out", [first, other])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "clash", "int8"]


def test_a_store_whose_writer_was_stopped_is_unfinished_and_not_joined(tmp_path):
    write_store(tmp_path / "whole", range(3))
    with pytest.raises(KeyboardInterrupt), RegionStoreWriter(tmp_path / "stopped", EXTRACTOR) as writer:
        writer.add(regions_of(5))
        raise KeyboardInterrupt
    assert len(RegionStore(tmp_path / "stopped")) == 1, "what was finished is kept"
    with pytest.raises(UserError, match="stopped is unfinished; repeat the command that writes it, then join"):
        join_stores(tmp_path / "out", [tmp_path / "whole", tmp_path / "stopped"])
    write_store(tmp_path / "stopped", [5])
    assert join_stores(tmp_path / "out", [tmp_path / "whole", tmp_path / "stopped"]).images == 4
