"""A small synthetic region store for the tests of reader and writer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.regions.records import ARRAYS, Extractor, Regions
from dimvl.regions.store.writer import RegionStoreWriter

EXTRACTOR = Extractor(
    name="synthetic",
    fingerprint="abc",
    parameters={"threshold": 0.05, "boxes": 36, "flip": False},
    feature_width=5,
    classes=("circle", "square"),
    attributes=("large", "red"),
)
IMAGES = 23
SHARD_BYTES = 400  # a few images


def regions_of(number: int) -> Regions:
    """Random regions of an image, 0 to 5 of them, ids of different lengths and alphabets."""
    random = np.random.default_rng([7, number])
    count = number % 6

    def scores(columns: int) -> np.ndarray:
        return random.random((count, columns)).astype(np.float16)

    corners = random.random((count, 2, 2), dtype=np.float32)
    return Regions(
        image_id=f"{'é' * (number % 3)}{number * 37}",
        width=100 + number,
        height=200 + number,
        boxes=np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1),
        features=random.normal(size=(count, 5)).astype(np.float16),
        class_ids=random.integers(-1, 2, (count, 2), dtype=np.int16),
        class_scores=scores(2),
        attribute_ids=random.integers(-1, 2, (count, 3), dtype=np.int16),
        attribute_scores=scores(3),
    )


def write_store(
    path: Path, numbers: Iterable[int] = range(IMAGES), extractor: Extractor = EXTRACTOR, **options: Any
) -> None:
    """Write the images that the store does not have yet, as an extraction does."""
    with RegionStoreWriter(path, extractor, **{"shard_bytes": SHARD_BYTES, **options}) as writer:
        for number in numbers:
            regions = regions_of(number)
            if regions.image_id not in writer:
                writer.add(regions)


def assert_same(got: Regions, wanted: Regions) -> None:
    assert (got.image_id, got.width, got.height) == (wanted.image_id, wanted.width, wanted.height)
    for name in ARRAYS:
        assert getattr(got, name).dtype == getattr(wanted, name).dtype, name
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}
