"""Which images a folder or a COCO file has, and their ids: the first step of extraction and of predictions.

Ids are text. Of a folder they are file names without a known ending. Of a COCO file they are its own: text stays as it
is (`0001`), numbers become their digits.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dimvl.errors import UserError
from dimvl.fields import COCO, identifier, records
from dimvl.files import existing_folder, inside, open_regular, read_json, reading
from dimvl.regions.images import AVIF, SUFFIXES
from dimvl.showing import some

STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")
"""The first bytes of image files, by which files with other endings are recognised; WebP is a kind of RIFF."""
TIFF = (b"II*\0", b"MM\0*")
"""Those of TIFF, with which most raw files of cameras begin too: PIL would read the small preview in them."""
START_BYTES = 12
UNREAD = (
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".svg", ".psd"),
    *(".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".pef", ".raf", ".rw2"),
)
"""Endings of images that are not read: newer formats, drawings, raw files of cameras."""
AVIF_BRANDS = (b"avif", b"avis")
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
"""What follows `ftyp` in these files."""
SHARDS = (".tar", ".parquet")
"""Endings of files that hold many images, see `dimvl.regions.sources`."""


@dataclass
class PassedOver:
    """What a folder has beside the images that are used.

    Attributes:
        hidden: number of hidden files and folders.
        others: number of files that are not images, and of folders without images.
        links: number of links and devices in tar files, which are never followed.
        repeated: number of rows of Parquet files that repeat an image.
        folders: folders with images, which are not used.
        unread: names of images of formats that are not read.
        shards: files that hold images, beside image files.

    """

    hidden: int = 0
    others: int = 0
    links: int = 0
    repeated: int = 0
    folders: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    shards: list[Path] = field(default_factory=list)

    @property
    def left_out(self) -> bool:
        """Whether there are images among it."""
        return bool(self.folders or self.unread or self.shards)

    def add(self, other: "PassedOver") -> None:
        """Add what another folder has."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        """One line for the end of a command; empty if nothing was passed over."""
        counts = {"hidden": self.hidden, "not images": self.others, "links in tar files": self.links}
        counts |= {"rows that repeat an image": self.repeated}
        parts = [f"{count:,} {what}" for what, count in counts.items() if count]
        if self.unread:
            parts.append(f"images of formats that are not read ({some(sorted(self.unread))}; convert them to JPEG)")
        if self.folders:
            parts.append(f"folders with images ({_some(self.folders)}; give them one by one)")
        if self.shards:
            parts.append(f"files of images ({_some(self.shards)}; extract them by a command of their own)")
        return f"passed over: {', '.join(parts)}" if parts else ""


def images_of_folder(folder: Path, passed: PassedOver | None = None) -> list[tuple[str, Path]]:
    """Return ids and files of the images of a folder; see `image_files_in`.

    Raises:
        UserError: as `image_files_in`, or two files have one id.

    """
    return _without_duplicates([(id_of_name(file.name), file) for file in image_files_in(folder, passed)])


def image_files_in(folder: Path, passed: PassedOver | None = None) -> list[Path]:
    """Return the image files of a folder, sorted by name.

    These have an ending of `SUFFIXES`, or another one and the first bytes of an image; a link that leads nowhere is
    among them, so that reading it fails. Folders in the folder are not searched.

    Args:
        folder: the folder.
        passed: receives what is not an image; one for several folders counts them all.

    Raises:
        UserError: it does not exist, is not a folder, cannot be read, or has no image.

    """
    own = PassedOver()
    files = found_in(folder, own)
    if not files and own.folders:
        raise UserError(f"{folder} has no images itself but its folders do: {_some(own.folders)}; give one of them")
    if not files and own.unread:
        raise UserError(
            f"{folder} has only images of formats that are not read: {some(sorted(own.unread))}; convert them to JPEG"
        )
    if not files:
        raise UserError(f"{folder} has no images ({', '.join(SUFFIXES)}); check the path")
    if passed is not None:
        passed.add(own)
    return files


def found_in(folder: Path, passed: PassedOver) -> list[Path]:
    """Do what `image_files_in` does, for a folder that may have no image."""
    with reading(folder), os.scandir(existing_folder(folder)) as entries:
        return sorted(folder / entry.name for entry in entries if _is_image(entry, passed))


def images_of_coco(annotations: Path, folder: Path) -> list[tuple[str, Path]]:
    """Return ids and files of the images that a COCO file lists.

    Raises:
        UserError: it lists none, or one without an id or a file name; an id or a file is there twice; a file name leads
            out of the folder; or none of the files exists.

    """
    listed = [
        (image_id, inside(folder, _with_slashes(folder, file)))
        for place, image in records(annotations, read_json(annotations), "images", ("id", "file_name"), COCO)
        for image_id, file in [[str(identifier(image[name], name, place)) for name in ("id", "file_name")]]
    ]
    if not listed:
        raise UserError(f"{annotations} lists no images; give another file")
    ids: dict[Path, str] = {}
    for image_id, file in _without_duplicates(listed):
        if file in ids:
            raise UserError(f"{annotations} lists {file.name} under two ids, {ids[file]} and {image_id}; remove one")
        ids[file] = image_id
    if not any(file.exists() for file in ids):
        raise UserError(
            f"none of the {len(listed):,} images that {annotations} lists exists, such as {listed[0][1]}; "
            "give the folder, or the file, of the same split"
        )
    return listed


def _with_slashes(folder: Path, name: str) -> str:
    """Return a name that was written on Windows, with backslashes, as this system writes it."""
    return name if "\\" not in name or (folder / name).exists() else name.replace("\\", "/")


def id_of_name(name: str) -> str:
    """Return the id of an image by its file name: without a known ending."""
    return name[: name.rindex(".")] if _has_suffix(name) else name


def kind_of(name: str, start: Callable[[], bytes]) -> Literal["image", "unread", "other"]:
    """Return what a file is, in a folder or in a file of files.

    Args:
        name: its name; a usual ending of images decides.
        start: reads its first `START_BYTES` bytes, for other endings.

    """
    if _has_suffix(name):
        return "image"
    first = start()
    brand = first[8:] if first[4:8] == b"ftyp" else b""
    if first.startswith(STARTS) or (first[:4], first[8:]) == (b"RIFF", b"WEBP") or (AVIF and brand in AVIF_BRANDS):
        return "image"
    if name.lower().endswith(UNREAD) or brand in AVIF_BRANDS + HEIC_BRANDS:
        return "unread"
    return "image" if first.startswith(TIFF) else "other"


def _is_image(entry: os.DirEntry[str], passed: PassedOver) -> bool:
    """Whether an entry of a folder is used as an image; the others are counted."""
    path = Path(entry.path)
    if entry.name.startswith("."):
        passed.hidden += 1
    elif _is_folder(entry):
        if any(name.lower().endswith((*SUFFIXES, *SHARDS)) for _, _, names in os.walk(path) for name in names):
            passed.folders.append(path)
        else:
            passed.others += 1
    elif _has_suffix(entry.name) or not path.exists():
        return True
    elif entry.name.lower().endswith(SHARDS):
        passed.shards.append(path)
    elif (kind := kind_of(entry.name, lambda: _start(path))) == "image":
        return True
    elif kind == "unread":
        passed.unread.append(entry.name)
    else:
        passed.others += 1
    return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _has_suffix(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _start(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(START_BYTES)
    except UserError:
        return b""


def _some(folders: list[Path]) -> str:
    return some([folder.name for folder in sorted(folders)])


def _without_duplicates(images: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    seen: dict[str, Path] = {}
    for image_id, path in images:
        if image_id in seen:
            raise UserError(
                f"images {seen[image_id]} and {path} have the same id {image_id!r}; rename one, or correct its id"
            )
        seen[image_id] = path
    return images
