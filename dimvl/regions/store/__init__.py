"""The region store; `reader.py` says what its files are."""

from dimvl.regions.store.reader import PackedRegions, RegionStore, feature_statistics

__all__ = ["PackedRegions", "RegionStore", "feature_statistics"]
