"""Which images a folder or a COCO file has, and their ids: the first step of extraction and of predictions.

Ids are text. Of a folder they are file names without a known ending. Of a COCO file they are its own: text stays as it
is (`0001`), numbers become their digits.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from dimvl.errors import UserError
from dimvl.fields import COCO, identifier, records
from dimvl.files import existing_folder, inside, open_regular, read_json, reading
from dimvl.regions.images import SUFFIXES
from dimvl.showing import some

STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")
"""The first bytes of image files, by which files with other endings are recognised; WebP is a kind of RIFF."""


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
    with reading(folder), os.scandir(existing_folder(folder)) as entries:
        files = sorted(folder / entry.name for entry in entries if _is_image(entry, passed))
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
