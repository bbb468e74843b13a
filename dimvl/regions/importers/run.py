"""Imports a source into a region store: recognises the format, names the extractor, writes what is not there yet."""

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
from dimvl.regions.store.format import FeatureDtype, check_space
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
"""Images that may be bad before the first good one; then the format or the vocabulary is wrong, not the images."""


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What an import did.

    Attributes:
        done: images whose regions were written.
        already: images that the store had.
        skipped: images that were left out, each told in the log.

    """

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
    """Open what is to be imported.

    Args:
        path: a file or folder.
        format_name: one of `FORMATS`; recognised if not given.
        classes: vocabulary file; without it regions get no classes.
        attributes: vocabulary file; without it regions get no attributes.
        sizes: COCO file that lists the images.
        coco_ids: whether an image's id is the number at the end of its id in the source.

    Raises:
        UserError: something cannot be read, the format is not recognised, or has no attributes.

    """
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path")
    if format_name not in (None, *FORMATS):
        raise UserError(f"--format {format_name} is not known; choose one of {', '.join(FORMATS)}")
    format_name = format_name or recognise(path)
    if attributes is not None and format_name not in WITH_ATTRIBUTES:
        raise UserError(
            f"{format_name} has no attributes, so --attributes {attributes} would be ignored; leave it away"
        )
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
    """Return every so many-th image of a source; the others are not decoded."""
    return replace(
        source,
        entries=lambda: islice(source.entries(), part.start, None, part.step),
        images=-(-source.images // part.step),
    )


def recognise(path: Path) -> str:
    """Name of a source's format.

    Raises:
        UserError: it is none that is known.

    """
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
            return _of_npz(path / files_of(path)[0])
    raise UserError(f"the format of {path} is not recognised; name it with --format ({', '.join(FORMATS)})")


def first_regions(source: Source) -> Regions:
    """Regions of the first image that can be read and has some.

    Raises:
        UserError: there is none, or `TRIES` images before it cannot be read.

    """
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
    raise UserError(f"{source.path} has nothing that can be imported; {reason}")


def import_source(
    source: Source,
    assembler: Assembler,
    out: Path,
    extractor_name: str,
    progress: Progress | None = None,
    feature_dtype: FeatureDtype = "float16",
) -> ImportReport:
    """Write a source into a new region store, or go on with one of the same extractor.

    Args:
        source: see `open_source`.
        assembler: see `open_source`.
        out: the store's folder.
        extractor_name: see `extractor_of`.
        progress: see `import_regions`.
        feature_dtype: how the store keeps features, see `RegionStoreWriter`.

    Raises:
        UserError: no image of the source can be read, the store is another extractor's or dtype's, or the disk is too
            small.

    """
    first = first_regions(source)
    extractor = extractor_of(extractor_name, first, assembler)
    with RegionStoreWriter(out, extractor, feature_dtype=feature_dtype) as writer:
        check_space(
            out,
            max(source.images - len(writer), 0),
            len(first),
            extractor.feature_width,
            feature_dtype=feature_dtype,
            class_columns=first.class_ids.shape[1],
            attribute_columns=first.attribute_ids.shape[1],
        )
        return import_regions(source, writer, progress)


def extractor_of(name: str, regions: Regions, assembler: Assembler) -> Extractor:
    """Name who made the features of a source.

    The fingerprint is a hash of name, feature width and vocabularies: the files do not tell the weights, so equal names
    are the user's word that features are comparable.
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
    """Write the regions of images that the store does not have yet, one after the other.

    A bad image, or the second of an id, is logged, counted and left out. Memory grows by an id per image.

    Args:
        source: see `open_source`.
        writer: an open store.
        progress: called with how far the source has been read and its total, in its unit.

    Raises:
        UserError: the source itself is broken, or the store cannot be written.

    """
    done, already, skipped = 0, 0, 0
    seen: set[str] = set()
    width = writer.manifest.extractor.feature_width
    position = 0
    for entry in source.entries():
        if entry.image_id in seen:
            log.warning("skipped: image %r comes again; its first regions are kept", entry.image_id)
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
    """Regions of an image with features (R, `width`), or nothing, which is logged."""
    try:
        regions = entry.read()
        if not len(regions):  # has features of no width
            return replace(regions, features=np.zeros((0, width), dtype=np.float16))
        if regions.features.shape[1] != width:
            raise UserError(
                f"image {entry.image_id!r} has features of width {regions.features.shape[1]}, the store has {width}; "
                "a store has features of one extractor"
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
        raise UserError(f"image {entry.image_id!r} has no number at its end, which --coco-ids asks for")
    return replace(entry.read(), image_id=number)


def _of_npz(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception as error:  # damaged bytes make zip raise anything
        raise UserError(f"{file} cannot be read ({error}); restore it, or name the format with --format") from None
    return "uniter-npz" if "norm_bb.npy" in names else "npz"
