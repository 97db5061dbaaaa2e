"""Image files to RGB uint8: the one reader of every command, with one guard around Pillow."""

import glob
import io
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gla_jax.support.arrays import UInt8
from gla_jax.support.errors import ImageError, UserError
from gla_jax.support.places import content_of, is_folder, is_remote, is_url, objects_below, place
from gla_jax.support.web import is_web

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".avif", ".jp2", ".j2k",
)  # fmt: skip
STRIP_PIXELS = 2**20
MAX_JPEG2000_HEADER = 2**24
MAX_LOOKED_INTO = 1000  # subfolders, for a word on what is skipped: a search of the whole disk takes too long
MAX_FILE_BYTES = 2**30  # Pillow reads WebP and AVIF files whole before it knows their size in pixels
GREY_16_BITS = ("PNG", "PPM", "TIFF", "JPEG2000", None)  # None: made by a program; a FITS file's may be negative
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES, PLANES, SAMPLE_FORMAT = 258, 262, 277, 284, 339  # TIFF tags
WHITE_IS_ZERO, PLANE_BY_PLANE, SIGNED = 0, 2, 2  # values of the last three


def read_image(source: Path | str | bytes, name: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB uint8: turned as its EXIF says, 16 bits reduced to 8, transparency laid over white.

    source: a path, a URL of a store or an https:// address, or the content of a file, which `name` names in messages.
    Raises ImageError.
    """
    with opened(source, name) as image:
        return to_rgb(image)


@contextmanager
def opened(
    source: Path | str | bytes, name: str | None = None, error: type[UserError] = ImageError
) -> Iterator[Image.Image]:
    """A PIL image that is not decoded yet. Every fault in the block becomes an `error` that names the file."""
    name, content = name or str(source), source
    if is_url(source):  # from Python
        source = place(source)
    if is_remote(source):
        source = _fetched(source, name, error)
    if isinstance(source, bytes):
        content = io.BytesIO(source)
    elif fault := _file_fault(source):
        raise error(f"{name} {fault}.")
    with _guard(name, error), Image.open(content) as image:
        # Checked here too: between one and two times the limit Pillow only warns.
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        if image.format == "EPS":  # Pillow would run Ghostscript on the file
            raise UnidentifiedImageError
        yield image


def _fetched(path: Path, name: str, error: type[UserError]) -> bytes:
    try:
        content = content_of(path, MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise error(f"{name} does not exist.") from None
    except OSError as fault:
        raise error(f"{name} cannot be read ({fault.strerror or fault}).") from None
    if len(content) > MAX_FILE_BYTES:
        raise error(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB; save the image in a smaller file.")
    return content


def _file_fault(path: Path | str) -> str | None:
    """Say why a path is not opened: only regular files of bounded size are; a pipe would be waited for without end."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the path
        return f"cannot be read ({getattr(fault, 'strerror', fault)})"
    if stat.S_ISDIR(status.st_mode):
        return "is a folder; name an image in it"
    if not stat.S_ISREG(status.st_mode):
        return "is a pipe, a socket or a device, and never opened; name an image file"
    if status.st_size > MAX_FILE_BYTES:
        return f"is larger than {MAX_FILE_BYTES >> 20} MiB; save the image in a smaller file"
    return None


@contextmanager
def _guard(name: str, error: type[UserError] = ImageError) -> Iterator[None]:
    try:
        yield
    except ImageError as fault:
        raise error(f"{name}: {fault}") from None
    except UserError:
        raise
    except Exception as fault:  # on damaged files Pillow's decoders raise nearly every kind
        match fault:
            case UnidentifiedImageError():
                reason = (
                    "cannot be read as an image: it is not an image, or of a kind that is not supported, such as a "
                )
                reason += "TIFF with floating-point colours; save it as JPEG or PNG"
            case Image.DecompressionBombError() | Image.DecompressionBombWarning():
                reason = f"has more than {Image.MAX_IMAGE_PIXELS // 1_000_000} million pixels; cut it into pieces first"
            case MemoryError():
                reason = "needs more memory than there is, or is damaged"
            case OSError(strerror=str(system)):  # from the operating system, not from a decoder
                reason = f"cannot be read ({system})"
            case _:
                reason = f"is damaged or cut off ({str(fault).partition(chr(10))[0] or type(fault).__name__})"
        raise error(f"{name} {reason}.") from None


def grey_step(image: Image.Image) -> int:
    """Factor by which Pillow scales the grey values of a file of 2 or 4 bits; 1 for others and once it is decoded."""
    mode = image.tile[0][3] if getattr(image, "tile", None) else None
    return {"L;2": 85, "L;4": 17}.get(mode[0] if isinstance(mode, tuple) else mode, 1)


def _unreadable(image: Image.Image) -> str | None:
    """Say why the pixels of an image have no range that is known, or would be read wrongly by Pillow without a word."""
    tags, known = getattr(image, "tag_v2", {}), "have no range that is known; save it with 8 or 16 bits"
    apart = tags.get(SAMPLES, 1) > 1 and tags.get(PLANES) == PLANE_BY_PLANE
    if image.mode == "F":
        return f"floating-point pixels {known}"
    if SIGNED in tags.get(SAMPLE_FORMAT, ()) and max(tags.get(BITS_PER_SAMPLE, (1,))) < 32:
        return f"signed pixels {known}"
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # there they have 16 bits
        return f"pixels of 32 bits {known}"
    if image.mode.startswith("I;16") and image.format not in GREY_16_BITS:
        return f"pixels of a {image.format} file {known}"
    if (apart and max(tags.get(BITS_PER_SAMPLE, (1,))) > 8) or _bits_of_jpeg2000(image) > 8:
        return "colours of 16 bits are not supported in this kind of file; save it as PNG"
    return None


def _bits_of_jpeg2000(image: Image.Image) -> int:
    """Bits of a colour of a JPEG 2000 file that is not decoded yet; 8 for grey, which is read rightly, and others."""
    if image.format != "JPEG2000" or image.mode.startswith("I") or not image.tile:
        return 8
    place = image.fp.tell()
    image.fp.seek(0)
    _, _, header = image.fp.read(MAX_JPEG2000_HEADER).partition(b"\xff\x4f\xff\x51")  # of the code stream
    image.fp.seek(place)
    return (header[38] & 127) + 1


def to_rgb(image: Image.Image, upright: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """A PIL image of any mode as RGB uint8, turned as its EXIF says if upright.

    Raises ImageError for an empty image and for pixels whose range is unknown: floating-point, signed and 32-bit ones.
    """
    if min(image.size) < 1:
        raise ImageError(f"an image of {image.width} x {image.height} pixels is empty.")
    if fault := _unreadable(image):
        raise ImageError(f"{fault}.")
    tags, clear = getattr(image, "tag_v2", {}), image.info.get("transparency")
    # Pillow scales the pixels alone.
    if isinstance(clear, int):
        image.info["transparency"] = clear * grey_step(image)
    elif isinstance(clear, tuple) and getattr(image, "tile", None) and image.tile[0][3] == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in clear)
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        most = 4095 if tags.get(BITS_PER_SAMPLE) == (12,) else 65535
        wide, levels = np.asarray(image), np.arange(most + 1)
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts such files of up to 8 bits alone
            levels = levels[::-1]
        grey = ((levels * 255 + most // 2) // most).astype(np.uint8)[wide]
        grey[wide == image.info.get("transparency", -1)] = 255
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(STRIP_PIXELS // image.width, 1)  # at once Pillow would hold the pixels three times
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


def as_rgb(image: Image.Image | np.ndarray | Path | str) -> UInt8[np.ndarray, "h w 3"]:
    """A path, a PIL image or a uint8 array [h w 3] or [h w] as RGB uint8. Raises ImageError."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        with _guard(getattr(image, "filename", None) or "the image"):
            return to_rgb(image)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.shape[2:] not in ((), (3,)) or array.ndim < 2 or not array.size:
        raise ImageError(
            f"an array of dtype {array.dtype} and shape {list(array.shape)} is not an image; give uint8 [h w 3] in RGB."
        )
    return np.repeat(array[..., None], 3, axis=-1) if array.ndim == 2 else array


def find_images(inputs: Iterable[str | Path], recursive: bool = False) -> list[Path]:
    """The image files that files, folders and glob patterns name, each once, in order.

    Images in subfolders count if recursive, and are mentioned by a warning otherwise. Raises ImageError when an input
    names no image or cannot be read.
    """
    images: dict[Path, None] = {}
    for entry in map(_place_of, inputs):
        if is_folder(entry):
            try:
                files = files_below(place(entry), None if recursive else MAX_LOOKED_INTO)
                below = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
            except OSError as fault:
                raise ImageError(f"the folder {entry} cannot be read ({fault.strerror}).") from None
            matches = [path for path in below if recursive or path.parent == place(entry)]
            skipped = f"{entry} has images in subfolders"
            if not below:
                raise ImageError(f"the folder {entry} holds no images ({', '.join(SUFFIXES)}).")
            if not matches:
                raise ImageError(f"{skipped} and none beside them; add --recursive.")
            if len(matches) < len(below):
                warnings.warn(f"{skipped}, which are skipped; add --recursive", stacklevel=2)
        elif is_web(entry):  # the only question is the reading itself
            matches = [entry]
        elif entry.exists() if is_remote(entry) else os.path.exists(entry):
            matches = [place(entry)]
        elif is_remote(entry):
            raise ImageError(f"{entry} does not exist.")
        else:
            matches = sorted(Path(name) for name in glob.glob(str(entry), recursive=True) if not os.path.isdir(name))
            if not matches:
                raise ImageError(f"{entry} does not exist.")
        images.update(dict.fromkeys(matches))
    return list(images)


def _place_of(entry: str | Path) -> str | Path:
    """An input as it is, or as the object that stands for a URL."""
    return place(entry) if is_url(entry) else entry


def files_below(folder: Path, folders: int | None = None) -> Iterator[Path]:
    """Every file in a folder and below it. A subfolder that cannot be read is skipped with a warning.

    Links to folders are followed; each folder is entered once, so that links which form a loop come to an end.
    folders: how many are entered at most.
    """
    if is_remote(folder):
        yield from objects_below(folder)
        return
    entered: set[tuple[int, int]] = set()
    waiting, links = [str(folder)], []
    while (waiting or links) and len(entered) != folders:
        path = (waiting or links).pop()  # links last: a file that links lead to as well has its own path
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as fault:
            if not entered:
                raise
            warnings.warn(f"{path} cannot be read ({fault.strerror}) and is skipped", stacklevel=2)
            continue
        entered.add((status.st_dev, status.st_ino))
        for entry in entries:
            linked = entry.is_symlink()
            if os.path.isdir(entry.path) if linked else entry.is_dir():
                (links if linked else waiting).append(entry.path)
            else:
                yield Path(entry.path)
