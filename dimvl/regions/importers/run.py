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
from dimvl.files import existing, open_regular
from dimvl.regions.importers.common import MAX_VALUE, Assembler, Entry, Source
from dimvl.regions.importers.facts import Facts
from dimvl.regions.importers.given import ClashError, Sizes
from dimvl.regions.importers.hdf5 import vlp_hdf5
from dimvl.regions.importers.lmdb import uniter_lmdb
from dimvl.regions.importers.npz import files_of, npz, uniter_npz
from dimvl.regions.importers.oscar import oscar_tsv
from dimvl.regions.importers.tsv import TsvFile, lxmert_tsv
from dimvl.regions.records import Extractor, Regions
from dimvl.regions.store.format import FeatureDtype, differ_in_prefix, number_of
from dimvl.regions.store.writer import Prepared, RegionStoreWriter
from dimvl.regions.vocabulary import Vocabulary
from dimvl.showing import short

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
    """What an import did.

    Attributes:
        done: images written.
        already: images that were in the store with the same content.
        skipped: images skipped, each logged with the reason.
        facts: the line that describes the features of the images that were read.
        passed_over: phrases that say which parts of the source are not features of an image.
        left_out: number of such parts that may contain features.

    """

    done: int
    already: int
    skipped: int
    facts: str
    passed_over: tuple[str, ...] = ()
    left_out: int = 0


