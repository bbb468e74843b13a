"""The command frames: videos to images, from which `dimvl extract` goes on."""

from pathlib import Path
from typing import Annotated

import typer

from dimvl.cli.app import any_path, app, file_or_folder, print_text
from dimvl.errors import UserError
from dimvl.progress import progress
from dimvl.showing import counted

COUNT = 12
"""Frames of a video by default, as of CLIP4Clip (Luo et al., Neurocomputing 2022) for MSR-VTT."""


@app.command()
def frames(
    videos: Annotated[
        list[Path],
        typer.Argument(
            parser=file_or_folder,
            metavar="VIDEO...",
            help="Video files, folders of them, or folders that each have the frames of one video.",
        ),
    ],
    out: Annotated[Path, typer.Argument(parser=any_path, help="Folder of images to create or continue.")],
    count: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Frames of each video, evenly spaced. Default 12, without --fps."),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.001, max=1000, help="Frames per second, instead of a number of frames.")
    ] = None,
    frame_rate: Annotated[
        float | None,
        typer.Option(min=0.001, max=1000, help="Frame rate of a folder of numbered frames, such as 1/0001.jpg."),
    ] = None,
) -> None:
    """Cut videos into frames: images for `dimvl extract`.

    Writes VIDEO@SECONDS.jpg; annotations of videos find frames and times by these names. Resumes if interrupted. Videos
    that cannot be decoded are named and skipped; then the exit code is 1. See docs/stories-and-video.md.

    Example: dimvl frames videos frames --count 12
    """
    if count is not None and fps is not None:
        raise UserError(f"--count {count} and --fps {fps:g} both say how many frames to take; omit one of them")
    from dimvl.regions.cutting import Spacing, cut_videos

    spacing = Spacing(COUNT if count is None and fps is None else count, fps)
    with progress("videos") as show:
        report = cut_videos(videos, out, spacing, frame_rate, show)
    print_text(
        f"{counted(report.done, 'video')} cut into {counted(report.frames, 'frame')}, {report.already} already there, "
        f"{report.skipped} skipped: {out}"
    )
    if report.skipped:
        raise typer.Exit(1)
