"""Which images a folder or a COCO file has, and their ids: the first step of extraction and of predictions.

Ids are text. Of a folder they are file names without a known ending. Of a COCO file they are its own: text stays as it
is (`0001`), numbers become their digits.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.files import inside, open_regular, read_json
from dimvl.regions.images import SUFFIXES
from dimvl.showing import short

STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")
"""The first bytes of image files, by which files with other endings are recognised; WebP is a kind of RIFF."""
SHOWN = 3  # folders named in a message


@dataclass
class PassedOver:
    """What a folder has beside the images that are used.

    Attributes:
        hidden: number of hidden files and folders.
        others: number of files that are not images, and of folders without images.
        folders: folders with images, which are not used.

    """

    hidden: int = 0
    others: int = 0
    folders: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        """One line for the end of a command; empty if nothing was passed over."""
        counts = {"hidden": self.hidden, "not images": self.others}
        parts = [f"{count:,} {what}" for what, count in counts.items() if count]
        if self.folders:
            parts.append(f"folders with images ({_some(self.folders)}; give them one by one)")
        return f"passed over: {', '.join(parts)}" if parts else ""


def images_of_folder(folder: Path, passed: PassedOver | None = None) -> list[tuple[str, Path]]:
    """Return ids and files of the images of a folder; see `image_files_in`.

    Raises:
        UserError: as `image_files_in`, or two files have one id.

    """
    files = image_files_in(folder, passed)
    return _without_duplicates([(file.stem if _has_suffix(file.name) else file.name, file) for file in files])


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
    passed = passed or PassedOver()
    before = len(passed.folders)
    if not folder.is_dir():
        raise UserError(f"image folder {folder} does not exist or is not a folder; check the path")
    try:
        with os.scandir(folder) as entries:
            files = sorted(folder / entry.name for entry in entries if _is_image(entry, passed))
    except OSError as error:
        raise UserError(f"image folder {folder} cannot be read ({error.strerror}); check its permissions") from None
    if not files and (inner := passed.folders[before:]):
        raise UserError(f"{folder} has no images itself but its folders do: {_some(inner)}; give one of them")
    if not files:
        raise UserError(f"{folder} has no images ({', '.join(SUFFIXES)}); check the path")
    return files


def images_of_coco(annotations: Path, folder: Path) -> list[tuple[str, Path]]:
    """Return ids and files of the images that a COCO file lists.

    Raises:
        UserError: it lists none, or one without an id or a file name; an id or a file is there twice; a file name leads
            out of the folder; or none of the files exists.

    """
    listed = [
        (image_id, inside(folder, text_of(image, "file_name", place)))
        for image_id, image, place in listed_images(read_json(annotations), annotations)
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


def listed_images(content: Any, path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield id, fields and place of each image that a COCO file lists; a `UserError` if it has no such list."""
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise UserError(f'{path} has no list "images" with an "id" and a "file_name" each; give a COCO annotation file')
    for number, image in enumerate(images):
        place = f"{path}: item {number} of images"
        if not isinstance(image, dict):
            raise UserError(f"{place} is {short(image)}; give an object with id and file_name")
        yield id_of(image, "id", place), image, place


def id_of(record: dict[str, Any], name: str, place: str) -> str:
    """Return an id as text; a `UserError` if it is neither text nor a whole number."""
    value = record.get(name)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64:
        return str(value)
    return text_of(record, name, place, "text or a whole number")


def text_of(record: dict[str, Any], name: str, place: str, what: str = "text") -> str:
    """Return a field that must be text."""
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place} has {name} {short(value)}; give {what}")
    return value


def _is_image(entry: os.DirEntry[str], passed: PassedOver) -> bool:
    """Whether an entry of a folder is used as an image; the others are counted."""
    path = Path(entry.path)
    if entry.name.startswith("."):
        passed.hidden += 1
    elif entry.is_dir():
        if any(_has_suffix(name) for _, _, names in os.walk(path) for name in names):
            passed.folders.append(path)
        else:
            passed.others += 1
    elif _has_suffix(entry.name) or not path.exists() or _starts_as_image(path):
        return True
    else:
        passed.others += 1
    return False


def _has_suffix(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _starts_as_image(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            start = file.read(12)
    except UserError:
        return False
    return start.startswith(STARTS) or (start[:4], start[8:]) == (b"RIFF", b"WEBP")


def _some(folders: list[Path]) -> str:
    """Name the first folders."""
    more = len(folders) - SHOWN
    return ", ".join(folder.name for folder in sorted(folders)[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _without_duplicates(images: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    seen: dict[str, Path] = {}
    for image_id, path in images:
        if image_id in seen:
            raise UserError(
                f"images {seen[image_id]} and {path} have the same id {image_id!r}; rename one, or correct its id"
            )
        seen[image_id] = path
    return images
