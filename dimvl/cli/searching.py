"""Search: index, search."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimvl.cli.app import Adapter, AsJson, Device, Model, Threads, any_path, app, input_file, input_folder, print_text
from dimvl.cli.inputs import open_model, refuse_empty, say_synthetic
from dimvl.errors import UserError
from dimvl.progress import progress
from dimvl.showing import counted, short, some

if TYPE_CHECKING:
    from dimvl.predictor import Predictor
    from dimvl.search.index import ImageIndex
    from dimvl.search.queries import Hit

TOP = 10
"""Results without --top, if there are so many."""
MANY = 1_000_000
"""Images above which an exact search mentions the approximate one."""


@app.command()
def index(
    store: Annotated[Path, typer.Argument(parser=input_folder, help="Region store.")],
    out: Annotated[Path, typer.Argument(parser=any_path, help="Index to create or continue.")],
    model: Model,
    adapter: Adapter = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Embed the images of a region store for `dimvl search`.

    Needs a model trained to align images and texts. Resumes if interrupted. Run it again with a store that has more
    images to add these; images that the index already has are kept.

    Example: dimvl index stores/photos indexes/photos --model exports/retrieve
    """
    from dimvl.regions.store import RegionStore
    from dimvl.search.indexing import index_store

    opened = RegionStore(store, check=True)
    predictor = open_model(model, device, threads, adapter)
    with progress("images") as show:
        report = index_store(predictor.trained, opened, out, show)
    print_text(f"{counted(report.embedded, 'image')} embedded, {report.kept:,} kept: {out}")


