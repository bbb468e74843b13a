"""Searching an index of a million images, and making an index.

    python -m benchmarks search

`indexing`: images of 36 regions of 2,048 features from a store to an index, as `dimvl index` does it, beside the
forward passes alone, of the same batches, which are in memory; a model of 6 layers of width 384 with random weights.

`search`: the 10 best of embeddings of width 256 for one query, and for 16 at once, by the index and by products of all
embeddings in float32 in memory; the results are first checked to be equal. The embeddings are drawn in two ways, as all
directions are equally likely, and around a thousand centres, so that many are nearly as good as the best. The files
were read before. `milliseconds` is CPU time of one process on one thread; `compared` is the share of images of which
float32 was read.
"""

import shutil
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.data import REGIONS, ModelSize, image_id, make_extractor, make_processor, write_regions
from benchmarks.harness import interleaved, ratio, speeds
from dimvl.checkpoints import WEIGHTS
from dimvl.data.prefixes import PrefixImages
from dimvl.data.sampler import in_order
from dimvl.files import seal_folder
from dimvl.model.model import DimvlModel
from dimvl.regions.store import RegionStore
from dimvl.search.approximate import PROBES, ApproximateIndex
from dimvl.search.format import Manifest
from dimvl.search.index import Found, ImageIndex
from dimvl.search.indexing import BLOCK, index_store
from dimvl.search.writer import IndexWriter
from dimvl.tasks.inference import ROW_BUDGET
from dimvl.tasks.retrieval.prediction import embed_images
from dimvl.trained_model import MODEL_FILES, TrainedModel

WIDTH, BEST, AT_ONCE = 256, 10, 16
QUERIES = 100
"""Of which recall is a mean."""
MEDIUM = ModelSize(layers=6, width=384, heads=12, regions=REGIONS)
SMALL = ModelSize(layers=2, width=32, heads=4, regions=8, feature_width=16)
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
    approximate = measure_approximate(folder, index, spread, rounds) if find_spec("faiss") else {}
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
        **approximate,
    }


def measure_approximate(folder: Path, index: ImageIndex, spread: float | None, rounds: int) -> dict[str, Any]:
    """Make lists, then search the nearest ones: recall, and time beside that of exact searches."""
    queries = draw(QUERIES, spread, torch.Generator().manual_seed(3))
    best = [set(found.positions.tolist()) for found in index.search(queries, BEST)]
    own, found = ApproximateIndex(folder), {}
    to_make, to_fill = seconds_of(own.make_lists), seconds_of(lambda: own.search(queries[:1], BEST))
    for own._probes in (PROBES // 4, PROBES, 4 * PROBES):
        hits = [len(best[number] & {*each.positions.tolist()}) for number, each in enumerate(own.search(queries, BEST))]
        searches = {
            f"{name}, {count} queries": partial(one.search, queries[:count], BEST)
            for name, one in (("exact", index), ("approximate", own))
            for count in (1, AT_ONCE)
        }
        seconds = interleaved(searches, rounds)
        found[f"{own._probes} lists"] = {
            "recall": float(np.mean(hits)) / BEST,
            "milliseconds": {name: ratio(1000 * each) for name, each in seconds.items()},
            "times_faster_than_exact": {
                f"{count} queries": ratio(seconds[f"exact, {count} queries"], seconds[f"approximate, {count} queries"])
                for count in (1, AT_ONCE)
            },
        }
    assert own.lists is not None
    costs = {"lists": len(own.lists.centres), "seconds_to_make_lists": to_make, "seconds_to_fill_them": to_fill}
    return {"approximate": {**costs, **found}}


def seconds_of(work: Callable[[], object]) -> float:
    """CPU time of work that is done once."""
    started = time.process_time()
    work()
    return round(time.process_time() - started, 2)


def make_trained(size: ModelSize, folder: Path, device: str) -> TrainedModel:
    """Make a random model that aligns, with files in place of those that its fingerprint is made of."""
    processor = make_processor(make_extractor(size.feature_width), max_regions=size.regions, aligns=True)
    torch.manual_seed(0)
    sizes = {"vocabulary": len(processor.tokenizer), "max_positions": processor.max_positions, "aligned": WIDTH}
    model = DimvlModel(**size.arguments, **sizes).to(device).eval()
    folder.mkdir()
    for name in MODEL_FILES:
        (folder / name).write_text(name)
    seal_folder(folder, MODEL_FILES)
    return TrainedModel(model, processor, folder / WEIGHTS).for_prediction()


def measure_indexing(folder: Path, size: ModelSize, images: int, device: str, rounds: int) -> dict[str, Any]:
    """Time an index of a store, and the forward passes alone."""
    write_regions(folder / "store", images, size.regions, size.feature_width)
    store, trained = RegionStore(folder / "store", check=True), make_trained(size, folder / "model", device)
    reader = trained.processor.reader(store)
    blocks = [np.arange(start, min(start + BLOCK, images)) for start in range(0, images, BLOCK)]
    found = [PrefixImages(block, np.ones_like(block)) for block in blocks]
    batches = [reader.prefixes(block[some]) for block in found for some in in_order(reader.rows(block), ROW_BUDGET)]

    def indexed() -> None:
        index_store(trained, store, folder / "made")
        shutil.rmtree(folder / "made")

    def forward() -> None:
        for batch in batches:
            embed_images(trained, batch)

    seconds = interleaved({"forward": forward, "index": indexed}, rounds, device)
    figures = speeds(seconds, "forward", "images_per_second", images, 1)
    return {"images": images, **figures, "share_of_forward_rate": ratio(seconds["forward"], seconds["index"])}


def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Measure both; searches are on the CPU."""
    indexing = measure_indexing(folder, SMALL if small else MEDIUM, 40 if small else 300, device, rounds)
    images = 40_000 if small else 1_000_000
    found = {}
    for name, spread in SPREAD.items():
        found[name] = measure_search(folder / "index", images, spread, rounds)
        shutil.rmtree(folder / "index")
    return {"indexing": indexing, "images": images, "width": WIDTH, "best": BEST, "search": found}
