"""The command `app`: try exports in a browser."""

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dimvl.cli.app import Device, Threads, app, input_file, input_folder, model_name, print_text
from dimvl.errors import UserError

if TYPE_CHECKING:
    from dimvl.app.exports import Exports


@app.command("app")
def open_page(
    models: Annotated[
        list[str],
        typer.Argument(
            parser=model_name,
            metavar="EXPORT...",
            help="Folders of exports, or names of models on the Hugging Face hub; the page offers what they can do.",
        ),
    ],
    index: Annotated[
        Path | None,
        typer.Option(parser=input_folder, help="Index to search, made by `dimvl index` with one of the exports."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            parser=input_folder,
            help="Region store whose images open without running the detector again; by default that of the index.",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(parser=input_folder, help="Folder of the image files of index and store.")
    ] = None,
    coco: Annotated[
        Path | None,
        typer.Option(
            parser=input_file, help="COCO file that lists the images and their ids; by default file names are ids."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but loopback admits other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 7860,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Serve a page to try exports in a browser: captions, answers, matches, phrases and search, with their regions.

    Drop an image on the page. Only this machine can reach it, unless --host says otherwise. Ctrl-C stops the server.

    Example: dimvl app exports/vqa exports/caption exports/match

    Example: dimvl app exports/retrieve --index indexes/photos --images photos
    """
    if find_spec("gradio") is None:
        raise UserError("the page needs the package gradio; install it with pip install 'dimvl[app]'")
    if coco is not None and images is None:
        raise UserError(f"--coco {coco} lists the images of --images; give both, or omit it")
    from dimvl.app.server import LOOPBACK, make_server
    from dimvl.serve.address import bound

    with bound(host, port) as listening:  # first, since models take a while to open
        listening.listen()
        server = make_server(_open(models, index, store, images, coco, device, threads), host)
        address, taken = listening.getsockname()[:2]
        if host not in LOOPBACK:
            print_text("anyone who reaches this machine can use the page and see the images of --images", error=True)
        print_text(f"page: http://{f'[{address}]' if ':' in address else address}:{taken}/")
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _open(
    models: Sequence[str],
    index: Path | None,
    store: Path | None,
    images: Path | None,
    coco: Path | None,
    device: str,
    threads: int,
) -> "Exports":
    """Open what the page uses."""
    from dimvl.app.exports import Exports
    from dimvl.cli.inputs import open_model
    from dimvl.regions.listing import images_of_coco, images_of_folder
    from dimvl.regions.store import RegionStore
    from dimvl.search.index import ImageIndex

    opened = None if index is None else ImageIndex(index)
    if store is None and opened is not None and Path(opened.manifest.store).is_dir():
        store = Path(opened.manifest.store)
    files = {} if images is None else dict(images_of_folder(images) if coco is None else images_of_coco(coco, images))
    last = Counter(Path(model).name for model in models)
    named = {Path(model).name if last[Path(model).name] == 1 else model: model for model in models}
    predictors = {name: open_model(model, device, threads) for name, model in named.items()}
    return Exports(predictors, opened, None if store is None else RegionStore(store, check=True), files)
