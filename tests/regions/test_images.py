"""Images of every kind are loaded upright and as RGB; bad ones end in one sentence."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dimvl.errors import UserError
from dimvl.regions.images import MAX_PIXELS, image_from, load_image


def save(tmp_path: Path, image: Image.Image, name: str = "image.png", **options: object) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return tuple(image.getpixel((x, y)))


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that declares a size and has almost no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))


def test_greyscale_becomes_rgb(tmp_path):
    assert pixel(load_image(save(tmp_path, Image.new("L", (3, 2), 77)))) == (77, 77, 77)


def test_transparent_pixels_become_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255, 255))
    loaded = load_image(save(tmp_path, image))
    assert [pixel(loaded, 0), pixel(loaded, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_a_transparent_colour_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    # PIL warns about transparency given as bytes.
    loaded = load_image(save(tmp_path, image, transparency=b"\x00\xff"))
    assert [pixel(loaded, 0), pixel(loaded, 1)] == [(255, 255, 255), (0, 255, 0)]


@pytest.mark.parametrize("name", ["image.png", "image.tiff"])
def test_sixteen_bit_greyscale_is_scaled_by_its_own_range(tmp_path, name):
    values = np.array([[1000, 2000, 3000, 5000]], dtype=np.uint16)
    loaded = load_image(save(tmp_path, Image.fromarray(values), name))
    assert [pixel(loaded, x)[0] for x in range(4)] == [0, 64, 128, 255]


def test_a_flat_sixteen_bit_image_loads(tmp_path):
    flat = Image.fromarray(np.full((2, 2), 3000, dtype=np.uint16))
    assert pixel(load_image(save(tmp_path, flat))) == (0, 0, 0)


def test_an_image_of_floats_with_holes_loads(tmp_path):
    values = np.array([[0.0, np.nan, 2.0]], dtype=np.float32)
    loaded = load_image(save(tmp_path, Image.fromarray(values), "image.tiff"))
    assert [pixel(loaded, x)[0] for x in range(3)] == [0, 0, 255]


def test_a_rotated_photograph_becomes_upright(tmp_path):
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    loaded = load_image(save(tmp_path, image, exif=exif))
    assert loaded.size == (2, 4)
    assert pixel(loaded, 1, 0) == (255, 255, 255)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png does not exist; check the path"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="is a folder; give a file"):
        load_image(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path, Image.fromarray(noise), f"cut.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"cut\.{suffix} cannot be read .*; replace it or remove it"):
        load_image(path)


def test_a_text_file_named_png_is_named(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not an image at all")
    with pytest.raises(UserError, match=r"notes\.png is not an image of a known format"):
        load_image(path)


def test_a_folder_named_png_is_named(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder\.png is a folder; give a file"):
        load_image(tmp_path / "folder.png")


@pytest.mark.parametrize("size", [(20_000, 20_000), (8193, 8192), (12_000, 9_000)])
def test_a_bomb_is_rejected_by_its_header(tmp_path, size):
    # The file has no pixels: decoding would say that it is truncated.
    (tmp_path / "bomb.png").write_bytes(header_of_png(*size))
    with pytest.raises(UserError, match=r"bomb\.png has more than 67,108,864 pixels; make it smaller"):
        load_image(tmp_path / "bomb.png")


def test_images_of_large_cameras_are_accepted():
    assert MAX_PIXELS > 9504 * 6336  # 61 megapixels, full frame


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
"""An image (H, W, 3) whose values are exact as fractions of 255 in every float type below."""


def encoded() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


SOURCES = {
    "bytes": encoded,
    "an open file": lambda: io.BytesIO(encoded()),
    "an open PIL image": lambda: Image.open(io.BytesIO(encoded())),
    "an array": lambda: PIXELS,
    "an array that is not contiguous": lambda: np.asfortranarray(PIXELS)[::-1][::-1],
    "fractions": lambda: PIXELS / 255,
    "fractions in float16": lambda: (PIXELS / 255).astype(np.float16),
    "a tensor": lambda: torch.from_numpy(PIXELS).permute(2, 0, 1),
    "a tensor of fractions with a gradient": lambda: (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).requires_grad_(),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_an_image_is_the_same_whatever_it_comes_as(kind):
    np.testing.assert_array_equal(np.asarray(image_from(SOURCES[kind](), "it")), PIXELS)


def test_a_path_as_text_is_a_path(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    assert image_from(str(tmp_path / "a.png"), "it").tobytes() == load_image(tmp_path / "a.png").tobytes()


@pytest.mark.parametrize(
    "grey", [PIXELS[..., 0], torch.from_numpy(PIXELS[..., 0]), torch.from_numpy(PIXELS[..., 0])[None]]
)
def test_two_dimensions_are_greyscale(grey):
    np.testing.assert_array_equal(np.asarray(image_from(grey, "it")), np.repeat(PIXELS[..., :1], 3, axis=2))


def test_a_pil_image_is_turned_upright_and_stays_unchanged():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", exif=exif)
    given = Image.open(file)
    assert image_from(given, "it").size == (4, 6) and given.size == (6, 4)
    plain = Image.fromarray(PIXELS)
    image_from(plain, "it").putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(plain), PIXELS)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (None, "is None of type NoneType; give a path, the bytes"),
        ([1, 2], r"is \[1, 2\] of type list; give a path"),
        (PIXELS.astype(np.int64), "is an array of int64; give uint8 from 0 to 255"),
        (PIXELS.astype(np.float32), "has values from 1 to 248; give floats from 0 to 1"),
        (torch.full((3, 2, 2), torch.nan), "has values from nan to nan; give floats"),
        (torch.zeros(4, 6, 3), r"is a tensor of shape \(4, 6, 3\); give \(3, height, width\)"),
        (PIXELS.transpose(2, 0, 1), r"is an array of shape \(3, 4, 6\); give \(height, width, 3\)"),
        (np.zeros((0, 5), np.uint8), "is an array of shape .*, without a pixel"),
        (np.broadcast_to(np.uint8(0), (9000, 9000)), "has more than 67,108,864 pixels"),
        (io.StringIO("text"), "is a file that is open for text; open it with mode 'rb'"),
        (io.BytesIO(), "is a file with nothing left to read at its position; rewind it"),
        (b"not an image", "is not an image of a known format"),
        (encoded()[:60], "cannot be read"),
        (Image.new("1", (8193, 8192)), "has more than 67,108,864 pixels"),
    ],
)
def test_what_is_not_an_image_is_named_with_what_to_give(source, problem):
    with pytest.raises(UserError, match=f"^image 2 {problem}"):
        image_from(source, "image 2")


def test_a_torn_pil_image_is_named():
    noise = Image.effect_noise((64, 64), 99)
    file = io.BytesIO()
    noise.save(file, "PNG")
    torn = Image.open(io.BytesIO(file.getvalue()[:2000]))
    with pytest.raises(UserError, match=r"^image 2 cannot be read \(.*\); replace it or remove it"):
        image_from(torn, "image 2")


def test_only_listed_formats_are_opened(tmp_path):
    (tmp_path / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(UserError, match=r"postscript\.png is not an image of a known format \(JPEG, PNG, WEBP, "):
        load_image(tmp_path / "postscript.png")


def test_a_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is a pipe or a device"):
        load_image(tmp_path / "pipe.png")


def test_memory_is_bounded_by_the_pixels_of_an_image_whatever_its_depth(tmp_path):
    side = 4096
    deep = np.zeros((side, side), dtype=np.float32)
    deep[0, 0] = 1
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    Image.new("RGBA", (side, side)).save(tmp_path / "clear.tiff")
    program = (
        "import re, sys; from pathlib import Path; from dimvl.regions.images import load_image\n"
        # Not ru_maxrss, which a process inherits from the one that starts it.
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024\n"
        "before = peak()\n"
        "for file in sys.argv[1:]: load_image(Path(file))\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", program, tmp_path / "deep.tiff", tmp_path / "clear.tiff"]
    used = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert used < 12 * side * side  # 9 bytes per pixel and squares; whole images in float64 took 32


def tiff(*more: tuple[int, int, int]) -> bytes:
    """The directory of a grey TIFF of 16 x 16 pixels with more entries: tag, count and value."""
    entries = [(256, 1, 16), (257, 1, 16), (258, 1, 8), (259, 1, 1), (262, 1, 1), *more]
    body = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + bytes(4)


def test_a_tiff_of_millions_of_strips_or_of_huge_tiles_is_refused_by_its_directory():
    with pytest.raises(UserError, match=r"^image 2 has a list of 20,000,000 numbers"):
        image_from(tiff((273, 20_000_000, 8)), "image 2")
    with pytest.raises(UserError, match=r"^image 2 has more than 67,108,864 pixels"):
        image_from(tiff((322, 1, 40_000), (323, 1, 40_000), (324, 1, 8), (325, 1, 9)), "image 2")
