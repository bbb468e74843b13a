"""Frames of videos among images: an image named `VIDEO@SECONDS`, such as `video7010@00003.250`, is a frame.

`dimvl frames` gives these names, which a region store keeps as ids. So an annotation file names a video, and its frames
and their times are found in the store.
"""

import re
from collections.abc import Iterable

from dimvl.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ts")
"""The usual endings of video files, by which they are found in a folder and left out of their names."""
FRAME = re.compile(r"(.+)@([0-9]{1,9}(?:\.[0-9]{1,6})?)")
Frames = tuple[tuple[str, ...], tuple[float, ...]]
"""The frames of a video and their seconds, in order of time."""


def video_name(name: str) -> str:
    """Return the name of a video by that of its file: without a known ending."""
    stem, dot, ending = name.rpartition(".")
    return stem if stem and f"{dot}{ending}".lower() in VIDEO_SUFFIXES else name


def frame_name(video: str, seconds: float) -> str:
    """Return the name of a frame; those of a video sort in order of time, up to 27 hours."""
    return f"{video}@{seconds:09.3f}"


def videos_of(names: Iterable[str]) -> dict[str, Frames]:
    """Return the frames of each video among the names of images; names of another form are left out.

    Raises:
        UserError: two frames of a video have the same time.

    """
    found: dict[str, dict[float, str]] = {}
    for name in names:
        if parts := FRAME.fullmatch(name):
            frames, seconds = found.setdefault(parts[1], {}), float(parts[2])
            if (other := frames.setdefault(seconds, name)) != name:
                raise UserError(f"frames {other!r} and {name!r} of one video have the same time; remove one of them")
    return {
        video: (tuple(frames[time] for time in sorted(frames)), tuple(sorted(frames)))
        for video, frames in found.items()
    }