def open_source(
    path: Path,
    format_name: str | None = None,
    *,
    classes: Path | None = None,
    attributes: Path | None = None,
    sizes: Path | None = None,
    match: str | None = None,
    coco_ids: bool = False,
) -> tuple[Source, Assembler]:
    """Open a source.

    Args:
        path: a file or folder.
        format_name: one of `FORMATS`; by default recognised.
        classes: vocabulary file; without it regions have no classes.
        attributes: vocabulary file; without it regions have no attributes.
        sizes: COCO file that lists the images.
        match: the only rule by which images are found in `sizes`; one of `MATCHES`, or None for all.
        coco_ids: use the number at the end of an image's id in the source as its id.

    """
    existing(path)
    if format_name not in (None, *FORMATS):
        raise UserError(f"--format {format_name} is not known; choose one of {', '.join(FORMATS)}")
    format_name = format_name or recognise(path)
    if attributes is not None and format_name not in WITH_ATTRIBUTES:
        raise UserError(f"{format_name} has no attributes, so --attributes {attributes} would be ignored; omit it")
    if match is not None and sizes is None:
        raise UserError(f"--match {match} says how images are found in a file of sizes; give --sizes or omit it")
    assembler = Assembler(
        Vocabulary.read(classes) if classes is not None else None,
        Vocabulary.read(attributes, "attribute") if attributes is not None else None,
        Sizes(sizes, match) if sizes is not None else None,
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
        images=len(range(source.images)[part]),
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
            return _npz_format(path, files_of(path).names)
    raise UserError(f"the format of {path} is not recognised; name it with --format ({', '.join(FORMATS)})")


def first_regions(source: Source) -> Regions:
    """Regions of the first image that has any, if fewer than `TRIES` images before it are bad."""
    first: UserError | None = None
    bad = 0
    for entry in source.entries():
        try:
            if len(regions := entry.read()):
                return regions
        except ClashError:
            raise
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
        UserError: no image of the source can be read, the store has another extractor or dtype, the disk is too small,
            or as `import_regions`.

    """
    first = first_regions(source)
    extractor = extractor_of(extractor_name, first, assembler)
    assembler.facts = Facts(assembler.classes.names)
    with RegionStoreWriter(out, extractor, feature_dtype=feature_dtype) as writer:
        there = len(writer) if first.image_id in writer else 0  # a resumed import, or another source
        writer.check_space(max(source.images - there, 0), [first], exact=source.exact)
        report = import_regions(source, writer, progress)
    facts, sizes, passed_over = assembler.facts, assembler.sizes, source.passed_over
    if len(assembler.classes) and facts.regions and not facts.with_class:
        log.warning("no region has a class; if there are labels, their boxes are not those of the regions")
    if sizes is not None and sizes.unused:
        passed_over += (f"{sizes.unused:,} images of {sizes.path.name} that have no features here",)
    return replace(report, facts=str(facts), passed_over=passed_over, left_out=source.left_out)


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

    A bad image is logged and skipped. Memory grows by about 400 bytes per image. `progress` gets how much of the source
    has been read and its total, in its unit.

    Raises:
        ClashError: an image has other content than that of the same id in the store, or the content of one whose id is
            the same number with or without a prefix.

    """
    done, already, skipped, position = 0, 0, 0, 0
    names: dict[str, str] = {}  # id -> id in the source
    owners = {content: image_id for image_id, content in writer.contents.items()}
    for entry in source.entries():
        image = _prepared(entry, writer)
        if image is None:
            skipped += 1
        elif entry.image_id not in writer:
            twin = owners.setdefault(image.content, entry.image_id)
            if image.num_regions and differ_in_prefix(twin, entry.image_id):
                raise ClashError(
                    f"image {twin!r} in region store {writer.path} has the regions of {_described(entry)}: one image "
                    "under two ids; import all parts with --coco-ids or all without, or into another folder"
                )
            writer.add(image)
            names[entry.image_id] = entry.name
            done += 1
        elif writer.contents[entry.image_id] == image.content:
            already += 1
            names[entry.image_id] = entry.name
        elif names.get(entry.image_id) == entry.name:
            log.warning("skipped: image %r is in the source twice; its first regions are kept", entry.image_id)
            skipped += 1
        else:
            raise ClashError(
                f"{_described(entry)} is in region store {writer.path} already, with other content under the same id; "
                "import into another folder, or, if it is the same image, with the options of the first time"
            )
        position = entry.position
        if progress is not None:
            progress(position, source.total)
    if progress is not None and position != source.total:
        progress(source.total, source.total)
    return ImportReport(done=done, already=already, skipped=skipped, facts="")


def _described(entry: Entry) -> str:
    return f"image {entry.image_id!r}" + (f" ({short(entry.name)} in the source)" if entry.name else "")


def _prepared(entry: Entry, writer: RegionStoreWriter) -> Prepared | None:
    """An image as the store would have it; None for a bad one, which is logged."""
    width = writer.manifest.extractor.feature_width
    try:
        regions = entry.read()
        if not len(regions):  # features without a width
            regions = replace(regions, features=np.zeros((0, width), dtype=np.float16))
        if regions.features.shape[1] != width:
            raise UserError(
                f"image {entry.image_id!r} has features of width {regions.features.shape[1]}, but the store has "
                f"{width}; use one store per extractor"
            )
        return writer.prepare(regions)
    except ClashError:
        raise
    except UserError as error:
        log.warning("skipped: %s", error)
        return None


def _with_coco_ids(source: Source) -> Iterator[Entry]:
    for entry in source.entries():
        number = number_of(entry.image_id) or entry.image_id
        yield replace(entry, image_id=number, decode=partial(_renamed, entry), name=entry.image_id)


def _renamed(entry: Entry) -> Regions:
    number = number_of(entry.image_id)
    if number is None:
        raise UserError(f"image {entry.image_id!r} has no number at its end, as --coco-ids needs; omit the option")
    return replace(entry.read(), image_id=number)


def _npz_format(folder: Path, names: list[str]) -> str:
    """Format of the first file that can be read, of a few."""
    reason = ""
    for name in names[:TRIES]:
        try:
            with open_regular(folder / name, MAX_VALUE) as opened, zipfile.ZipFile(opened) as archive:
                return "uniter-npz" if "norm_bb.npy" in archive.namelist() else "npz"
        except Exception as error:  # damaged bytes make zip raise anything
            reason = reason or str(error)[:200]
    raise UserError(f"{folder / names[0]} cannot be read ({reason}); restore it, or name the format with --format")
