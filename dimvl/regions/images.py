"""Images of any kind to upright RGB images: the first step of the data flow, before the detector.

Images come from anywhere. Whatever makes one unusable ends in a `UserError` that names it; whatever is merely unusual
(greyscale, 16 bit, transparent, rotated by the camera) works. Only the formats of `FORMATS` are decoded: PIL knows some
that start other programs.

Letters: H height, W width.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dimvl.errors import UserError
from dimvl.files import open_regular
from dimvl.showing import short

AVIF = find_spec("PIL._avif") is not None
"""Whether this PIL reads AVIF: builds of PyPI do from 11.3 on."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", *(["AVIF"] if AVIF else []))
"""The formats that are read, recognised by content; of several frames the first."""
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *([".avif"] if AVIF else []),
)
"""The usual endings of their files, by which images are found in a folder."""
MAX_PIXELS = 2**26
"""The largest image that is decoded, about 67 megapixels: above full-frame cameras (61), below a decompression bomb.
As RGB it takes 200 MB."""
MAX_FILE_BYTES = 2**29
"""The largest file that is opened: `MAX_PIXELS` of 16-bit RGB without compression, and some more."""
LARGEST = {"WEBP": MAX_PIXELS // 2, "AVIF": MAX_PIXELS // 2}
"""The most pixels of formats whose decoders hold four to five copies of an image."""
MAX_TIFF_PARTS = 2**18
"""The most strips or tiles of a TIFF, of which PIL makes a Python object each."""
TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = 322, 323  # tags
TIFF_BYTES = (1, 2, 6, 7)  # types of values that PIL keeps as bytes
SIDE_AT_ONCE = 1024  # pixels; arithmetic that needs much memory per pixel goes by squares of this size


def load_image(path: Path) -> Image.Image:
    """Read an image file as RGB, upright.

    Transparent images get a white background. Greyscale of more than 8 bits is scaled from its own minimum and maximum
    to 0..255, because 12-bit values in a 16-bit file would otherwise be black (or, clipped, white).

    Raises:
        UserError: the file is missing, not a regular file, not an image, damaged, or has more than `MAX_PIXELS` pixels.

    """
    return image_from(path, f"image {path}")


def image_from(source: object, name: str) -> Image.Image:
    """Turn an image of any kind into RGB, upright; see `load_image`.

    Args:
        source: a path; the bytes of an image file; an open binary file; a PIL image, which stays unchanged; a numpy
            array (H, W, 3) or (H, W), or a torch tensor (3, H, W), (1, H, W) or (H, W), of uint8 from 0 to 255 or of
            floats from 0 to 1.
        name: what messages call it, such as "image 2".

    Raises:
        UserError: it is of another type, shape or range, not an image, damaged, or too large.

    """
    with quiet_decoders():
        return image_in_thread(source, name)


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Silence PIL's warnings about harmless oddities (bad EXIF) and about sizes that are refused anyway.

    Python's warning filters belong to the process, so threads must not change them: enter this before starting threads.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def image_in_thread(source: object, name: str) -> Image.Image:
    """Do what `image_from` does, within `quiet_decoders`."""
    if isinstance(source, str | Path):
        with open_regular(Path(source), MAX_FILE_BYTES) as file:
            return _decoded(file, name)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decoded(io.BytesIO(source), name)
    if isinstance(source, Image.Image):
        with _named(name):
            _check_size(name, *source.size)
            return _rgb(ImageOps.exif_transpose(source))
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if type(source).__module__ == "torch":  # not imported here: it takes seconds
        return _from_tensor(source, name)
    if hasattr(source, "read"):
        return _decoded(_content(source, name), name)
    raise UserError(
        f"{name} is {short(source)} of type {type(source).__name__}; give a path, the bytes of an image file, an open "
        "binary file, a PIL image, a numpy array (height, width, 3) or a torch tensor (3, height, width)"
    )


def _decoded(file: Any, name: str) -> Image.Image:
    """Decode an image file of one of `FORMATS`."""
    with _named(name):
        _check_tiff(file, name)
    with _named(name), Image.open(file, formats=FORMATS) as image:
        # From the header, before any pixel is decoded.
        _check_size(name, *image.size, LARGEST.get(image.format or "", MAX_PIXELS))
        tags = getattr(image, "tag_v2", {})
        _check_size(name, tags.get(TIFF_TILE_WIDTH, 1), tags.get(TIFF_TILE_HEIGHT, 1))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # without a copy of an upright image
        return _rgb(image)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn what PIL raises into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(
            f"{name} is not an image of a known format ({', '.join(FORMATS)}); convert it to PNG or JPEG, or remove it"
        ) from None
    except Image.DecompressionBombError:  # of PIL, at twice `Image.MAX_IMAGE_PIXELS`
        raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # decoders of damaged bytes raise anything: OSError, SyntaxError, struct.error, ...
        raise UserError(f"{name} cannot be read ({error}); replace it or remove it") from error


def _check_size(name: str, width: int, height: int, limit: int = MAX_PIXELS) -> None:
    if width * height > limit:
        raise UserError(f"{name} has more than {limit:,} pixels; make it smaller")


def _check_tiff(file: Any, name: str) -> None:
    """Refuse a TIFF with too many parts, by its directory, before PIL reads it; leave other files to PIL."""
    head = file.read(16)
    if head[:2] in (b"II", b"MM") and 42 <= max(head[2:4]) <= 43:
        order, large = "<" if head[:2] == b"II" else ">", 43 in head[2:4]
        (place,) = struct.unpack_from(order + ("8xQ" if large else "4xI"), head)
        file.seek(place)
        (number,) = struct.unpack(order + ("Q" if large else "H"), file.read(8 if large else 2))
        entry = struct.Struct(order + ("HHQ8x" if large else "HHI4x"))
        entries = file.read(min(number, 2**16) * entry.size)
        for _, kind, count in entry.iter_unpack(entries[: len(entries) // entry.size * entry.size]):
            if kind not in TIFF_BYTES and count > MAX_TIFF_PARTS:
                raise UserError(f"{name} has a list of {count:,} numbers; write it again with fewer strips, or as PNG")
    file.seek(0)


def _content(file: Any, name: str) -> io.BytesIO:
    """Read an open file from where it stands to its end."""
    with _named(name):
        content = file.read(MAX_FILE_BYTES + 1)
    if not isinstance(content, bytes):
        raise UserError(f"{name} is a file that is open for text; open it with mode 'rb'")
    if not content:
        raise UserError(f"{name} is a file with nothing left to read at its position; rewind it with seek(0)")
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{name} has more than {MAX_FILE_BYTES:,} bytes; give the file of one image")
    return io.BytesIO(content)


def _from_tensor(tensor: Any, name: str) -> Image.Image:
    """Turn a torch tensor (3, H, W), (1, H, W) or (H, W) into an image."""
    shape = tuple(tensor.shape)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in (1, 3)):
        raise UserError(f"{name} is a tensor of shape {shape}; give (3, height, width), or (height, width) for grey")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy lacks bfloat16
    array = tensor.numpy()
    return _from_array(array if array.ndim == 2 else array[0] if shape[0] == 1 else array.transpose(1, 2, 0), name)


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    """Turn an array (H, W, 3) or (H, W) into an image."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise UserError(f"{name} is an array of shape {array.shape}; give (height, width, 3), or (height, width)")
    height, width = array.shape[:2]
    if not height * width:
        raise UserError(f"{name} is an array of shape {array.shape}, without a pixel; give an image")
    _check_size(name, width, height)
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
    if array.dtype.kind != "f":
        raise UserError(f"{name} is an array of {array.dtype}; give uint8 from 0 to 255, or floats from 0 to 1")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also NaN
        raise UserError(f"{name} has values from {low:g} to {high:g}; give floats from 0 to 1, or uint8 from 0 to 255")
    scaled = np.empty(array.shape, dtype=np.uint8)
    for left, top, right, bottom in _squares(width, height):
        scaled[top:bottom, left:right] = np.rint(array[top:bottom, left:right].astype(np.float64) * 255)
    return Image.fromarray(scaled).convert("RGB")


def _rgb(image: Image.Image) -> Image.Image:
    """Turn an upright image into RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """Greyscale of any depth to 8 bits, from black for its minimum to white for its maximum."""
    squares = list(_squares(*image.size))
    ends = [(values.min(), values.max()) for values in (_numbers(image, square) for square in squares)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    scaled = Image.new("L", image.size)
    for square in squares if high > low else ():
        values = (_numbers(image, square) - low) * (255 / (high - low))
        scaled.paste(Image.fromarray(np.rint(values).astype(np.uint8)), square)
    return scaled


def _numbers(image: Image.Image, square: tuple[int, int, int, int]) -> np.ndarray:
    """The finite values of a part of an image as float64, 0 for the others."""
    return np.nan_to_num(np.asarray(image.crop(square), dtype=np.float64), posinf=0, neginf=0)


def _on_white(image: Image.Image) -> Image.Image:
    """A transparent image before a white background."""
    result = Image.new("RGB", image.size)
    for square in _squares(*image.size):
        part = image.crop(square).convert("RGBA")
        result.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), square)
    return result


def _squares(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Parts of an image, as left, top, right and bottom."""
    for top in range(0, height, SIDE_AT_ONCE):
        for left in range(0, width, SIDE_AT_ONCE):
            yield left, top, min(left + SIDE_AT_ONCE, width), min(top + SIDE_AT_ONCE, height)
