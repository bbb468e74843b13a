"""Opens what a user names as images: a folder, shards, or a pattern of these."""

from pathlib import Path

from dimvl.errors import UserError
from dimvl.files import matching
from dimvl.regions.listing import SHARDS, PassedOver, found_in, images_of_coco, images_of_folder
from dimvl.regions.sources.base import ImageSource, ListedImages
from dimvl.regions.sources.parquet import ParquetShards
from dimvl.regions.sources.shards import Shards
from dimvl.regions.sources.tar import TarShards


def open_images(
    path: Path,
    coco: Path | None = None,
    boxes: Path | None = None,
    *,
    image_column: str | None = None,
    id_column: str | None = None,
) -> ImageSource:
    """Open a source of images.

    Args:
        path: a folder of images or of shards (`.tar` or `.parquet`), a shard, or a pattern of shards such as
            `shards/{000..099}.tar` or `shards/*.tar`. A folder with both is one of images; its shards are passed over.
        coco: COCO file that lists files of the folder and their ids.
        boxes: COCO file of boxes, which lists them too; shards have ids of their own.
        image_column: column of Parquet files with the images.
        id_column: column of Parquet files with their ids.

    Raises:
        UserError: nothing is there, it is of several kinds, or an option does not apply to it.

    """
    shards = shards_at(path)
    listing = coco or boxes
    if shards and coco is not None:
        raise UserError(f"--coco {coco} lists image files, and {path} has shards; omit it, or give a folder of images")
    columns = {"--image-column": image_column, "--id-column": id_column}
    if given := [option for option, value in columns.items() if value is not None]:
        if not shards or shards[0].suffix.lower() != ".parquet":
            raise UserError(f"{given[0]} names a column of Parquet files, and {path} has none; omit it")
        return ParquetShards(shards, image_column, id_column)
    if shards:
        return open_shards(shards)
    if listing is not None:
        return ListedImages(images_of_coco(listing, path))
    passed = PassedOver()
    return ListedImages(images_of_folder(path, passed), passed)


def open_shards(files: list[Path]) -> Shards:
    """Open shards of one kind."""
    return TarShards(files) if files[0].suffix.lower() == ".tar" else ParquetShards(files)


def shards_at(path: Path) -> list[Path]:
    """Return the shards that a path or a pattern means; none for a folder of images.

    Raises:
        UserError: as `open_images`.

    """
    files = matching(path)
    if files == [path] and path.is_dir():
        passed = PassedOver()
        if found_in(path, passed):
            return []
        files = sorted(passed.shards)
    for file in files:
        if not file.name.lower().endswith(SHARDS):
            raise UserError(
                f"{file} is neither a folder of images nor a file of images ({', '.join(SHARDS)}); give one of them, "
                "and unpack other archives"
            )
    if len({file.suffix.lower() for file in files}) > 1:
        raise UserError(f"{path} has files of several kinds ({', '.join(SHARDS)}); name those of one kind")
    return files
