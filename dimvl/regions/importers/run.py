"""Imports a source into a region store: recognises its format, identifies its extractor, writes the missing images."""

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from dimvl.callbacks import Progress
from dimvl.errors import UserError
from dimvl.regions.importers.common import Assembler, Entry, Source
from dimvl.regions.importers.given import Sizes, Vocabulary, number_of
from dimvl.regions.importers.hdf5 import vlp_hdf5
from dimvl.regions.importers.lmdb import uniter_lmdb
from dimvl.regions.importers.npz import files_of, npz, uniter_npz
from dimvl.regions.importers.oscar import oscar_tsv
from dimvl.regions.importers.tsv import TsvFile, lxmert_tsv
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store.format import FeatureDtype
from dimvl.regions.store.writer import RegionStoreWriter

log = logging.getLogger(__name__)

FORMATS: dict[str, Callable[[Path, Assembler], Source]] = {
    "lxmert-tsv": lxmert_tsv,
    "oscar-tsv": oscar_tsv,
    "npz": npz,
    "uniter-npz": uniter_npz,
    "uniter-lmdb": uniter_lmdb,
    "vlp-hdf5": vlp_hdf5,
}

WITH_ATTRIBUTES = {"lxmert-tsv", "oscar-tsv", "npz"}

TRIES = 100
"""Bad images before the first good one; after that, the format or the vocabulary is wrong, not the images."""


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """The numbers of images written, in the store before, and skipped (each logged with the reason)."""

    done: int
    already: int
    skipped: int


def open_source(
    path: Path,
    format_name: str | None = None,
    *,
    classes: Path | None = None,
    attributes: Path | None = None,
    sizes: Path | None = None,
    coco_ids: bool = False,
) -> tuple[Source, Assembler]:
    """Open a source.

    Args:
        path: a file or folder.
        format_name: one of `FORMATS`; by default recognised.
        classes: vocabulary file; without it regions have no classes.
        attributes: vocabulary file; without it regions have no attributes.
        sizes: COCO file that lists the images.
        coco_ids: use the number at the end of an image's id in the source as its id.

    """
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path")
    if format_name not in (None, *FORMATS):
        raise UserError(f"--format {format_name} is not known; choose one of {', '.join(FORMATS)}")
    format_name = format_name or recognise(path)
    if attributes is not None and format_name not in WITH_ATTRIBUTES:
        raise UserError(f"{format_name} has no attributes, so --attributes {attributes} would be ignored; omit it")
    assembler = Assembler(
        Vocabulary.read(classes) if classes is not None else None,
        Vocabulary.read(attributes) if attributes is not None else None,
        Sizes(sizes) if sizes is not None else None,
    )
    if classes is None:
        log.warning("no --classes vocabulary is given: regions get no class names, and images no tags")
    source = FORMATS[format_name](path, assembler)
    return (replace(source, entries=lambda: _with_coco_ids(source)) if coco_ids else source), assembler


