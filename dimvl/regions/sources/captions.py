"""Writes the captions that shards have beside their images as JSON lines, which training reads: `--captions-out`."""

import json
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from dimvl.errors import UserError
from dimvl.fields import words
from dimvl.files import atomic_path
from dimvl.regions.sources.shards import Shards
from dimvl.showing import counted


class CaptionsReport(NamedTuple):
    """The result of writing captions.

    Attributes:
        written: captions in the file.
        bad: texts of images of the store that are empty, not text, or too long.
        first: where the first of these is, and what is wrong; empty without any.

    """

    written: int
    bad: int
    first: str

    def __str__(self) -> str:
        """One line for the end of a command."""
        return counted(self.written, "caption") + (f", {self.bad} left out, such as: {self.first}" if self.bad else "")


def write_captions(shards: Shards, images: Container[str], out: Path, field: str | None = None) -> CaptionsReport:
    """Write the captions of images, whole or not at all; call it after the images of the shards were read.

    Args:
        shards: a source.
        images: ids of the images whose captions are written.
        out: a file of JSON lines `{"image": id, "caption": text}`.
        field: where texts are, see `Shards.texts_in`.

    Raises:
        UserError: no text is there, a Parquet file has no such column, or the file cannot be written.

    """
    written, bad, first = 0, 0, ""
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for image_id, text, place in shards.texts(field):
            if image_id in images:
                try:
                    caption = words(text, "caption", place)
                except UserError as error:
                    bad, first = bad + 1, first or str(error)
                    continue
                lines.write(json.dumps({"image": image_id, "caption": caption}) + "\n")
                written += 1
        if not written:
            place = "" if field is None else f" in {field}"
            found = f" (the first: {first})" if first else ""
            raise UserError(
                f"the shards have no captions{place} of images in the store{found}; name their place with "
                "--caption-field, or omit --captions-out"
            )
    return CaptionsReport(written, bad, first)
