"""Searching an index of a million images, and making an index.

    python -m benchmarks search

`search`: the 10 best of embeddings of width 256 for one query, and for 16 at once, by the index and by products of all
embeddings in float32 in memory; the results are first checked to be equal. The embeddings are drawn in two ways, as all
directions are equally likely, and around a thousand centres, so that many are nearly as good as the best. The files
were read before. `milliseconds` is CPU time of one process on one thread; `compared` is the share of images of which
float32 was read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.data import image_id
from benchmarks.harness import interleaved, ratio
from dimvl.search.format import Manifest
from dimvl.search.index import Found, ImageIndex
from dimvl.search.writer import IndexWriter

WIDTH, BEST, AT_ONCE = 256, 10, 16
DRAWN_AT_ONCE = 8192
SPREAD = {"all directions": None, "around 1,000 centres": 0.05}
"""Standard deviation of the parts of a vector around its centre, whose length is 1."""


def draw(count: int, spread: float | None, generator: torch.Generator) -> Tensor:
    """Draw embeddings (count, WIDTH)."""
    rows = torch.randn(count, WIDTH, generator=generator)
    if spread is not None:
        centres = normalize(torch.randn(1000, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
        rows = centres[torch.randint(1000, (count,), generator=generator)] + spread * rows
    return normalize(rows, dim=1)


def write_index(folder: Path, images: int, spread: float | None) -> tuple[ImageIndex, Tensor]:
    """Write an index of drawn embeddings; also return these."""
    generator, rows = torch.Generator().manual_seed(0), torch.empty(images, WIDTH)
    manifest = Manifest(model="0" * 64, model_name="random", store="none", width=WIDTH, parts=())
    with IndexWriter(folder, manifest) as writer:
        for start in range(0, images, DRAWN_AT_ONCE):
            part = rows[start : start + DRAWN_AT_ONCE]
            part.copy_(draw(len(part), spread, generator))
            writer.add([image_id(start + place) for place in range(len(part))], torch.zeros(len(part)).long(), part)
    return ImageIndex(folder), rows


def plain(rows: Tensor, queries: Tensor) -> Callable[[], object]:
    """Return a search by float32 products of all rows."""
    return lambda: (queries @ rows.T).topk(BEST)


def check(found: list[Found], rows: Tensor, queries: Tensor) -> None:
    """Compare results with those of products of all rows."""
    for query, own in zip(queries, found, strict=True):
        best = (rows @ query).topk(BEST)
        if own.positions.tolist() != best.indices.tolist():
            torch.testing.assert_close(own.scores, best.values, atol=1e-6, rtol=0)  # equal but for rounding


def measure_search(folder: Path, images: int, spread: float | None, rounds: int) -> dict[str, Any]:
    """Time searches of one index."""
    index, rows = write_index(folder, images, spread)
    queries = draw(AT_ONCE, spread, torch.Generator().manual_seed(2))
    check(index.search(queries, BEST), rows, queries)
    compared: list[int] = []
    best = index._best
    index._best = lambda query, positions, count: (compared.append(len(positions)), best(query, positions, count))[1]  # type: ignore[method-assign]
    seconds = interleaved(
        {
            "index": lambda: index.search(queries[:1], BEST),
            "float32": plain(rows, queries[:1]),
            f"index, {AT_ONCE} queries": lambda: index.search(queries, BEST),
            f"float32, {AT_ONCE} queries": plain(rows, queries),
        },
        rounds,
    )
    return {
        "milliseconds": {name: ratio(1000 * spent) for name, spent in seconds.items()},
        "times_faster_than_float32": ratio(seconds["float32"], seconds["index"]),
        "compared": float(np.mean(compared)) / images,
    }


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Measure both; `device` has no effect."""
    images = 40_000 if small else 1_000_000
    found = {
        name: measure_search(folder / f"index-{number}", images, spread, rounds)
        for number, (name, spread) in enumerate(SPREAD.items())
    }
    return {"images": images, "width": WIDTH, "best": BEST, "search": found}