def part_of(source: Source, part: slice) -> Source:
    """Return a part of a source (a start and a step); the other images are not decoded."""
    return replace(
        source,
        entries=lambda: islice(source.entries(), part.start, None, part.step),
        images=-(-source.images // part.step),
    )


def recognise(path: Path) -> str:
    """Name of a source's format."""
    if path.is_file() and path.suffix == ".tsv":
        columns = next((len(line.columns()) for line in TsvFile(path).lines()), 0)
        if columns in (6, 10):
            return "lxmert-tsv"
        if columns in (2, 3):
            return "oscar-tsv"
    if path.is_file() and path.suffix == ".mdb":
        return "uniter-lmdb"
    if path.is_dir():
        if (path / "data.mdb").is_file():
            return "uniter-lmdb"
        if next(path.rglob("*_feat???.h5"), None) is not None:
            return "vlp-hdf5"
        if any(next(path.glob(pattern), None) for pattern in ("*feature*.tsv", "*feats.tsv", "*predictions.tsv")):
            return "oscar-tsv"
        if next(path.glob("*.npz"), None) is not None:
            return _npz_format(path / files_of(path)[0])
    raise UserError(f"the format of {path} is not recognised; name it with --format ({', '.join(FORMATS)})")


def first_regions(source: Source) -> Regions:
    """Regions of the first image that has any, if fewer than `TRIES` images before it are bad."""
    first: UserError | None = None
    bad = 0
    for entry in source.entries():
        try:
            if len(regions := entry.read()):
                return regions
        except UserError as error:
            first, bad = first or error, bad + 1
            if bad == TRIES:
                break
    reason = "none of its images has regions" if first is None else f"the first problem: {first}"
    raise UserError(f"no image of {source.path} can be imported; {reason}")


def import_source(
    source: Source,
    assembler: Assembler,
    out: Path,
    extractor_name: str,
    progress: Progress | None = None,
    feature_dtype: FeatureDtype = "float16",
) -> ImportReport:
    """Write what `open_source` returns into a new region store, or continue one of the same extractor.

    Raises:
        UserError: no image of the source can be read, the store has another extractor or dtype, or the disk is too
            small.

    """
    first = first_regions(source)
    extractor = extractor_of(extractor_name, first, assembler)
    with RegionStoreWriter(out, extractor, feature_dtype=feature_dtype) as writer:
        writer.check_space(max(source.images - len(writer), 0), [first])
        return import_regions(source, writer, progress)


def extractor_of(name: str, regions: Regions, assembler: Assembler) -> Extractor:
    """The extractor that stands for a source's features.

    Its fingerprint is a hash of name, feature width and vocabularies: the files do not contain the weights, so with an
    equal name the user declares features comparable.
    """
    facts = {
        "name": name,
        "feature_width": regions.features.shape[1],
        "classes": assembler.classes.names,
        "attributes": assembler.attributes.names,
    }
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Extractor(fingerprint=fingerprint, parameters={"imported": True}, **facts)


def import_regions(source: Source, writer: RegionStoreWriter, progress: Progress | None = None) -> ImportReport:
    """Write the regions of images that the store does not have yet, one by one.

    A bad image, or the second with an id, is logged and skipped. Memory grows by one id per image. `progress` gets how
    much of the source has been read and its total, in its unit.
    """
    done, already, skipped, position = 0, 0, 0, 0
    seen: set[str] = set()
    width = writer.manifest.extractor.feature_width
    for entry in source.entries():
        if entry.image_id in seen:
            log.warning("skipped: image %r is a duplicate; its first regions are kept", entry.image_id)
            skipped += 1
        elif entry.image_id in writer:
            already += 1
            seen.add(entry.image_id)
        elif (regions := _read(entry, width)) is not None:
            writer.add(regions)
            done += 1
            seen.add(entry.image_id)
        else:
            skipped += 1
        position = entry.position
        if progress is not None:
            progress(position, source.total)
    if progress is not None and position != source.total:
        progress(source.total, source.total)
    return ImportReport(done=done, already=already, skipped=skipped)


def _read(entry: Entry, width: int) -> Regions | None:
    """Regions of an image with features (R, `width`); None for a bad image, which is logged."""
    try:
        regions = entry.read()
        if not len(regions):  # features without a width
            return replace(regions, features=np.zeros((0, width), dtype=np.float16))
        if regions.features.shape[1] != width:
            raise UserError(
                f"image {entry.image_id!r} has features of width {regions.features.shape[1]}, but the store has "
                f"{width}; use one store per extractor"
            )
    except UserError as error:
        log.warning("skipped: %s", error)
        return None
    return regions


def _with_coco_ids(source: Source) -> Iterator[Entry]:
    for entry in source.entries():
        yield replace(entry, image_id=number_of(entry.image_id) or entry.image_id, decode=partial(_renamed, entry))


def _renamed(entry: Entry) -> Regions:
    number = number_of(entry.image_id)
    if number is None:
        raise UserError(f"image {entry.image_id!r} has no number at its end, as --coco-ids needs; omit the option")
    return replace(entry.read(), image_id=number)


def _npz_format(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception as error:  # damaged bytes make zip raise anything
        raise UserError(f"{file} cannot be read ({error}); restore it, or name the format with --format") from None
    return "uniter-npz" if "norm_bb.npy" in names else "npz"
