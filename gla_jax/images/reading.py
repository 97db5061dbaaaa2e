"""Images as users have them, to RGB uint8."""

import glob
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gla_jax.support.errors import ImageError
from gla_jax.support.shapes import UInt8

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".avif", ".jp2", ".j2k",
)  # fmt: skip
# Whose files of mode I hold 16 bits; elsewhere the mode is one of 32.
FORMATS_16_BIT = ("PNG", "PPM")


def read_image(path: Path | str) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB uint8: turned as its EXIF says, 16 bits reduced to 8, transparency laid over white.

    Raises ImageError with one sentence that names the file.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image.load()
            return to_rgb(image)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{path} is not an image, or of a kind that cannot be read, such as a TIFF with floating-point colours; "
            "save it as JPEG or PNG."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS // 1_000_000
        raise ImageError(f"{path} has more than {limit} million pixels; cut it into pieces first.") from None
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder; name an image in it.") from None
    except OSError as error:
        if error.strerror:  # from the operating system, and not from the decoder
            raise ImageError(f"{path} cannot be read ({error.strerror}).") from None
        raise ImageError(f"{path} is damaged or cut off ({error}).") from None
    except (SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise ImageError(f"{path} is damaged or cut off ({error}).") from None


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """A PIL image of any mode as RGB uint8. Raises ImageError for pixels of 32 bits, whose range is unknown."""
    known = image.mode != "I" or image.format in FORMATS_16_BIT
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ImageError("floating-point pixels have no range that is known; save it with 8 or 16 bits.")
    if not known:
        raise ImageError("pixels of 32 bits have no range that is known; save it with 8 or 16 bits.")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def as_rgb(image: Image.Image | np.ndarray | Path | str) -> UInt8[np.ndarray, "h w 3"]:
    """What a caller has (path, PIL image, uint8 array [h w 3] or [h w]) as RGB uint8. Raises ImageError."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    array = np.asarray(image)
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] != 3)
        or not array.size
    ):
        raise ImageError(
            f"an array of dtype {array.dtype} and shape {list(array.shape)} is not an image; give uint8 [h w 3] in RGB."
        )
    return np.repeat(array[..., None], 3, axis=-1) if array.ndim == 2 else array


def find_images(inputs: Iterable[str | Path]) -> list[Path]:
    """The image files that files, folders (not their subfolders) and glob patterns name, each once, in order.

    Raises ImageError when an input names none.
    """
    found: dict[Path, None] = {}
    for given in inputs:
        path = Path(given)
        if os.path.isdir(given):  # which, unlike Path's, is False for a name too long to be one
            matches = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not matches:
                raise ImageError(f"the folder {path} holds no images ({', '.join(SUFFIXES)}).")
        elif os.path.exists(given):
            matches = [path]
        else:
            matches = sorted(Path(name) for name in glob.glob(str(given), recursive=True) if not os.path.isdir(name))
            if not matches:
                raise ImageError(f"{given} does not exist.")
        found.update(dict.fromkeys(matches))
    return list(found)
