"""Videos to frames: from video files, or from folders of frames, to one folder of images for `dimvl extract`.

Videos are decoded by PyAV: its wheels bring FFmpeg, need no torch, and serve every version of Python. (torchcodec fits
one version of torch each and wants FFmpeg from the system.) A video is decoded from its beginning, so the frames are
exact in every format. A file is opened as data of a known kind: FFmpeg also reads playlists, which name other files.
"""

import json
import logging
import math
import os
import re
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from dimvl.callbacks import Progress
from dimvl.errors import UserError
from dimvl.files import atomic_path, existing, locked, open_regular, parse_json, read_bytes, read_text, writing
from dimvl.regions.frames import VIDEO_SUFFIXES, frame_name, video_name, videos_of
from dimvl.regions.images import MAX_FILE_BYTES, MAX_PIXELS
from dimvl.regions.listing import PassedOver, found_in, id_of_name
from dimvl.showing import some

logger = logging.getLogger(__name__)
LOG = "frames.jsonl"
"""In the folder of frames: how they were chosen, then a line for each video that is done."""
PART = ".part"
DEMUXERS = "mov,mp4,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,asf,ogg"
"""The kinds of files that FFmpeg may open."""
LARGEST = 2**40
"""Bytes of a video file: 1 TiB."""
QUALITY = 95  # of JPEG
COMPLETE = 0.9  # share of the length in its header that a video must have
_NUMBER = re.compile(r"([0-9]{1,15})(?!.*[0-9])")


@dataclass(frozen=True)
class Spacing:
    """Which frames are taken: a number of them, or some per second.

    Attributes:
        count: the video is cut into so many equal parts, and the frame in the middle of each is taken; None for `fps`.
        fps: frames per second, from the first frame on.

    """

    count: int | None
    fps: float | None

    def times(self, duration: float) -> list[float]:
        """Return the seconds of the frames of a video that lasts `duration` seconds."""
        if self.count is not None:
            return [(place + 0.5) * duration / self.count for place in range(self.count)]
        assert self.fps is not None
        return [place / self.fps for place in range(max(1, math.ceil(duration * self.fps)))]

    def choose(self, shown: Sequence[float]) -> list[int]:
        """Return the places of the frames that are shown at these times, each once, of frames that begin at `shown`."""
        duration = shown[-1] + (shown[-1] / (len(shown) - 1) if len(shown) > 1 else 0)
        return sorted({max(0, bisect_right(shown, time + 1e-6) - 1) for time in self.times(duration)})


@dataclass(frozen=True)
class CutReport:
    """Numbers of videos that were cut, with all their frames; that had been cut before; that were skipped."""

    done: int
    frames: int
    already: int
    skipped: int


def cut_videos(
    paths: Sequence[Path],
    out: Path,
    spacing: Spacing,
    frame_rate: float | None = None,
    progress: Progress | None = None,
) -> CutReport:
    """Write frames of videos as images named `VIDEO@SECONDS` into one folder; resumes if interrupted.

    Args:
        paths: video files; folders of video files; folders of the frames of one video, or of such folders.
        out: the folder.
        spacing: which frames.
        frame_rate: frames per second of folders of numbered frames.
        progress: called with (videos done, videos in total).

    Raises:
        UserError: no video, two of one name, PyAV is missing, or `out` was cut with another spacing. A video that
            cannot be decoded is logged and skipped.

    """
    videos = list_videos(paths)
    files = [path for path in videos.values() if not path.is_dir()]
    if files and find_spec("av") is None:
        raise UserError(
            f"decoding {files[0]} needs the package av; pip install 'dimvl[video]', or give folders of frames"
        )
    if frame_rate is not None and len(files) == len(videos):
        raise UserError("--frame-rate is for folders of numbered frames, and there are none; omit it")
    done = frames = already = skipped = 0
    with locked(out, f"{out} is being written by another process; wait for it, or give another folder"):
        known = _read_log(out / LOG, spacing)
        others = videos_of(id_of_name(name) for name in os.listdir(out))
        for place, (name, path) in enumerate(videos.items(), start=1):
            if name in known:
                already += 1
            else:
                try:
                    number = _cut(name, path, out, spacing, frame_rate, others.get(name, ((), ()))[0])
                except UserError as error:
                    logger.warning("%s; it is skipped", error)
                    skipped += 1
                else:
                    _append(out / LOG, {"video": name, "frames": number})
                    done, frames = done + 1, frames + number
            if progress is not None:
                progress(place, len(videos))
    return CutReport(done, frames, already, skipped)


def list_videos(paths: Sequence[Path]) -> dict[str, Path]:
    """Return files and folders of videos by the names of the videos.

    Raises:
        UserError: a path does not exist, a folder has no video and no frames, or two videos have one name.

    """
    found: dict[str, Path] = {}
    for path in paths:
        for video in _videos_in(path) if existing(path).is_dir() else [path]:
            name = video.name if video.is_dir() else video_name(video.name)
            if (other := found.setdefault(name, video)) != video:
                raise UserError(f"{other} and {video} would both be the video {name!r}; rename one")
    return found


