"""Counts of a store for `dimvl inspect`."""

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.regions.store import summary as store_summary
from dimvl.regions.store.summary import Bin, bar_chart, summarise
from tests.regions.store.synthetic_store import EXTRACTOR, IMAGES, regions_of, write_store


@pytest.fixture
def path(tmp_path):
    write_store(tmp_path / "store")
    return tmp_path / "store"


def test_counts_and_sizes_are_those_of_the_images(path):
    facts = summarise(path)
    assert facts["images"] == IMAGES and facts["feature_dtype"] == "float16" and facts["finished"]
    assert facts["extractor"] == EXTRACTOR.name and facts["classes"] == EXTRACTOR.classes
    assert facts["regions"] == sum(number % 6 for number in range(IMAGES))
    assert sum(facts["file_bytes"].values()) == sum(file.stat().st_size for file in path.iterdir())
    assert facts["regions_per_image"] == [
        Bin(count, count, sum(n % 6 == count for n in range(IMAGES))) for count in range(6)
    ]


@pytest.mark.parametrize("rows", [4, 10_000])
def test_the_histogram_of_scores_counts_the_first_class_of_every_region(path, rows, monkeypatch):
    monkeypatch.setattr(store_summary, "ROWS_AT_ONCE", rows)
    facts = summarise(path)
    images = [regions_of(number) for number in range(IMAGES)]
    ids = np.concatenate([one.class_ids[:, 0] for one in images])
    scores = np.concatenate([one.class_scores[:, 0] for one in images])[ids >= 0].astype(float)
    assert facts["without_class"] == (ids < 0).sum()
    for number, (low, high, count) in enumerate(facts["top_scores"]):
        assert (low, high) == (number / 10, (number + 1) / 10)
        assert count == ((scores >= number / 10) & ((scores < (number + 1) / 10) | (number == 9))).sum()


def test_many_different_numbers_of_regions_are_counted_in_ten_bins():
    counts = np.array([5, 105, 5, 37], dtype=np.uint32)
    bins = store_summary._integer_bins(counts)
    assert len(bins) == 10 and sum(count for *_, count in bins) == 4
    assert bins[0] == Bin(5, 15, 2) and bins[-1] == Bin(104, 105, 1)
    assert store_summary._integer_bins(np.zeros(0, dtype=np.uint32)) == []


def test_a_store_without_images_is_summarised_and_a_missing_shard_is_an_error(path, tmp_path):
    write_store(tmp_path / "empty", range(0))
    assert summarise(tmp_path / "empty")["regions_per_image"] == []
    (path / "shard-00001.safetensors").unlink()
    with pytest.raises(UserError, match="is missing or damaged"):
        summarise(path)


def test_a_bar_is_proportional_to_its_count_and_never_empty_for_a_count_above_zero():
    assert bar_chart([Bin(0, 9, 1000), Bin(10, 19, 1), Bin(20, 20, 0)], width=10) == [
        "  0 - 9  1,000  ##########",
        "10 - 19      1  #",
        "     20      0",
    ]
    assert bar_chart([]) == [] and bar_chart([Bin(0, 1, 0)]) == ["0 - 1  0"]
