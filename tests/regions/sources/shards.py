"""Small shards of images, and what extraction makes of them."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from dimvl.regions.extract import ExtractReport, extract
from dimvl.regions.sources.base import ImageSource
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from tests.regions.test_extract import EXTRACTOR, MeanColourDetector


def picture(grey: int, form: str = "PNG") -> bytes:
    """An image file of 10 x 20 pixels of one grey."""
    file = io.BytesIO()
    Image.new("RGB", (10, 20), (grey,) * 3).save(file, form)
    return file.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def run(source: ImageSource, store: Path, **options: object) -> ExtractReport:
    with RegionStoreWriter(store, EXTRACTOR) as writer:
        return extract(source, MeanColourDetector(), writer, batch_size=2, **options)


def greys(store: Path) -> dict[str, float]:
    """The grey of each image of a store, in order."""
    opened = RegionStore(store)
    return {opened.image_id(n): float(opened.read(n).features[0, 0]) for n in range(len(opened))}
