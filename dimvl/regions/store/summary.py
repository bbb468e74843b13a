"""What a region store contains, in numbers: `dimvl inspect`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dimvl.regions.store.folder import StoreFolder

BINS = 10
ROWS_AT_ONCE = 65_536


class Bin(NamedTuple):
    """The number of items with a value from `low` to `high`."""

    low: float
    high: float
    number: int


def summarise(path: Path) -> dict[str, Any]:
    """Count what a store contains; memory does not grow with the store.

    Returns:
        What `dimvl inspect` prints, by name. In `regions_per_image`, images by their number of regions, both ends of a
        bin are included; in `top_scores`, regions by the score of their first class, only the last bin's upper end is.

    Raises:
        UserError: the folder is not a store, or a file is missing or its structure is damaged.

    """
    folder = StoreFolder(Path(path))
    manifest, extractor = folder.manifest, folder.manifest.extractor
    edges = np.linspace(0, 1, BINS + 1)
    counts, without_class = np.zeros(BINS, dtype=np.int64), 0
    for class_ids, class_scores in _first_classes(folder):
        counts += np.histogram(class_scores[class_ids >= 0], edges)[0]
        without_class += int((class_ids < 0).sum())
    scores = zip(edges.round(2).tolist(), edges[1:].round(2).tolist(), counts.tolist(), strict=False)
    sizes = {file.name: file.stat().st_size for file in folder.path.iterdir() if file.is_file()}
    shards = sum(size for name, size in sizes.items() if name.startswith("shard-"))
    return {
        "images": manifest.num_images,
        "regions": manifest.num_regions,
        "shards": len(manifest.shards),
        "file_bytes": {"shards": shards, "others": sum(sizes.values()) - shards},
        "finished": manifest.lookup is not None,  # whether the last writer ended properly
        "feature_dtype": manifest.feature_dtype,
        "class_columns": manifest.class_columns,  # classes stored per region
        "attribute_columns": manifest.attribute_columns,
        "regions_per_image": _integer_bins(folder.index["num_regions"]),
        "top_scores": [Bin(*one) for one in scores],
        "without_class": without_class,
        "extractor": extractor.name,
        "fingerprint": extractor.fingerprint,
        "parameters": extractor.parameters,
        "feature_width": extractor.feature_width,
        "classes": extractor.classes,
        "attributes": extractor.attributes,
    }


def bar_chart(bins: Sequence[Bin], width: int = 40) -> list[str]:
    """One line of text per bin: its ends, its count and a bar."""
    most = max((count for *_, count in bins), default=0)
    labels = [f"{low:g}" if low == high else f"{low:g} - {high:g}" for low, high, _ in bins]
    left, right = max(map(len, labels), default=0), len(f"{most:,}")
    return [
        f"{label:>{left}}  {count:>{right},}  {'#' * -(-count * width // most) if most else ''}".rstrip()
        for label, (*_, count) in zip(labels, bins, strict=True)
    ]


def _integer_bins(values: np.ndarray) -> list[Bin]:
    """At most `BINS` bins of equal width over integers."""
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
    """Ids and scores of the first class of each region, piece by piece."""
    manifest, width = folder.manifest, folder.manifest.layout["details"][1]
    before = list(manifest.details).index("class_ids")
    first = sum(columns for _, columns in list(manifest.details.values())[:before])
    for number, entry in enumerate(manifest.shards if manifest.class_columns else ()):
        for start in range(0, entry.num_regions, ROWS_AT_ONCE):
            details = np.empty((min(ROWS_AT_ONCE, entry.num_regions - start), width), dtype=np.float32)
            buffer = details.reshape(-1).view(np.uint8).data
            folder.shard(number).read_into("details", start, buffer)
            yield details[:, first], details[:, first + manifest.class_columns]
