"""Features as int8 with a scale per row: half the space, a bounded error, and packed reads without conversion."""

from dataclasses import replace

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store import RegionStore, feature_statistics
from dimvl.regions.store.check import verify_store
from dimvl.regions.store.format import estimated_bytes, quantise
from dimvl.regions.store.writer import RegionStoreWriter
from tests.regions.store.synthetic_store import EXTRACTOR, IMAGES, regions_of, write_store


def test_every_feature_is_within_half_a_scale_and_everything_else_is_exact(tmp_path):
    write_store(tmp_path / "store", feature_dtype="int8")
    store = RegionStore(tmp_path / "store", check=True)
    packed = store.read_packed(np.arange(IMAGES)).dequantised()
    wanted = [regions_of(number) for number in range(IMAGES)]
    features = np.concatenate([regions.features for regions in wanted]).astype(np.float32)
    assert packed.features.dtype == np.float32 and packed.feature_scales is None
    largest = np.abs(features).max(axis=1, keepdims=True)
    assert np.all(np.abs(packed.features - features) <= largest / 254 * (1 + 1e-5))  # float32 rounds the product
    assert np.abs(packed.features - features).max() > 0
    for name in ("boxes", "class_ids", "attribute_scores"):
        np.testing.assert_array_equal(getattr(packed, name), np.concatenate([getattr(one, name) for one in wanted]))
    assert verify_store(tmp_path / "store") == []


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("limit", [None, 2])
def test_packed_images_are_views_of_int8_rows_and_equal_images_read_one_by_one(tmp_path, limit, check):
    write_store(tmp_path / "store", feature_dtype="int8")
    store, positions = RegionStore(tmp_path / "store", check), np.random.default_rng(0).permutation(IMAGES)
    packed = store.read_packed(positions, limit=limit)
    assert (packed.features.dtype, packed.feature_scales.dtype) == (np.int8, np.float32)
    assert packed.feature_scales.shape == (len(packed), 1) and packed.num_regions.tolist().count(0) == 4
    for found, position in zip(packed.images(), positions.tolist(), strict=True):
        single = store.read(position)
        assert single.features.dtype == np.float32 and single.feature_scales is None
        np.testing.assert_array_equal(found.dequantised().features, single.features[:limit])
        for name in ("features", "feature_scales"):
            assert getattr(found, name).base is getattr(packed, name)


def test_statistics_are_of_the_dequantised_features(tmp_path):
    write_store(tmp_path / "store", feature_dtype="int8")
    store = RegionStore(tmp_path / "store")
    features = np.concatenate([store.read(number).features for number in range(IMAGES)]).astype(np.float64)
    mean, std = feature_statistics(store)
    variance = features.var(axis=0)
    np.testing.assert_allclose(mean, features.mean(axis=0), rtol=1e-6, atol=1e-7)  # rounded to float32
    np.testing.assert_allclose(std, np.sqrt(variance + variance.mean() / 1000), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_of_int8_can_be_written_into_another_store(tmp_path, dtype):
    write_store(tmp_path / "store", feature_dtype="int8")
    single = RegionStore(tmp_path / "store").read(5)
    [found] = RegionStore(tmp_path / "store").read_packed(np.array([5])).images()
    with RegionStoreWriter(tmp_path / "other", EXTRACTOR, feature_dtype=dtype) as writer:
        writer.add(Regions(image_id="1", width=1, height=1, **vars(found)))
    # Dividing by 127 and multiplying again may change a scale by one rounding of float32.
    rounding = {"float16": 2**-11, "int8": 2**-22}[dtype]
    np.testing.assert_allclose(RegionStore(tmp_path / "other").read(0).features, single.features, rtol=rounding)


def test_rows_of_zeros_and_of_one_magnitude_are_exact():
    values, scales = quantise(np.array([[0, 0, 0], [2, -2, 2], [3e38, 1, 0]], dtype=np.float32))
    np.testing.assert_allclose(values * scales, [[0, 0, 0], [2, -2, 2], [3e38, 0, 0]], rtol=1e-6)
    assert quantise(np.zeros((0, 3), dtype=np.float32))[1].shape == (0, 1)


def test_packed_reading_fills_the_given_memory(tmp_path):
    write_store(tmp_path / "store", feature_dtype="int8")
    given = {}

    def allocate(shape, dtype):
        given[shape, dtype] = np.zeros(shape, dtype)
        return given[shape, dtype]

    packed = RegionStore(tmp_path / "store").read_packed(np.array([5, 3]), allocate=allocate)
    for array in (packed.features, packed.feature_scales):
        assert array is given[array.shape, array.dtype]


def test_values_beyond_float16_fit_and_values_that_are_not_finite_are_rejected(tmp_path):
    features = np.full((2, 5), 1e6, dtype=np.float32)
    with RegionStoreWriter(tmp_path / "store", EXTRACTOR, feature_dtype="int8") as writer:
        writer.add(replace(regions_of(2), features=features))
        features[0, 1] = np.nan
        with pytest.raises(UserError, match="features that are not finite"):
            writer.add(replace(regions_of(2), image_id="new", features=features))
    np.testing.assert_allclose(RegionStore(tmp_path / "store").read(0).features, 1e6, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_estimated_size_of_a_store_is_its_real_size(tmp_path, dtype):
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


def test_a_store_that_is_too_large_for_the_disk_is_rejected(tmp_path):
    with RegionStoreWriter(tmp_path / "store", EXTRACTOR) as writer:
        writer.check_space(10, [regions_of(3)])
        message = r"would take about [\d,.]+ GB for 1,000,000,000,000 images of 4.5 regions but its disk"
        with pytest.raises(UserError, match=message):
            writer.check_space(10**12, [regions_of(4), regions_of(5)])
