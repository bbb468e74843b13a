"""Videos whose frames say by their grey level which they are."""

from pathlib import Path

import numpy as np
from PIL import Image

STEP = 6
"""Grey levels from one frame to the next."""


def picture(number: int) -> Image.Image:
    """The frame of a number, from 0."""
    return Image.new("RGB", (32, 32), (STEP * number + 20,) * 3)


def number_of(file: Path) -> int:
    """The number of the frame in an image file; compression changes a grey level by less than half a step."""
    with Image.open(file) as image:
        return round((float(np.asarray(image.convert("L")).mean()) - 20) / STEP)


def write_video(path: Path, frames: int = 30, rate: int = 10, start: int = 0) -> Path:
    """Write a video of `frames` frames, `rate` in a second, with PyAV; `start` is the first time in ticks."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 400_000
        for number in range(frames):
            frame = av.VideoFrame.from_image(picture(number))
            frame.pts = start + number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_frames(folder: Path, names: list[str]) -> Path:
    """Write a folder of frames in the order of their names."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        picture(number).save(folder / name)
    return folder
