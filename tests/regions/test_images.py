"""Images of every kind are loaded upright and as RGB; bad ones end in one sentence."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dimvl.errors import UserError
from dimvl.regions.images import MAX_PIXELS, load_image


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
    with pytest.raises(UserError, match="is a folder; name the images in it"):
        load_image(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path, Image.fromarray(noise), f"cut.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"cut\.{suffix} cannot be read .*; replace the file or remove it"):
        load_image(path)


def test_a_text_file_named_png_is_named(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not an image at all")
    with pytest.raises(UserError, match=r"notes\.png is not an image; convert it"):
        load_image(path)


def test_a_folder_named_png_is_named(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder\.png is a folder; name the images in it"):
        load_image(tmp_path / "folder.png")


@pytest.mark.parametrize("size", [(20_000, 20_000), (8193, 8192), (12_000, 9_000)])
def test_a_bomb_is_rejected_by_its_header(tmp_path, size):
    # The file has no pixels: decoding would say that it is truncated.
    (tmp_path / "bomb.png").write_bytes(header_of_png(*size))
    with pytest.raises(UserError, match=r"bomb\.png has more than 67,108,864 pixels; make it smaller"):
        load_image(tmp_path / "bomb.png")


def test_images_of_large_cameras_are_accepted():
    assert MAX_PIXELS > 9504 * 6336  # 61 megapixels, full frame
