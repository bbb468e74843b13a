"""The share of an extraction that one process does: where it writes, what it prints, which GPU and threads it uses."""

import logging
import os
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dimvl.callbacks import Progress
from dimvl.cli.app import any_path, print_text, set_threads
from dimvl.errors import UserError
from dimvl.progress import progress

if TYPE_CHECKING:
    from dimvl.regions.parts import Launched
    from dimvl.regions.sources.base import ImageSource, Part

PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="K/N",
        help="Process only every N-th image, starting with the K-th; each process needs its own OUT.",
    ),
]
IdColumn = Annotated[
    str | None,
    typer.Option("--id-column", metavar="NAME", help="Column of Parquet files with image ids; by default file names."),
]
ImageColumn = Annotated[
    str | None,
    typer.Option("--image-column", metavar="NAME", help="Column of Parquet files with images; by default image."),
]
CaptionsOut = Annotated[
    Path | None,
    typer.Option(
        "--captions-out",
        parser=any_path,
        metavar="FILE",
        help="File of JSON lines (.jsonl) to write: the captions in the shards.",
    ),
]
CaptionField = Annotated[
    str | None,
    typer.Option(
        "--caption-field",
        metavar="NAME",
        help="Where captions are: a field of KEY.json in place of KEY.txt, or a column of Parquet files.",
    ),
]


class Share:
    """What this process does of an extraction.

    Args:
        source: all images.
        out: the store that the user named.
        part: the part that the user named.
        captions: where captions go.
        field: where captions are.

    Attributes:
        source: the images of this process.
        out: the store that it writes.

    Raises:
        UserError: an option does not apply, or a store is in the way.

    """

    def __init__(
        self, source: "ImageSource", out: Path, part: str | None, captions: Path | None, field: str | None
    ) -> None:
        from dimvl.regions.parts import check_no_parts, folder_of_part, launched
        from dimvl.regions.sources.shards import Shards

        if captions is not None and not isinstance(source, Shards):
            raise UserError(f"--captions-out {captions} needs shards, and IMAGES are image files; omit it")
        if field is not None and captions is None:
            raise UserError(f"--caption-field {field} says where captions are; give --captions-out too, or omit it")
        own = None if part is None else parsed_part(part)
        self.launched: Launched | None = launched() if own is None else None
        if self.launched is not None:
            own = self.launched.part
            out = folder_of_part(out, own)
            captions = (
                None if captions is None else captions.with_stem(f"{captions.stem}.part-{own.number}-of-{own.of}")
            )
            print_text(f"part {own} ({self.launched.launcher}): {out}")
        elif own is None:
            check_no_parts(out)
        self.source = source if own is None else source.part(own)
        self.out, self._captions, self._field = out, captions, field

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """Show the progress of the first process."""
        if self.launched is not None and self.launched.part.number > 1:
            yield None
            return
        with progress(self.source.unit) as show:
            yield show

    def write_captions(self, images: Container[str]) -> bool:
        """Write the captions of images if they are asked for; returns whether some are left out."""
        if self._captions is None:
            return False
        from dimvl.regions.sources.captions import write_captions
        from dimvl.regions.sources.shards import Shards

        assert isinstance(self.source, Shards)
        report = write_captions(self.source, images, self._captions, self._field)
        print_text(f"{report}: {self._captions}")
        return bool(report.bad)


def set_resources(process: "Launched | None", threads: int) -> None:
    """Let the processes of a node share its GPUs and CPU threads, and tell warnings of all of them."""
    if process is None:
        set_threads(threads)
        return
    import torch

    logging.getLogger("dimvl").setLevel(logging.WARNING)  # each process has images of its own
    if torch.cuda.is_available():
        torch.cuda.set_device(process.local % torch.cuda.device_count())
    if not threads and process.on_node > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        threads = max(1, len(os.sched_getaffinity(0)) // process.on_node)  # torchrun sets 1 thread
    set_threads(threads)


def parsed_part(text: str) -> "Part":
    """Turn K/N into a part."""
    from dimvl.regions.sources.base import Part

    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--part is {text}; give K/N with K from 1 to N, such as 2/4")
    return Part(int(found[1]), int(found[2]))
