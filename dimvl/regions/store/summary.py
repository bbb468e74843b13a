"""What a region store holds, in numbers: `dimvl inspect`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dimvl.regions.records import Extractor
from dimvl.regions.store.folder import StoreFolder
from dimvl.regions.store.format import FeatureDtype

BINS = 10
ROWS_AT_ONCE = 65_536


class Bin(NamedTuple):
    """The number of things with a value from `low` to `high`."""

    low: float
    high: float
    number: int


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """Counts of a store.

    Attributes:
        images: images.
        regions: regions of all of them.
        shards: files of regions.
        file_bytes: bytes on disk, of shards and of the files beside them.
        finished: whether the writer came to its end.
        feature_dtype: how features are kept.
        class_columns: classes kept of each region.
        attribute_columns: attributes of each region.
        regions_per_image: images by their number of regions, both ends included.
        top_scores: regions by the score of their first class; the upper end belongs to the last bin only.
        without_class: regions with no class.
        extractor: who made them.

    """

    images: int
    regions: int
    shards: int
    file_bytes: dict[str, int]
    finished: bool
    feature_dtype: FeatureDtype
    class_columns: int
    attribute_columns: int
    regions_per_image: list[Bin]
    top_scores: list[Bin]
    without_class: int
    extractor: Extractor


def summarise(path: Path) -> StoreSummary:
    """Count what a store holds; memory does not grow with the store.

    Raises:
        UserError: there is no store, or a file is missing or damaged in its structure.

    """
    folder = StoreFolder(Path(path))
    manifest = folder.manifest
    edges = np.linspace(0, 1, BINS + 1)
    counts, without_class = np.zeros(BINS, dtype=np.int64), 0
    for class_ids, class_scores in _first_classes(folder):
        counts += np.histogram(class_scores[class_ids >= 0], edges)[0]
        without_class += int((class_ids < 0).sum())
    sizes = {file.name: file.stat().st_size for file in folder.path.iterdir() if file.is_file()}
    shards = sum(size for name, size in sizes.items() if name.startswith("shard-"))
    return StoreSummary(
        images=manifest.num_images,
        regions=manifest.num_regions,
        shards=len(manifest.shards),
        file_bytes={"shards": shards, "others": sum(sizes.values()) - shards},
        finished=manifest.lookup is not None,
        feature_dtype=manifest.feature_dtype,
        class_columns=manifest.class_columns,
        attribute_columns=manifest.attribute_columns,
        regions_per_image=_whole_bins(folder.index["num_regions"]),
        top_scores=[
            Bin(round(float(low), 2), round(float(high), 2), int(count))
            for low, high, count in zip(edges, edges[1:], counts, strict=False)
        ],
        without_class=without_class,
        extractor=manifest.extractor,
    )


def bar_chart(bins: Sequence[Bin], width: int = 40) -> list[str]:
    """One line of text per bin: its ends, its count and a bar."""
    most = max((count for *_, count in bins), default=0)
    labels = [f"{low:g}" if low == high else f"{low:g} - {high:g}" for low, high, _ in bins]
    left, right = max(map(len, labels), default=0), len(f"{most:,}")
    return [
        f"{label:>{left}}  {count:>{right},}  {'#' * -(-count * width // most) if most else ''}".rstrip()
        for label, (*_, count) in zip(labels, bins, strict=True)
    ]


def _whole_bins(values: np.ndarray) -> list[Bin]:
    """At most `BINS` bins of equal width over whole numbers."""
    if not len(values):
        return []
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // BINS)
    counts = np.bincount((values - values.dtype.type(low)) // width)
    return [
        Bin(start, min(start + width - 1, high), int(count))
        for start, count in zip(range(low, high + 1, width), counts, strict=True)
    ]


def _first_classes(folder: StoreFolder) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and scores of the first class of each region, a piece at a time."""
    manifest, width = folder.manifest, folder.manifest.layout["details"][1]
    before = list(manifest.details).index("class_ids")
    first = sum(columns for _, columns in list(manifest.details.values())[:before])
    for number, entry in enumerate(manifest.shards if manifest.class_columns else ()):
        for start in range(0, entry.num_regions, ROWS_AT_ONCE):
            details = np.empty((min(ROWS_AT_ONCE, entry.num_regions - start), width), dtype=np.float32)
            buffer = details.reshape(-1).view(np.uint8).data
            folder.shard(number).read_into("details", start, buffer)
            yield details[:, first], details[:, first + manifest.class_columns]
