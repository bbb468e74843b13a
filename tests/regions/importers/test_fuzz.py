"""Damaged sources of every format end in a sentence or a correct read: no traceback, hang or unpickling."""

import os
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dimvl.errors import UserError
from dimvl.regions.importers import lmdb
from dimvl.regions.importers.common import Entry
from dimvl.regions.importers.run import open_source
from tests.regions.importers.written import (
    WRITERS,
    assembler_of,
    image_of,
    lmdb_value,
    write_lmdb_msgpack,
    write_sizes,
)

IMAGES = [image_of(number) for number in (1, 2, 5)]  # one with a region without class, one without regions
NAMES = [name for name in WRITERS if not name.startswith("lmdb")]
FUZZING = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass
class Written:
    """A source in a folder, whose files are damaged and restored."""

    source: Path
    folder: Path
    files: dict[Path, bytes]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Callable[[str], Written]:
    made: dict[str, Written] = {}

    def get(name: str) -> Written:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            source = WRITERS[name][1](folder, IMAGES)
            files = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
            assembler_of(folder)
            write_sizes(folder / "sizes.json", IMAGES)
            made[name] = Written(source, folder, files)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def no_pickle(monkeypatch):
    def trap(*_: object, **__: object) -> None:
        pytest.fail("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, trap)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "drop", "repeat", "insert"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    out = bytearray(data)
    for kind, share, number in edits:
        place = int(share * len(out))
        if kind == "cut":
            del out[place:]
        elif kind == "drop":
            del out[place : place + 1 + number % 16]
        elif kind == "repeat":
            out[place:place] = out[place : place + number]
        elif kind == "insert":
            out[place:place] = bytes([number])
        elif out:
            out[place] = number if kind == "set" else out[place] ^ (1 << number % 8)
    return bytes(out)


def assert_sound(entry: Entry) -> None:
    """Read an image: one printable sentence, or regions that a store accepts."""
    try:
        regions = entry.read()
    except UserError as error:
        assert str(error).encode() and "\n" not in str(error)
        return
    assert regions.image_id.encode() and regions.width > 0 and regions.height > 0
    count = len(regions)
    assert regions.boxes.shape == (count, 4) and regions.boxes.dtype == np.float32
    assert (regions.boxes >= 0).all() and (regions.boxes <= 1).all()
    assert (regions.boxes[:, :2] <= regions.boxes[:, 2:]).all()
    assert len(regions.features) == count and regions.features.dtype == np.float16
    assert np.isfinite(regions.features).all()
    for kind, names in (("class", 3), ("attribute", 2)):
        ids, scores = getattr(regions, f"{kind}_ids"), getattr(regions, f"{kind}_scores")
        assert ids.shape == scores.shape and len(ids) == count and ids.dtype == np.int16
        assert (ids >= -1).all() and (ids < names).all() and (scores >= 0).all() and (scores <= 1).all()


def check(written: Written, which: int, edits: list[tuple[str, float, int]]) -> None:
    file = list(written.files)[which % len(written.files)]
    file.write_bytes(damaged(written.files[file], edits))
    names = {"classes": written.folder / "classes.txt"}
    if WRITERS_WITHOUT_SIZE not in str(written.folder):
        names["sizes"] = written.folder / "sizes.json"
    try:
        source, _ = open_source(written.source, **names)
        for entry in source.entries():
            assert_sound(entry)
    except UserError as error:
        assert str(error).encode() and "\n" not in str(error)
    finally:
        file.write_bytes(written.files[file])


WRITERS_WITHOUT_SIZE = "lxmert"  # its own damaged sizes must be detected without a file of sizes


@pytest.mark.parametrize("name", NAMES)
@settings(FUZZING, max_examples=40)
@given(which=st.integers(0, 20), edits=EDITS)
def test_a_damaged_source_is_one_sentence_or_a_correct_read(written, name, which, edits):
    check(written(name), which, edits)


@pytest.mark.parametrize("compressed", [False, True], ids=["msgpack", "npz"])
@settings(FUZZING, max_examples=100)
@given(edits=EDITS)
def test_a_damaged_value_of_an_lmdb_is_one_sentence_or_a_correct_read(tmp_path_factory, compressed, edits):
    check_value(tmp_path_factory.getbasetemp(), compressed, edits)


def check_value(folder: Path, compressed: bool, edits: list[tuple[str, float, int]]) -> None:
    assembler = assembler_of(folder, attributes=False)
    value = damaged(lmdb_value(IMAGES[0], folder, compressed=compressed), edits)

    class Reader:
        def ask(self, request: bytes) -> bytes:
            return value

    assert_sound(Entry("x", lambda: lmdb._decode(assembler, "x", Reader()), 1))


def test_an_lmdb_whose_pages_are_damaged_is_one_sentence_or_a_correct_read(tmp_path):
    """Some of these kill the process that reads the file."""
    file = write_lmdb_msgpack(tmp_path, IMAGES) / "data.mdb"
    whole, generator, ended = file.read_bytes(), random.Random(0), 0
    for _ in range(100 if os.environ.get("DIMVL_FAULTS") == "full" else 12):
        data = bytearray(whole)
        for page in range(0, len(data), 4096):
            data[page + generator.randrange(64)] = generator.randrange(256)
        file.write_bytes(data)
        try:
            for entry in open_source(file.parent)[0].entries():
                assert_sound(entry)
        except UserError as error:
            ended += 1
            assert "data.mdb is damaged" in str(error) or "data.mdb cannot be read" in str(error)
    assert ended


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(FUZZING, max_examples=20_000 // (len(NAMES) + 1))
@given(which=st.integers(0, 20), edits=EDITS)
def test_twenty_thousand_damaged_sources_are_one_sentence_or_a_correct_read(written, name, which, edits):
    check(written(name), which, edits)


@pytest.mark.slow
@settings(FUZZING, max_examples=20_000 // (len(NAMES) + 1))
@given(compressed=st.booleans(), edits=EDITS)
def test_as_many_damaged_values_of_an_lmdb_are_one_sentence_or_a_correct_read(tmp_path_factory, compressed, edits):
    check_value(tmp_path_factory.getbasetemp(), compressed, edits)
