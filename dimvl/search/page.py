"""A page of the images that a search found, with their regions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dimvl.drawing import stored_image_uri
from dimvl.report.page import write_page
from dimvl.search.index import ImageIndex
from dimvl.search.queries import Hit, image_keys, open_store
from dimvl.showing import counted

REGIONS = 5
"""Regions that are drawn, the best."""


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
        found[position] = {"id": image_id, "image": stored_image_uri(files.get(image_id), store, image_id, REGIONS)}
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
