"""Features as int8 with a scale per row: half the space, a bounded error, and read like others."""

from dataclasses import replace

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.records import Extractor
from dimvl.regions.store import RegionStore
from dimvl.regions.store_check import verify_store
from dimvl.regions.store_format import check_space, estimated_bytes, quantise
from dimvl.regions.store_writer import RegionStoreWriter
from tests.regions.synthetic_store import EXTRACTOR, IMAGES, regions_of, write_store


def test_every_value_comes_back_within_half_a_scale_and_everything_else_as_it_was(tmp_path):
    write_store(tmp_path / "store", feature_dtype="int8")
    store = RegionStore(tmp_path / "store", check=True)
    packed = store.read_packed(np.arange(IMAGES))
    wanted = [regions_of(number) for number in range(IMAGES)]
    features = np.concatenate([regions.features for regions in wanted]).astype(np.float32)
    assert packed.features.dtype == np.float32
    largest = np.abs(features).max(axis=1, keepdims=True)
    assert np.all(np.abs(packed.features - features) <= largest / 254 * (1 + 1e-5))  # float32 rounds the product
    assert np.abs(packed.features - features).max() > 0
    for name in ("boxes", "class_ids", "attribute_scores"):
        np.testing.assert_array_equal(getattr(packed, name), np.concatenate([getattr(one, name) for one in wanted]))
    np.testing.assert_array_equal(store.read(5).features, packed.features[sum(map(len, wanted[:5])) :][:5])
    assert verify_store(tmp_path / "store") == []


def test_rows_of_zeros_and_of_one_value_come_back_exactly():
    values, scales = quantise(np.array([[0, 0, 0], [2, -2, 2], [3e38, 1, 0]], dtype=np.float32))
    np.testing.assert_allclose(values * scales, [[0, 0, 0], [2, -2, 2], [3e38, 0, 0]], rtol=1e-6)
    assert quantise(np.zeros((0, 3), dtype=np.float32))[1].shape == (0, 1)


def test_packed_reading_fills_the_memory_that_it_is_given(tmp_path):
    write_store(tmp_path / "store", feature_dtype="int8")
    given = {}

    def allocate(shape, dtype):
        given[shape, dtype] = np.zeros(shape, dtype)
        return given[shape, dtype]

    packed = RegionStore(tmp_path / "store").read_packed(np.array([5, 3]), allocate=allocate)
    assert packed.features is given[packed.features.shape, np.dtype(np.float32)]


def test_values_beyond_float16_fit_and_values_that_are_not_finite_are_refused(tmp_path):
    features = np.full((2, 5), 1e6, dtype=np.float32)
    with RegionStoreWriter(tmp_path / "store", EXTRACTOR, feature_dtype="int8") as writer:
        writer.add(replace(regions_of(2), features=features))
        features[0, 1] = np.nan
        with pytest.raises(UserError, match="features that are not finite"):
            writer.add(replace(regions_of(2), image_id="new", features=features))
    np.testing.assert_allclose(RegionStore(tmp_path / "store").read(0).features, 1e6, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_estimate_of_a_store_is_what_it_comes_to(tmp_path, dtype):
    extractor = Extractor(
        name="wide", fingerprint="f", parameters={}, feature_width=256, classes=("a", "b"), attributes=("c",)
    )
    generator = np.random.default_rng(0)
    with RegionStoreWriter(tmp_path / "store", extractor, feature_dtype=dtype) as writer:
        for number in range(200):
            one = regions_of(5)
            writer.add(
                replace(
                    one,
                    image_id=str(number),
                    features=generator.normal(size=(5, 256)).astype(np.float16),
                    attribute_ids=np.zeros((5, 3), dtype=np.int16),
                )
            )
    size = sum(file.stat().st_size for file in (tmp_path / "store").iterdir())
    estimate = estimated_bytes(200, 5, 256, feature_dtype=dtype, class_columns=2, attribute_columns=3)
    assert size == pytest.approx(estimate, rel=0.02)


def test_int8_takes_half_the_space_of_float16_at_the_usual_width():
    sizes = [estimated_bytes(1000, 36, 2048, feature_dtype=dtype) for dtype in ("int8", "float16")]
    assert sizes[0] / sizes[1] == pytest.approx(0.5, abs=0.01)


def test_a_store_that_the_disk_has_no_room_for_is_refused_before_it_is_begun(tmp_path):
    assert check_space(tmp_path / "a" / "b", 10, 36, 2048) == estimated_bytes(10, 36, 2048)
    with pytest.raises(
        UserError, match=r"would take about [\d,.]+ GB for 1,000,000,000 images of 36 regions but its disk"
    ):
        check_space(tmp_path / "a" / "b", 10**9, 36, 2048)
    assert not (tmp_path / "a").exists()
