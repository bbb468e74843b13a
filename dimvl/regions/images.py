"""Image files to upright RGB images: the first step of the data flow, before the detector.

Images come from anywhere. Whatever makes one unusable ends in a `UserError` that names the file; whatever is merely
unusual (greyscale, 16 bit, transparent, rotated by the camera) works.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dimvl.errors import UserError

MAX_PIXELS = 2**26
"""The largest image that is decoded, about 67 megapixels: above full-frame cameras (61), below a decompression bomb.
As RGB it takes 200 MB."""


def load_image(path: Path) -> Image.Image:
    """Read an image as RGB, upright.

    Transparent images get a white background. Greyscale of more than 8 bits is scaled from its own minimum and maximum
    to 0..255, because 12-bit values in a 16-bit file would otherwise be black (or, clipped, white).

    Raises:
        UserError: the file is missing, not an image, damaged, or has more than `MAX_PIXELS` pixels.

    """
    with quiet_decoders():
        return load_image_in_thread(path)


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Silence PIL's warnings about harmless oddities (bad EXIF) and about sizes that are refused anyway.

    Python's warning filters belong to the process, so threads must not change them: enter this before starting threads.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def load_image_in_thread(path: Path) -> Image.Image:
    """Do what `load_image` does, within `quiet_decoders`."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:  # from the header, before any pixel is decoded
                raise Image.DecompressionBombError
            image.load()
            return upright_rgb(image)
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist; check the path") from None
    except IsADirectoryError:
        raise UserError(f"image {path} is a folder; name the images in it") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{path} is not an image; convert it to PNG or JPEG, or remove it") from None
    except Image.DecompressionBombError:  # raised above, or by PIL at a higher limit
        raise UserError(f"image {path} has more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # decoders of damaged bytes raise anything: OSError, SyntaxError, struct.error, ...
        raise UserError(f"image {path} cannot be read ({error}); replace the file or remove it") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turn an open image of any kind into upright RGB; see `load_image`."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        overlay = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), overlay).convert("RGB")
    return image.convert("RGB")


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """Greyscale of any depth to 8 bits, from black for its minimum to white for its maximum."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
    low, high = values.min(), values.max()
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
