"""Picture files to upright RGB pictures: the first step on the way of the data, before the detector.

Pictures come from anywhere, so everything that can be wrong with one ends in a `UserError` that names the file, and
everything that is merely unusual (greyscale, 16 bit, transparent, rotated by the camera) just works.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dimvl.errors import UserError

MAX_PIXELS = 2**26
"""The largest picture that is decoded, about 67 megapixels: full-frame cameras pass (61), a decompression bomb does
not. As RGB it takes 200 MB."""


def load_image(path: Path) -> Image.Image:
    """Read a picture as RGB, upright.

    Transparent pictures are laid on white. Greyscale of more than 8 bits is stretched from its own smallest and
    largest value to 0..255, since 12-bit values in a 16-bit file would come out black (or, clipped, white).

    Raises:
        UserError: the file is missing, is not a picture, is damaged, or has more than `MAX_PIXELS` pixels.

    """
    with quiet_decoders():
        return load_image_in_thread(path)


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep PIL from warning of harmless oddities (bad EXIF) and of sizes that are refused anyway.

    Python's warning filters belong to the whole process, so threads must not change them: enter this around them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def load_image_in_thread(path: Path) -> Image.Image:
    """Do as `load_image`, within `quiet_decoders`."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:  # from the header, before any pixel is decoded
                raise Image.DecompressionBombError
            image.load()
            return upright_rgb(image)
    except FileNotFoundError:
        raise UserError(f"picture {path} does not exist; check the path") from None
    except IsADirectoryError:
        raise UserError(f"picture {path} is a folder; name the pictures in it") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{path} is not a picture; convert it to PNG or JPEG, or leave it out") from None
    except Image.DecompressionBombError:  # ours, or PIL's own at a higher limit
        raise UserError(f"picture {path} has more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # decoders of damaged bytes raise anything: OSError, SyntaxError, struct.error, ...
        raise UserError(f"picture {path} cannot be read ({error}); replace the file or leave it out") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turn an opened picture of any kind into RGB, upright; see `load_image`."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _stretched(image).convert("RGB")
    if image.has_transparency_data:
        overlay = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), overlay).convert("RGB")
    return image.convert("RGB")


def _stretched(image: Image.Image) -> Image.Image:
    """Greyscale of any depth to 8 bits, its smallest value black and its largest white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
    low, high = values.min(), values.max()
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
