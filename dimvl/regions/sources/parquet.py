"""Parquet files with image bytes, as Hugging Face writes datasets: a column of `{bytes, path}`, or of plain binary.

The id of an image is the value of a column that the user names; else the file name in `path`, without a known ending;
else the name of the Parquet file and the number of the row, such as `train-00000-of-00002-17`.
"""

import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.fields import identifier
from dimvl.files import open_regular
from dimvl.regions.listing import id_of_name
from dimvl.regions.sources.base import Packed
from dimvl.regions.sources.shards import LARGEST_SHARD, ShardImage, Shards, ShardText
from dimvl.showing import some

ROWS_AT_ONCE = 16
"""Rows that are in memory at once."""
BUFFER = 2**20
"""Bytes read at once of a column; without it, the columns of a whole row group are in memory. Pages are read whole."""


class ParquetShards(Shards):
    """Parquet files of images.

    Args:
        files: the files, all with the same columns.
        image_column: where the images are; None for `image`, or the only column of images.
        id_column: where the ids are; None as said above.

    Raises:
        UserError: the package pyarrow is missing, a file is damaged, or lacks a column.

    """

    def __init__(self, files: Sequence[Path], image_column: str | None = None, id_column: str | None = None) -> None:
        self.image_column = image_column
        self.id_column = id_column
        self._columns(_opened(files[0]), files[0])
        super().__init__(files)

    def images_in(self, file: Path) -> Iterator[ShardImage]:
        """Yield the images of a file, row by row."""
        nothing = Packed(str(file), lambda: b"")
        try:
            opened = _opened(file)
        except UserError as error:
            yield ShardImage("", nothing, 0, str(error))
            return
        image, size, rows = self._columns(opened, file), file.stat().st_size, opened.metadata.num_rows
        columns = [image, *([self.id_column] if self.id_column else [])]
        for row, values in enumerate(_rows(opened, columns, file)):
            if isinstance(values, UserError):
                yield ShardImage("", nothing, size, str(values))
                return
            place, end = f"row {row} of {file}", size * (row + 1) // max(rows, 1)
            data, path = _image(values[image])
            packed = Packed(place, partial(_given, data))
            try:
                image_id = self._id(values, path, file, row)
            except UserError as error:
                yield ShardImage("", packed, end, str(error))
                continue
            if data is None:
                named = f", only the path {path!r}" if path else ""
                yield ShardImage(image_id, packed, end, f"{place} has no image bytes{named}; write them into the file")
            else:
                yield ShardImage(image_id, packed, end, "", zlib.crc32(data))

    def texts_in(self, file: Path, field: str | None) -> Iterator[ShardText]:
        """Yield the text, or the list of texts, in a column, by default `caption` or `text`."""
        opened = _opened(file)
        image, names = self._columns(opened, file), opened.schema_arrow.names
        column = field or next((name for name in ("caption", "text") if name in names), "caption")
        _check_column(column, names, file, "--caption-field")
        path = [] if _is_binary(opened.schema_arrow.field(image).type) else [f"{image}.path"]
        for row, values in enumerate(_rows(opened, [column, *([self.id_column] if self.id_column else path)], file)):
            if isinstance(values, UserError):
                raise values
            image_id = self._id(values, _image(values.get(image))[1], file, row)
            for text in values[column] if isinstance(values[column], list) else [values[column]]:
                yield ShardText(image_id, text, f"row {row} of {file}")

    def _columns(self, opened: Any, file: Path) -> str:
        """Return the column of the images, after checking that of the ids."""
        schema = opened.schema_arrow
        if self.id_column is not None:
            _check_column(self.id_column, schema.names, file, "--id-column")
        if self.image_column is not None:
            _check_column(self.image_column, schema.names, file, "--image-column")
        candidates = [field.name for field in schema if _is_binary(field.type) or _is_image(field.type)]
        if self.image_column is not None and self.image_column not in candidates:
            raise UserError(f"{file}: column {self.image_column} holds no bytes; name another with --image-column")
        if self.image_column is not None or "image" in candidates:
            return self.image_column or "image"
        if len(candidates) != 1:
            raise UserError(
                f"{file} has {len(candidates)} columns of bytes ({some(candidates) or some(schema.names)}); name that "
                "of the images with --image-column"
            )
        return str(candidates[0])

    def _id(self, values: dict[str, Any], path: str | None, file: Path, row: int) -> str:
        if self.id_column is not None:
            return str(identifier(values[self.id_column], self.id_column, f"row {row} of {file}"))
        name = (path or "").replace("\\", "/").rpartition("/")[2]
        return id_of_name(name) or f"{file.stem}-{row}"


def _opened(file: Path) -> Any:
    """Open a Parquet file by pyarrow, which is imported on use."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"reading {file} needs the package pyarrow; pip install 'dimvl[parquet]'") from None
    open_regular(file, LARGEST_SHARD).close()
    try:
        return parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
    except Exception as error:  # of many kinds
        raise UserError(f"{file} cannot be read as Parquet ({error}); copy it again") from None


def _rows(opened: Any, names: Sequence[str], file: Path) -> Iterator[dict[str, Any] | UserError]:
    """Yield rows, a few of which are in memory; at last the error that ended them early, if one did."""
    try:
        for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(names)):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            for row in range(batch.num_rows):
                yield {name: column[row].as_py() for name, column in columns.items()}
    except Exception as error:  # of many kinds
        yield UserError(f"{file} is damaged ({error}); copy it again")


def _check_column(name: str, names: Sequence[str], file: Path, option: str) -> None:
    if name not in names:
        raise UserError(f"{file} has no column {name}; it has {some(names, 20)}; name one of them with {option}")


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_image(kind: Any) -> bool:
    from pyarrow import types

    if not types.is_struct(kind):
        return False
    index = kind.get_field_index("bytes")
    return index >= 0 and _is_binary(kind.field(index).type)


def _given(data: bytes) -> bytes:
    return data


def _image(value: Any) -> tuple[bytes | None, str | None]:
    """Return the bytes and the path of an image."""
    if not isinstance(value, dict):
        return value, None
    path = value.get("path")
    return value.get("bytes"), path if isinstance(path, str) else None
