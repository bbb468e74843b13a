"""Random damage and kills: damage is never read silently, and finished images are never lost.

Small counts always run; DIMVL_FAULTS=full makes it 500 flips and truncations, and 200 kills.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.store import RegionStore
from dimvl.regions.store.check import verify_store
from tests.regions.store.synthetic_store import IMAGES, assert_same, contents, regions_of, write_store

FULL = os.environ.get("DIMVL_FAULTS") == "full"
FLIPS, KILLS = (500, 200) if FULL else (60, 8)


def damage(file: Path, generator: random.Random) -> str:
    """Flip one bit of a file, or truncate it anywhere."""
    data = bytearray(file.read_bytes())
    if generator.random() < 0.25:
        size = generator.randrange(len(data))
        file.write_bytes(data[:size])
        return f"{file.name} cut to {size}"
    place, bit = generator.randrange(len(data)), generator.randrange(8)
    data[place] ^= 1 << bit
    file.write_bytes(data)
    return f"{file.name} bit {bit} of byte {place}"


def reads_correctly(path: Path, check: bool, dtype: str) -> bool:
    """Whether all reads are correct; with `check`, anything else must be an error."""
    try:
        store = RegionStore(path, check=check)
        for number in range(IMAGES):
            wanted = regions_of(number)
            got = store.read(store.position(wanted.image_id))
            if dtype == "float16":
                assert_same(got, wanted)
            else:
                np.testing.assert_allclose(got.features, wanted.features, atol=0.02)
                np.testing.assert_array_equal(got.boxes, wanted.boxes)
            assert store.image_id(number) == wanted.image_id
            first = store.read_packed(np.array([number]), limit=1)  # fewer rows than the checksum covers
            np.testing.assert_array_equal(first.dequantised().features, got.features[:1])
    except UserError:
        return False
    return True


def test_verify_finds_any_damage_and_checked_reading_never_returns_wrong_rows(tmp_path):
    generator = random.Random(11)
    for dtype in ("float16", "int8"):
        write_store(tmp_path / dtype, feature_dtype=dtype)
    untouched = 0
    for _ in range(FLIPS):
        dtype = generator.choice(["float16", "int8"])
        path = tmp_path / "damaged"
        shutil.copytree(tmp_path / dtype, path)
        file = generator.choice(sorted(path.iterdir()))
        what = damage(file, generator)
        problems = verify_store(path)
        assert any(file.name in problem for problem in problems), what
        assert all("lost" in problem for problem in problems), what
        untouched += reads_correctly(path, check=True, dtype=dtype)  # fails on a wrong row
        shutil.rmtree(path)
    assert untouched < FLIPS / 2  # most damage causes an error; the rest is in the lookup or in no image's rows


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_flip_of_any_byte_of_a_small_store_is_found(tmp_path, dtype):
    write_store(tmp_path / "store", range(3), feature_dtype=dtype, shard_bytes=10**6)
    for file in (tmp_path / "store").iterdir():
        whole = file.read_bytes()
        step = 1 if FULL else 37
        for place in range(0, len(whole), step):
            data = bytearray(whole)
            data[place] ^= 1 << place % 8
            file.write_bytes(data)
            assert any(file.name in problem for problem in verify_store(tmp_path / "store")), (file.name, place)
        file.write_bytes(whole)
    assert verify_store(tmp_path / "store") == []


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_writer_killed_at_random_moments_keeps_finished_images_and_resumes_to_the_same_bytes(tmp_path):
    generator, images = random.Random(5), 150
    started = time.monotonic()
    write_store(tmp_path / "undisturbed", range(images))
    takes = time.monotonic() - started
    undisturbed = contents(tmp_path / "undisturbed")
    stages, kills = set(), 0
    while kills < KILLS:
        path = tmp_path / f"killed-{kills}"
        for _ in range(2):  # a second writer continues and is killed as well
            writer = os.fork()
            if not writer:
                try:
                    write_store(path, range(images))
                finally:
                    os._exit(0)
            time.sleep(generator.random() * takes)
            os.kill(writer, signal.SIGKILL)
            kills += os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGKILL  # it may have ended
            if (path / "manifest.json").exists():
                store = RegionStore(path)
                stages.add(len(store))
                assert verify_store(path) == []
                for position in range(len(store)):
                    assert_same(store.read(position), regions_of(position))
        write_store(path, range(images))
        assert contents(path) == undisturbed
        shutil.rmtree(path)
    assert len(stages) > min(KILLS, 20) // 2  # they died at different stages