def _videos_in(folder: Path) -> list[Path]:
    """Return the videos of a folder: files, itself if it has frames, or its folders of frames."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if files := [path for path in entries if path.name.lower().endswith(VIDEO_SUFFIXES)]:
        if others := [path.name for path in entries if path not in files]:
            logger.warning("%s: only its %d video files are cut, not %s", folder, len(files), some(others))
        return files
    if found_in(folder, PassedOver()):
        return [folder.absolute()]
    folders = [path for path in entries if path.is_dir() and found_in(path, PassedOver())]
    if not folders:
        raise UserError(f"{folder} has no video ({', '.join(VIDEO_SUFFIXES)}) and no frames; check the path")
    return folders


def _cut(
    name: str, path: Path, out: Path, spacing: Spacing, frame_rate: float | None, existing_frames: Sequence[str]
) -> int:
    """Write the frames of one video and return their number; nothing is left of one that fails."""
    part = out / PART
    with writing(part):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    try:
        names = []
        if path.is_dir():
            for seconds, file in _frames_of_folder(path, spacing, frame_rate):
                names.append(f"{frame_name(name, seconds)}{file.suffix}")
                content = read_bytes(file, MAX_FILE_BYTES)
                with writing(out):
                    (part / names[-1]).write_bytes(content)
        else:
            for seconds, image in decoded(path, spacing):
                names.append(f"{frame_name(name, seconds)}.jpg")
                with writing(out):
                    image.save(part / names[-1], quality=QUALITY)
        if others := set(existing_frames) - {id_of_name(own) for own in names}:
            raise UserError(f"{out} has other frames of video {name!r}, such as {min(others)!r}; remove them")
        for own in names:
            with writing(out):
                os.replace(part / own, out / own)
        return len(names)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _frames_of_folder(folder: Path, spacing: Spacing, frame_rate: float | None) -> Iterator[tuple[float, Path]]:
    """Yield the chosen frames of a folder and their seconds, by the rule of `VIDEO@SECONDS` or by their numbers."""
    files = {id_of_name(file.name): file for file in found_in(folder, PassedOver())}
    named = videos_of(files)
    if len(named) == 1 and sum(len(frames) for frames, _ in named.values()) == len(files):
        [(frames, seconds)] = named.values()
        order = dict(zip(seconds, (files[frame] for frame in frames), strict=True))
    else:
        if frame_rate is None:
            raise UserError(
                f"{folder} has numbered frames, such as {min(files)!r}; give their number per second as --frame-rate"
            )
        numbers: dict[int, Path] = {}
        for name, file in files.items():
            number = _NUMBER.search(name)
            if number is None or numbers.setdefault(int(number[1]), file) != file:
                raise UserError(f"{file} has no number of its own; number the frames of a video in their order")
        order = {(number - min(numbers)) / frame_rate: numbers[number] for number in sorted(numbers)}
    shown = list(order)
    for place in spacing.choose([time - shown[0] for time in shown]):
        yield shown[place], order[shown[place]]


def decoded(path: Path, spacing: Spacing) -> Iterator[tuple[float, Image.Image]]:
    """Yield the chosen frames of a video file, upright, and their seconds from its first frame.

    Raises:
        UserError: it is no video of a known kind, is damaged, cut off, or has more than `MAX_PIXELS` pixels.

    """
    with _opened(path) as (container, stream):
        tick = float(stream.time_base)
        packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        shown = sorted(place for packet in packets if (place := _place(packet)) is not None)
        header = (stream.duration or 0) * tick
    if not shown:
        raise UserError(f"video {path} has no frames with times; convert it to MP4, or remove it")
    length = (shown[-1] - shown[0]) * tick
    if length * len(shown) < COMPLETE * header * (len(shown) - 1):
        raise UserError(f"video {path} ends after {length:.1f} of {header:.1f} seconds; get the whole file")
    wanted = [shown[place] for place in spacing.choose([(own - shown[0]) * tick for own in shown])]
    found = 0
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            place = _place(frame)
            if found < len(wanted) and place is not None and place >= wanted[found] and not frame.is_corrupt:
                yield (place - shown[0]) * tick, _upright(frame)
                found += 1
            if found == len(wanted):
                break
    if found < len(wanted):
        raise UserError(f"video {path}: only {found} of {len(wanted)} frames can be decoded; replace or remove it")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video file, and yield it with its first stream of pictures; what FFmpeg raises becomes a `UserError`."""
    import av

    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": ""}
    with open_regular(path, LARGEST) as file:
        try:
            with av.open(file, metadata_errors="replace", container_options=options) as container:
                if not container.streams.video:
                    raise UserError(f"{path} has sound but no pictures; give a video")
                stream = container.streams.video[0]
                if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                    raise UserError(f"video {path} has frames of more than {MAX_PIXELS:,} pixels; make them smaller")
                yield container, stream
        except (av.error.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"video {path} cannot be decoded ({reason}); replace it or remove it") from None


def _place(part: Any) -> int | None:
    """Return when a packet or frame is shown, in ticks of its stream; AVI files say only when it is decoded."""
    place = part.dts if part.pts is None else part.pts
    return None if place is None else int(place)


def _upright(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _read_log(path: Path, spacing: Spacing) -> set[str]:
    """Return the videos that are done, after writing how frames are chosen if nothing is there.

    Raises:
        UserError: they were chosen otherwise, or the file is damaged.

    """
    own = {name: value for name, value in vars(spacing).items() if value is not None}
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(own) + "\n", encoding="utf-8")
        return set()
    whole, _, torn = read_text(path).rpartition("\n")
    if torn:  # the line of a process that was killed
        with atomic_path(path) as temporary:
            temporary.write_text(whole + "\n", encoding="utf-8")
    remedy = "remove the folder and cut the videos again"
    first, *rest = (parse_json(line, path, remedy) for line in whole.split("\n"))
    if first != own:
        before = " ".join(f"--{name} {value:g}" for name, value in first.items()) if isinstance(first, dict) else "?"
        raise UserError(f"{path.parent} has frames that were cut with {before}; give the same, or another folder")
    try:
        return {str(line["video"]) for line in rest}
    except (TypeError, KeyError):
        raise UserError(f"{path} is damaged; {remedy}") from None


def _append(path: Path, line: dict[str, Any]) -> None:
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