@app.command()
def search(
    index: Annotated[Path, typer.Argument(parser=input_folder, help="Index that `dimvl index` wrote.")],
    model: Model,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="What the images show; several texts are several queries."),
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="FILE", help="Image to search by: a file, or the id of an image in the index.")
    ] = None,
    texts_file: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            parser=input_file,
            help="With --image, find the best texts of this file: captions in any format, or .txt, one per line.",
        ),
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Treat the texts as one query, like the sentences of a description.")
    ] = False,
    top: Annotated[int | None, typer.Option(min=1, help="Number of results; default 10.")] = None,
    rerank: Annotated[
        int | None, typer.Option(min=1, help="Rerank this many results, the best by embedding, with the matching head.")
    ] = None,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate", help="Compare only the most likely images: faster for many queries, misses some."
        ),
    ] = False,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(parser=any_path, help="HTML file to write: the images with their regions.")
    ] = None,
    images: Annotated[Path | None, typer.Option(parser=input_folder, help="Folder of the images for --html.")] = None,
    coco: Annotated[
        Path | None,
        typer.Option(
            parser=input_file, help="COCO file that lists the images and their ids; by default file names are ids."
        ),
    ] = None,
    adapter: Adapter = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Find the images in an index that fit a text or resemble an image, or the texts that fit an image.

    All images are compared, unless --approximate is given. The score is the cosine of the embeddings. With --rerank,
    the best are also scored by the matching head and sorted by both scores; its probability is printed after the
    cosine.

    Example: dimvl search indexes/photos "a dog on a beach" "two children" --model exports/retrieve --rerank 128

    Example: dimvl search indexes/photos "a dog runs" "the beach is empty" --together --model exports/retrieve

    Example: dimvl search indexes/photos --image photo.jpg --model exports/retrieve --html found.html --images photos

    Example: dimvl search indexes/photos --image 1000268201 --texts captions.txt --model exports/retrieve --json
    """
    _check_query(texts, image, texts_file, rerank)
    if together and not texts:
        raise UserError("--together joins several texts into one query; give texts, or omit it")
    if top and rerank and top > rerank:
        raise UserError(f"--top {top} is more than --rerank {rerank}; rerank at least as many as you want")
    if approximate and texts_file:
        raise UserError("--approximate finds images and --texts finds texts, which are all compared; omit one of them")
    if html and (images is None or texts_file):
        raise UserError("--html shows images and takes them from a folder; give --images, and omit --texts")
    if not html and (images or coco):
        raise UserError("--images and --coco are for the page of --html; give it too, or omit them")
    from dimvl.search.approximate import ApproximateIndex
    from dimvl.search.format import check_model
    from dimvl.search.index import ImageIndex

    opened = ApproximateIndex(index) if approximate else ImageIndex(index)
    files = _image_files(images, coco) if images else {}
    predictor = open_model(model, device, threads, adapter)
    check_model(index, opened.manifest, predictor.trained)
    say_synthetic(predictor)
    if texts_file is not None:
        _search_texts(opened, predictor, str(image), texts_file, top, rerank, as_json)
        return
    if isinstance(opened, ApproximateIndex) and opened.lists is None:
        with progress("images") as show:
            opened.make_lists(show)
    elif not approximate and len(opened) > MANY:
        print_text(f"all {len(opened):,} images are compared; for many texts, --approximate is faster", error=True)
    queries = [texts or []] if together else [[text] for text in texts or []]
    found = _search_images(opened, predictor, queries, image, top, rerank)
    _print(found, opened.image_id, "image_id", as_json)
    if html is not None:
        from dimvl.search.page import write_search_page

        missing = write_search_page(html, opened, found, files)
        print_text(f"page: {html}", error=True)
        if missing:
            print_text(f"{images} lacks {counted(len(missing), 'image')}: {some(missing)}", error=True)
            raise typer.Exit(1)


def _check_query(texts: Sequence[str] | None, image: str | None, texts_file: Path | None, rerank: int | None) -> None:
    """Refuse arguments that do not make one kind of query."""
    if texts and image:
        raise UserError(f"{short(texts[0])} and --image are both given to search by; omit one")
    if texts_file and not image:
        raise UserError("--texts needs an image to search by; give --image, or texts as arguments to find images")
    if not texts and not image:
        raise UserError("there is nothing to search by; give texts, or --image")
    if rerank and image and not texts_file:
        raise UserError("--rerank compares images with texts, not with images; omit it, or give --texts")
    refuse_empty(texts or [])
    if file := next(filter(os.path.exists, texts or []), None):
        raise UserError(
            f"{file} is a file or a folder, not a text; if it is an image, give it as --image {file}, or reword it"
        )


def _image_files(folder: Path, coco: Path | None) -> dict[str, Path]:
    from dimvl.regions.listing import images_of_coco, images_of_folder

    return dict(images_of_folder(folder) if coco is None else images_of_coco(coco, folder))


def _number(top: int | None, rerank: int | None, most: int, what: str) -> int:
    """Return how many results to find by embedding."""
    for option, number in (("--top", top), ("--rerank", rerank)):
        if number and number > most:
            raise UserError(f"{option} is {number:,} but there are {most:,} {what} to find; give at most {most:,}")
    return rerank or top or min(TOP, most)


def _search_images(
    opened: "ImageIndex",
    predictor: "Predictor",
    queries: Sequence[Sequence[str]],
    image: str | None,
    top: int | None,
    rerank: int | None,
) -> list[tuple[str, list["Hit"]]]:
    """Return each query, one or more texts or an image, and the images found."""
    from dimvl.search.queries import find_by_texts, find_similar, image_query, rerank_images

    if image is not None:
        query = image_query(predictor, opened, image)
        most = len(opened) - (query.position is not None)
        return [(image, find_similar(opened, query, _number(top, rerank, most, "images")))]
    number = _number(top, rerank, len(opened), "images")
    words = [predictor.trained.tokenise_known(texts) for texts in queries]
    found = find_by_texts(predictor.trained, opened, queries, number)
    if rerank:
        found = rerank_images(predictor.trained, opened, words, found)
    return [(" ".join(texts), hits[: top or TOP]) for texts, hits in zip(queries, found, strict=True)]


def _search_texts(
    opened: "ImageIndex",
    predictor: "Predictor",
    image: str,
    file: Path,
    top: int | None,
    rerank: int | None,
    as_json: bool,
) -> None:
    """Find and print the texts of a file that fit an image."""
    from dimvl.search.queries import find_texts, image_query, read_texts, rerank_texts
    from dimvl.tasks.retrieval.prediction import embed_all_texts

    texts = read_texts(file)
    number, trained = _number(top, rerank, len(texts), "texts"), predictor.trained
    query = image_query(predictor, opened, image)
    with progress("texts") as show:
        embedded = embed_all_texts(trained, texts, show).pooled
    hits = find_texts(query, embedded, number)
    if rerank:
        hits = rerank_texts(trained, opened, query, [texts[hit.place] for hit in hits], hits)
    _print([(image, hits[: top or TOP])], texts.__getitem__, "text", as_json)


def _print(found: Sequence[tuple[str, Sequence["Hit"]]], name: Any, key: str, as_json: bool) -> None:
    """Print each query's results; `name` of a place is the value of `key`."""
    for query, hits in found:
        if not as_json and len(found) > 1:
            print_text(f"{query}:")
        for rank, hit in enumerate(hits, start=1):
            probability = {} if hit.probability is None else {"probability": hit.probability}
            if as_json:
                record = {"query": query, "rank": rank, key: name(hit.place), "score": hit.score, **probability}
                print(json.dumps(record), flush=True)
            else:
                match = "".join(f"  {value:.3f}" for value in probability.values())
                print_text(f"{rank:3}  {hit.score:.3f}{match}  {name(hit.place)}")
