"""An export of an untrained model that can do all that the page shows, with images, their regions and an index."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from dimvl.app.exports import Exports
from dimvl.app.server import make_server
from dimvl.export import export
from dimvl.predictor import Predictor
from dimvl.regions.detectors.load import load_detector
from dimvl.regions.extract import extract
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.search.index import ImageIndex
from dimvl.search.indexing import index_store
from dimvl.serve.address import bound
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run


def make_export(place: Path, name: str = "all", **changes: object) -> Path:
    detector = make_detector()
    detector.save(place / "detector")
    changes = {"aligns": True, "grounds": True, **changes}
    trained = make_trained(all_abilities(detector.extractor, **changes))
    return export(write_run(place / f"run-{name}", trained), place / name, place / "detector")


def make_exports(place: Path, images: int = 4) -> Exports:
    """Images "1", "2", ...; the files of all but the last are there."""
    predictor = Predictor.from_pretrained(make_export(place))
    files = {str(number): place / f"{number}.png" for number in range(1, images + 1)}
    for number, file in enumerate(files.values(), start=1):
        make_image(number).save(file)
    detector = load_detector(place / "detector")
    with RegionStoreWriter(place / "store", detector.extractor) as writer:
        extract(list(files.items()), detector, writer)
    store = RegionStore(place / "store")
    index_store(predictor.trained, store, place / "index")
    files.popitem()
    return Exports({"all": predictor}, ImageIndex(place / "index"), store, files)


@contextmanager
def recorded_hosts() -> Iterator[set[str]]:
    """Yield the hosts that this process, with the server in it, connects to or looks up."""
    found: set[str] = set()
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connecting(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            found.add(str(address[0]))
        connect(self, address)

    def looking_up(host: Any, *rest: Any, **options: Any) -> Any:
        found.add(str(host))
        return look_up(host, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connecting)
        patch.setattr(socket, "getaddrinfo", looking_up)
        yield found


@contextmanager
def served(exports: Exports) -> Iterator[str]:
    """Yield the address of the page."""
    with ThreadPoolExecutor(1) as apart:  # a browser's event loop runs in this thread
        server = apart.submit(make_server, exports, "127.0.0.1").result()
    with bound("127.0.0.1", 0) as listening:
        listening.listen()
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
