"""A page of the images that a search found, with their regions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dimvl.drawing import draw_regions, png_data_uri
from dimvl.errors import UserError
from dimvl.regions.geometry import fractions_to_pixels
from dimvl.regions.images import load_image
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store import RegionStore
from dimvl.report.page import write_page
from dimvl.search.index import ImageIndex
from dimvl.search.queries import Hit, image_keys, open_store
from dimvl.showing import counted

REGIONS = 5
"""Regions that are drawn, the best."""
SIDE = 320  # pixels of an image on the page


def write_search_page(
    path: Path,
    index: ImageIndex,
    results: Sequence[tuple[str, Sequence[Hit]]],
    files: Mapping[str, Path],
) -> list[str]:
    """Write the page of some queries and their results.

    Args:
        path: HTML file to write.
        index: the index that was searched; the regions come from its store.
        results: each query and its results.
        files: image files by id.

    Returns:
        The ids of images without a file that can be read.

    Raises:
        UserError: the store is gone or has changed, or the page cannot be written.

    """
    store, missing = open_store(index), []
    found: dict[int, dict[str, Any]] = {}
    for position in {hit.place: None for _, hits in results for hit in hits}:
        [((image_id,), _)] = image_keys(index, store, [position])
        found[position] = {"id": image_id, "image": _drawn(files.get(image_id), store, image_id)}
        if not found[position]["image"]:
            missing.append(image_id)
    write_page(
        path,
        Path(__file__).with_name("page.html.jinja"),
        title=f"Search in {counted(len(index), 'image')}",
        regions=REGIONS,
        queries=[(query, [(hit, found[hit.place]) for hit in hits]) for query, hits in results],
    )
    return missing


def _drawn(file: Path | None, store: RegionStore, image_id: str) -> str:
    """Return an image with its best regions as a URI; empty without a file that can be read."""
    try:
        image = load_image(file) if file is not None else None
    except UserError:
        image = None
    if image is None:
        return ""
    regions = store.read(store.position(image_id))
    boxes = fractions_to_pixels(regions.boxes[:REGIONS], image.width, image.height).tolist()
    labels = [_label(store.extractor, regions, place) for place in range(len(boxes))]
    return png_data_uri(draw_regions(image, boxes, labels, SIDE))


def _label(extractor: Extractor, regions: Regions, place: int) -> str:
    """Name a region by its attributes and its class."""
    attributes = [extractor.attributes[index] for index in regions.attribute_ids[place] if index >= 0]
    return " ".join([*attributes, *(extractor.classes[index] for index in regions.class_ids[place][:1] if index >= 0)])
