"""Masks of regions as users have them, to bool arrays: arrays, index PNGs, COCO's run lengths (SAM's too)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gla_jax.images.reading import opened
from gla_jax.support.arrays import Bool
from gla_jax.support.errors import ImageError
from gla_jax.support.files import read_json
from gla_jax.support.places import is_file, is_remote, place

Masks = str | Path | Iterable[Bool[np.ndarray, "h w"] | Mapping[str, Any]]
WAY_OUT = "give bool arrays [h w], the path of an index PNG, or COCO's run lengths"


def read_masks(source: Masks, size: tuple[int, int]) -> Iterator[Bool[np.ndarray, "h w"]]:
    """The masks of an image of size (h, w), one after the other; all but index PNGs are checked before the first.

    source: bool arrays or COCO's {"size", "counts"}, alone or as "segmentation" of a dict; the path of a .json file
    with a list of the latter, or of an index PNG, where every value but 0 is a mask. Raises ImageError.
    """
    where = ""
    if isinstance(source, str | Path) or is_remote(source):
        path = place(source)
        if path.suffix.lower() != ".json":
            return _of_index_png(path, size)
        where = f" of {path}"
        source = read_json(path, "the file of masks", "give a list of COCO's run lengths", ImageError)
        if not isinstance(source, list):
            raise ImageError(f"the masks in {path} are not a list; give a list of COCO's run lengths.")
    if isinstance(source, Mapping) or not isinstance(source, Iterable) or getattr(source, "ndim", 3) < 3:
        raise ImageError(f"the masks are {type(source).__name__}, not a list of masks; {WAY_OUT}.")
    return iter([_as_mask(mask, f"mask {number}{where}", size) for number, mask in enumerate(source, 1)])


def masks_of(folder: Path, name: str) -> Path:
    """The file of an image's masks in a folder, NAME.png or NAME.json. Raises ImageError, also for both."""
    there = [path for path in (folder / f"{name}{ending}" for ending in (".png", ".json")) if is_file(path)]
    if len(there) > 1:
        raise ImageError(f"{folder} has both {name}.png and {name}.json; leave the one whose masks count.")
    if not there:
        raise ImageError(f"{folder} has neither {name}.png nor {name}.json; put the masks of every image there.")
    return there[0]


def _as_mask(mask: Any, name: str, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    if isinstance(mask, Mapping) and "segmentation" in mask:  # as SAM's generator and COCO's annotations have it
        mask = mask["segmentation"]
    if isinstance(mask, Mapping):
        mask = from_rle(mask, name, size)
    mask = np.asarray(mask) if hasattr(mask, "__array__") else mask  # of JAX or PyTorch
    if not isinstance(mask, np.ndarray) or mask.dtype != bool:
        raise ImageError(f"{name} is of type {getattr(mask, 'dtype', type(mask).__name__)}; {WAY_OUT}.")
    _check_size(mask.shape, name, size)
    return mask


def _check_size(shape: Sequence[int], name: str, size: tuple[int, int]) -> None:
    if tuple(shape) != size:
        own, expected = (" x ".join(map(str, sides)) for sides in (shape, size))
        raise ImageError(f"{name} has {own} pixels, the image {expected}; give masks of the image as it is read.")


def _of_index_png(path: Path, size: tuple[int, int]) -> Iterator[Bool[np.ndarray, "h w"]]:
    with opened(path) as picture:
        if picture.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise ImageError(f"it has colours ({picture.mode}); give an index PNG, one number a mask.")
        index = np.asarray(picture)
    _check_size(index.shape, str(path), size)
    return (index == value for value in np.unique(index) if value)


def from_rle(rle: Mapping[str, Any], name: str, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """A mask of size (h, w) from COCO's run lengths {"size": [h, w], "counts": text or numbers}: columns, 0 first.

    name: of the mask in messages. Raises ImageError. Source: cocoapi, maskApi.c, rleFrString.
    """
    damaged = ImageError(f"the run lengths of {name} are damaged; {WAY_OUT}.")
    try:
        shape, counts = tuple(map(int, rle["size"])), rle["counts"]
        counts = _counts_of_text(counts) if isinstance(counts, str | bytes) else list(map(int, counts))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise damaged from None
    _check_size(shape, name, size)
    if min(counts, default=-1) < 0 or sum(counts) != size[0] * size[1]:
        raise damaged
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T


def _counts_of_text(text: str | bytes) -> list[int]:
    """Numbers of 5 bits a character, the lowest first; from the fourth on less the last but one."""
    characters = iter(text.encode() if isinstance(text, str) else text)
    counts: list[int] = []
    for first in characters:
        bits, value, shift = first - 48, 0, 0
        while True:
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                break
            bits = next(characters, 48) - 48
        value -= (bits & 16) << (shift - 4)  # the sign
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts
