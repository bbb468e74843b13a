import errno
import hashlib
import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from dimvl.data import text_arrays
from dimvl.data import text_store as text_store_module
from dimvl.data.text_store import LabelledText, TextStore, text_store
from dimvl.data.tokenizer import Tokenizer
from dimvl.errors import UserError
from dimvl.files import read_sealed, sha256, write_sealed
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from tests.at_once import at_once
from tests.factories import TEXTS, make_extractor, make_regions, make_store, make_tokenizer

TEXT = [
    LabelledText(7, ("b",), "two blue stars", ((3, 0.5), (1, 1.0))),
    LabelledText(5, ("a",), "a circle"),
    LabelledText(6, ("b",), "the star is above a circle", ((2, 0.25),)),
]

NUMBERED = [LabelledText(number, (image,), "a circle") for number, image in enumerate("212")]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text("{}")
    return path


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_every_text_comes_back_with_its_labels_grouped_by_image(tmp_path, source):
    tokenizer = make_tokenizer()
    store = text_store(tmp_path / "cache", tokenizer, 20, [source], TEXT)
    assert store.text_ids.tolist() == [7, 6, 5] and store.groups.tolist() == [0, 2, 3]
    assert list(store.image_ids()) == ["b", "a"] and store.image_id(1) == "a"
    for place, text in enumerate([TEXT[0], TEXT[2], TEXT[1]]):
        assert tokenizer.decode(store.tokens(place).tolist()) == text.text
        ids, scores = store.labels(place)
        assert list(zip(ids.tolist(), scores.tolist(), strict=True)) == list(text.labels)
    lengths = [len(store.tokens(place)) for place in range(3)]
    assert store.lengths(slice(0, 3)).tolist() == lengths and store.lengths(slice(1, 2)).tolist() == lengths[1:2]
    for groups, texts, starts in ((slice(0, 2), lengths, [0, 2]), (slice(1, 2), lengths[2:], [0])):
        assert [part.tolist() for part in store.lengths_of(groups)] == [texts, starts]


def test_long_texts_are_cut_and_a_warning_counts_them_each_time(tmp_path, source, caplog):
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            store = text_store(tmp_path / "cache", make_tokenizer(), 2, [source], TEXT)
        assert "2 of 3 texts are longer than 2 tokens and were truncated" in caplog.text
    assert store.longest() == 2
    assert make_tokenizer().decode(store.tokens(1).tolist()) == "the star"


def test_texts_within_the_limit_give_no_warning(tmp_path, source, caplog):
    longest = max(len(make_tokenizer().encode(text.text)) for text in TEXT)
    text_store(tmp_path / "cache", make_tokenizer(), longest, [source], TEXT)
    assert not caplog.records


def test_an_existing_store_is_opened_and_not_written_again(tmp_path, source):
    text_store(tmp_path / "cache", make_tokenizer(), 20, [source], TEXT)
    [name] = folders(tmp_path)
    before = (tmp_path / "cache" / name).stat().st_ino
    text_store(tmp_path / "cache", make_tokenizer(), 20, [source], TEXT)
    assert folders(tmp_path) == [name] and (tmp_path / "cache" / name).stat().st_ino == before


def test_another_tokenizer_source_limit_or_label_makes_another_store(tmp_path, source):
    def write(tokenizer=None, limit=20, texts=TEXT):
        text_store(tmp_path / "cache", tokenizer or make_tokenizer(), limit, [source], texts)
        return len(folders(tmp_path))

    assert write() == 1
    assert write(tokenizer=Tokenizer.train(TEXTS, 30)) == 2
    assert write(limit=19) == 3
    assert write(texts=[LabelledText(7, ("b",), "two blue stars", ((3, 0.75),)), *TEXT[1:]]) == 4
    source.write_text("{ }")
    assert write() == 5


def test_a_half_written_store_is_written_again(tmp_path, source):
    text_store(tmp_path / "cache", make_tokenizer(), 20, [source], TEXT)
    [name] = folders(tmp_path)
    (tmp_path / "cache" / name / "manifest.json").unlink()
    (tmp_path / "cache" / name / "token_ids.npy").write_bytes(b"")
    assert len(text_store(tmp_path / "cache", make_tokenizer(), 20, [source], TEXT).tokens(0)) == 3


def test_a_store_is_pickled_as_its_path_and_holds_no_object_per_text(tmp_path, source):
    texts = [LabelledText(n, (str(n % 50),), TEXTS[n % 3]) for n in range(500)]
    store = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], texts)
    again = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 500
    assert isinstance(again, TextStore) and again.tokens(17).tolist() == store.tokens(17).tolist()
    assert all(isinstance(getattr(store, name).base, np.memmap) for name in ("token_ids", "offsets", "text_ids"))


def test_writing_in_pieces_gives_the_same_files(tmp_path, source, monkeypatch):
    texts = [LabelledText(n, (f"{'é' * (n % 3)}{n % 7}",), TEXTS[n % 3], ((n % 5, 0.5),) * (n % 3)) for n in range(50)]
    stores = []
    for pieces in (50, 8):
        monkeypatch.setattr(text_arrays, "TEXTS_AT_ONCE", pieces)
        path = text_store(tmp_path / f"cache-{pieces}", make_tokenizer(), 9, [source], texts).path
        stores.append({file.name: file.read_bytes() for file in path.iterdir()})
    assert stores[0] == stores[1]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_store_is_reported_and_written_again(tmp_path, source, caplog, damage):
    path = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], TEXT).path
    whole = {file.name: file.read_bytes() for file in path.iterdir()}
    for name in sorted(whole) if damage != "manifest" else ["manifest.json"]:
        data = bytearray(whole[name])
        if damage == "remove":
            (path / name).unlink()
        elif damage == "flip":
            data[-1] ^= 1
            (path / name).write_bytes(data)
        else:
            (path / name).write_bytes(data[: len(data) // 2])
        caplog.clear()
        store = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], TEXT)
        harmless = name == "manifest.json" and damage == "remove"
        assert harmless or "are damaged; they are written again" in caplog.text, name
        assert {file.name: file.read_bytes() for file in store.path.iterdir()} == whole


def test_processes_that_need_the_same_texts_at_once_tokenise_them_once(tmp_path, source):
    def ask():
        reported, tokenizer = [], make_tokenizer()
        store = text_store(tmp_path / "cache", tokenizer, 20, [source], TEXT, lambda *done: reported.append(done))
        return len(reported), store.text_ids.tolist()

    found = at_once(ask)
    assert sorted(found) == [(0, [7, 6, 5])] * 3 + [(1, [7, 6, 5])]


def test_images_are_looked_up_once_for_each_region_store_and_their_positions_mapped(tmp_path, source, monkeypatch):
    texts = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], NUMBERED)
    stores = [RegionStore(make_store(tmp_path / str(images), images)) for images in (3, 4)]
    assert [texts.positions_in(store).tolist() for store in stores] == [[1, 0]] * 2
    again = pickle.loads(pickle.dumps(texts))
    monkeypatch.setattr(RegionStore, "positions", None)
    for store in stores:
        assert again.positions_in(store).tolist() == [1, 0] and isinstance(again.positions_in(store).base, np.memmap)
    assert len(list(texts.path.glob("positions-*.npy"))) == 2


def test_positions_are_those_of_these_stores_in_this_order(tmp_path, source):
    # of "1", "11" and "11", "1" the ids end to end are the same
    for name, images in {"a": ("1", "11"), "b": ("11", "1"), "c": ("2", "3")}.items():
        with RegionStoreWriter(tmp_path / name, make_extractor()) as writer:
            for image in images:
                writer.add(make_regions(0, image, 2))
    numbered = [LabelledText(number, (image,), "a circle") for number, image in enumerate(("11", "1"))]
    texts = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], numbered)
    wanted = {"a": [1, 0], "b": [0, 1], "ac": [1, 0], "ca": [3, 2], "cb": [2, 3]}
    for names, positions in wanted.items():
        assert texts.positions_in(RegionStore([tmp_path / name for name in names])).tolist() == positions


def test_the_longest_text_is_found_in_any_piece(tmp_path, source, monkeypatch):
    texts = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], TEXT)
    longest = max(len(texts.tokens(place)) for place in range(3))
    for piece in (1, 2, 3):
        monkeypatch.setattr(text_store_module, "TEXTS_AT_ONCE", piece)
        assert texts.longest() == longest > len(texts.tokens(0))


@pytest.mark.parametrize("damage", ["flip", "cut", "no checksum"])
def test_damaged_positions_are_reported_and_looked_up_again(tmp_path, source, caplog, damage):
    regions = RegionStore(make_store(tmp_path / "regions", 3))

    def positions():
        store = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], NUMBERED)
        return store.positions_in(regions).tolist(), store.path

    _, path = positions()
    [file] = path.glob("positions-*.npy")
    whole = file.read_bytes()
    if damage == "no checksum":
        file.with_suffix(".json").unlink()
    else:
        file.write_bytes(whole[:-16] + b"\2" + whole[-15:] if damage == "flip" else whole[:-4])
    found, _ = positions()
    assert found == [1, 0] and f"{file} is damaged" in caplog.text and file.read_bytes() == whole


def test_positions_that_cannot_be_written_are_kept_in_memory(tmp_path, source, caplog, monkeypatch):
    texts = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], NUMBERED)

    def refuse(*arguments, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    regions = RegionStore(make_store(tmp_path / "regions", 3))
    monkeypatch.setattr(Path, "touch", refuse)
    assert [texts.positions_in(regions).tolist() for _ in range(2)] == [[1, 0]] * 2
    assert caplog.text.count("Read-only file system") == 1 and list(texts.path.glob("positions-*")) == []


def test_a_region_store_that_lacks_an_image_of_the_texts_is_one_clear_sentence(tmp_path, source):
    texts = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], NUMBERED)
    with pytest.raises(UserError, match="lacks image '2'"):
        texts.positions_in(RegionStore(make_store(tmp_path / "regions", 1)))
    assert list(texts.path.glob("positions-*")) == []


def test_ids_of_any_text_come_back_and_half_a_surrogate_pair_in_a_text_is_a_question_mark(tmp_path, source):
    ids = ["图", "a" * 300, os.fsdecode(b"caf\xe9"), "9007199254740993"]
    texts = [LabelledText(2**60 + n, (image_id,), "a star \ud83d") for n, image_id in enumerate(ids)]
    store = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], texts)
    assert list(store.image_ids()) == ids and store.text_ids[1] == 2**60 + 1
    assert store.tokens(0).tolist() == make_tokenizer().encode("a star ?")
    with pytest.raises(UserError, match="half a surrogate pair"):
        text_store(tmp_path / "cache", make_tokenizer(), 20, [source], [LabelledText(1, ("\ud83d",), "a star")])


def test_no_texts_are_one_clear_sentence(tmp_path, source):
    with pytest.raises(UserError, match=r"captions\.json: no text"):
        text_store(tmp_path / "cache", make_tokenizer(), 20, [source], [])


def test_a_text_of_which_the_tokenizer_makes_nothing_is_refused_and_no_labels_are_legal(tmp_path, source):
    texts = [LabelledText(1, ("a",), "a star"), LabelledText("07", ("b",), "\u200b")]
    says = r"captions\.json: the tokenizer makes nothing of 1 of the texts, such as text '07' of image b \('\\u200b'\)"
    with pytest.raises(UserError, match=says):
        text_store(tmp_path / "cache", make_tokenizer(), 20, [source], texts)
    assert len(text_store(tmp_path / "cache", make_tokenizer(), 20, [source], texts[:1]).labels(0)[0]) == 0


def test_ids_of_texts_are_numbers_in_the_store_unless_one_is_text_or_large(tmp_path, source):
    def stored(*ids):
        texts = [LabelledText(own, ("a",), "a star") for own in ids]
        return text_store(tmp_path / "cache", make_tokenizer(), 20, [source], texts)

    numbers, mixed = stored(7, 2**63 - 1), stored(7, "07", "é" * 300, 2**63)
    assert numbers.text_ids.dtype == np.int64 and numbers.text_id(0) == "7"
    assert [mixed.text_id(text) for text in range(4)] == ["7", "07", "é" * 50, str(2**63)]
    assert stored(7, 8).path != stored("7", "8").path


def test_the_manifest_tells_what_is_in_the_store(tmp_path, source):
    store = text_store(tmp_path / "cache", make_tokenizer(), 2, [source], TEXT)
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["texts"] == 3 and manifest["texts_cut"] == 2 and manifest["sources"] == ["captions.json"]


# --- texts about several images

SEVERAL = [
    LabelledText(1, ("b", "a"), "two blue stars", ((3, 0.5),)),
    LabelledText(2, ("a", "b"), "a circle"),
    LabelledText(3, ("b", "a"), "the star is above a circle"),
    LabelledText(4, ("c",), "a star"),
    LabelledText(5, ("b", "a"), "a star", times=(0.0, 2.5)),
    LabelledText(6, ("c",), "a circle", times=(7.0,)),
    LabelledText(7, ("c",), "a blue star"),
]
GROUPS = [(["b", "a"], [0, 0]), (["a", "b"], [0, 0]), (["c"], [0]), (["b", "a"], [0, 2.5]), (["c"], [7])]


def abc_regions(tmp_path, ids="xcab"):
    """A store with the images in another order than the texts."""
    with RegionStoreWriter(tmp_path / f"regions-{ids}", make_extractor()) as writer:
        for image in ids:
            writer.add(make_regions(0, image, 2))
    return RegionStore(writer.path)


def groups_of(texts, regions, groups):
    """Image ids and times of some groups, as looked up in a region store."""
    images = texts.images_in(regions, np.array(groups))
    times = [0.0] * len(images.positions) if images.times is None else images.times.tolist()
    ends = np.cumsum(images.counts).tolist()
    bounds = list(zip([0, *ends[:-1]], ends, strict=True))
    return [([regions.image_id(p) for p in images.positions[a:b].tolist()], times[a:b]) for a, b in bounds]


def test_texts_are_grouped_by_their_images_in_order_and_by_their_times(tmp_path, source):
    texts = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], SEVERAL)
    regions = abc_regions(tmp_path)
    assert texts.num_groups == len(GROUPS) and texts.text_ids.tolist() == [1, 3, 2, 4, 7, 5, 6]
    assert texts.groups.tolist() == [0, 2, 3, 5, 6, 7] and list(texts.image_ids()) == ["b", "a", "c"]
    assert groups_of(texts, regions, range(5)) == GROUPS
    assert groups_of(texts, regions, [3, 2, 3]) == [GROUPS[3], GROUPS[2], GROUPS[3]]
    assert [texts.describe(group) for group in (1, 2)] == ["images a, b", "image c"]
    assert texts.images_in(regions, np.arange(0)).counts.tolist() == []
    for place, number in enumerate(texts.text_ids.tolist()):
        assert make_tokenizer().decode(texts.tokens(place).tolist()) == SEVERAL[number - 1].text


def test_groups_that_share_an_image_are_recognised(tmp_path, source):
    texts = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], SEVERAL)
    assert [[texts.share_images(a, b) for b in range(5)] for a in (0, 2)] == [[1, 1, 0, 1, 0], [0, 0, 1, 0, 1]]
    plain = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], TEXT)
    assert plain.share_images(0, 0) and not plain.share_images(0, 1)


def test_only_texts_about_several_images_or_with_times_have_arrays_of_groups(tmp_path, source):
    arrays = {f"{name}.npy" for name in (*TextStore.ARRAYS, *TextStore.GROUP_ARRAYS)}
    for texts, more in ((TEXT, False), (SEVERAL[:1], True), (SEVERAL[5:6], True), (SEVERAL[3:4], False)):
        store = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], texts)
        wanted = arrays if more else arrays - {f"{name}.npy" for name in TextStore.GROUP_ARRAYS}
        assert {path.name for path in store.path.iterdir()} == wanted | {"manifest.json"}


def test_texts_about_one_image_keep_the_key_that_earlier_versions_gave_them(tmp_path, source):
    tokenizer = make_tokenizer()
    parts = [2, tokenizer.fingerprint, 20, hashlib.sha256(source.read_bytes()).hexdigest()]
    texts = "".join(repr((text.text_id, *text.image_ids, text.labels)) for text in TEXT)
    key = hashlib.sha256(("".join(f"{part}\n" for part in parts) + texts).encode()).hexdigest()
    assert text_store(tmp_path / "cache", tokenizer, 20, [source], TEXT).path.name == key[:20]


def test_another_order_of_images_and_other_times_make_another_store(tmp_path, source):
    for images, times in ((("a", "b"), ()), (("b", "a"), ()), (("a", "b"), (0.0, 1.0)), (("a", "b"), (0.0, 2.0))):
        texts = [LabelledText(1, images, "a star", times=times)]
        text_store(tmp_path / "cache", make_tokenizer(), 20, [source], texts)
    assert len(folders(tmp_path)) == 4


def test_positions_are_looked_up_once_for_each_image_and_mapped(tmp_path, source, monkeypatch):
    texts = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], SEVERAL)
    regions = abc_regions(tmp_path)
    assert texts.positions_in(regions).tolist() == [3, 2, 1]
    again = pickle.loads(pickle.dumps(texts))
    monkeypatch.setattr(RegionStore, "positions", None)
    assert groups_of(again, regions, range(5)) == GROUPS and isinstance(again.positions_in(regions).base, np.memmap)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("offsets", [0, 1, 2, 10**6]),
        ("groups", [0, 2]),
        ("group_images", [0, 1, 99]),
        ("text_ids", [1.5, 2.5]),
        ("label_offsets", [[0, 0]]),
        ("token_ids", None),
    ],
)
def test_arrays_that_do_not_fit_together_are_written_again_although_their_checksums_fit(
    tmp_path, source, caplog, name, values
):
    path = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], SEVERAL).path
    file, manifest = path / f"{name}.npy", read_sealed(path / "manifest.json", "")
    whole = file.read_bytes()
    if values is None:
        file.unlink()
        os.mkfifo(file)  # opening it waits for a writer
    else:
        np.save(file, np.array(values, dtype=np.load(file).dtype if isinstance(values[-1], int) else None))
        manifest["sha256"][name] = sha256(file)
        write_sealed(path / "manifest.json", manifest)
    text_store(tmp_path / "cache", make_tokenizer(), 20, [source], SEVERAL)
    assert "are damaged; they are written again" in caplog.text and file.read_bytes() == whole


@pytest.mark.parametrize("name", TextStore.GROUP_ARRAYS)
@pytest.mark.parametrize("damage", ["flip", "remove", "forgotten"])
def test_damaged_arrays_of_groups_are_written_again(tmp_path, source, caplog, name, damage):
    path = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], SEVERAL).path
    whole = {file.name: file.read_bytes() for file in path.iterdir()}
    file = path / f"{name}.npy"
    if damage == "flip":
        file.write_bytes(whole[file.name][:-1] + b"\x7f")
    elif damage == "remove":
        file.unlink()
    else:
        manifest = json.loads(whole["manifest.json"])
        del manifest["sha256"][name]
        (path / "manifest.json").write_text(json.dumps(manifest))
    store = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], SEVERAL)
    assert "are damaged; they are written again" in caplog.text
    assert {file.name: file.read_bytes() for file in store.path.iterdir()} == whole


def test_a_process_holds_no_object_per_group(tmp_path, source):
    texts = [LabelledText(n, (str(n), str(n + 1)), TEXTS[n % 3], times=(0.0, 1.0)) for n in range(500)]
    store = text_store(tmp_path / "cache", make_tokenizer(), 20, [source], texts)
    assert len(pickle.dumps(store)) < 500
    assert all(isinstance(getattr(store, name).base, np.memmap) for name in TextStore.GROUP_ARRAYS)
