"""A GeoTIFF through the segmenter in blocks: read when needed, written when done, resumed where it was stopped.

Every block has a global buffer of its own. Labels inside a block equal those of the block's region alone, so an edge of
blocks can show where an edge of windows cannot; run with other --block sizes tells how much.
"""

import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gla_jax.config import settings_as_dict
from gla_jax.geo.blocks import Area, Block, cut_blocks, scale_of
from gla_jax.geo.seams import Seams
from gla_jax.outputs.files import claim_folder, question_settings, taken_message, writing_to
from gla_jax.pictures.drawing import palette
from gla_jax.predict.predict import Question, Ready, label_images
from gla_jax.segmenter import Segmenter
from gla_jax.support.arrays import Bool, Integer, UInt8
from gla_jax.support.batches import Stopwatch, read_ahead
from gla_jax.support.errors import ImageError, UserError, first_line
from gla_jax.support.files import folder_lock, remove_leftovers, unfinished, write_json, write_png
from gla_jax.support.places import content_of, is_remote, make_folder, on_disk, same_file, stamp, written_on_disk
from gla_jax.support.progress import counter
from gla_jax.support.web import is_web
from gla_jax.text.prompts import Classes, with_background

if TYPE_CHECKING:
    import rasterio

OVERVIEWS = (2, 4, 8, 16, 32)
MIN_OVERVIEW = 256  # pixels of the short side of the smallest overview
TILE = 256


@dataclass(frozen=True)
class RasterTask:
    """Everything that decides the labels of a raster.

    bands: the numbers of red, green and blue, from 1; value_range: the values that become 0 and 255, for bands that are
    not 8 bits; area: the part to label, None for all; block: side in raster pixels; vectors: also write polygons.
    """

    segmenter: Segmenter
    classes: Classes
    background: str | None = None
    bands: Sequence[int] = (1, 2, 3)
    value_range: tuple[float, float] | None = None
    area: Area | None = None
    block: int = 1024
    vectors: bool = False
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self):
        names, _, _ = with_background(self.classes, self.background, self.segmenter.config.background_rules)
        object.__setattr__(self, "names", names)

    def settings(self, source: Path) -> dict[str, Any]:
        """A run in the same folder must agree on all of it."""
        size, modified = stamp(source)
        return question_settings("raster", self.segmenter, self.classes, self.background) | {
            "raster": {"path": str(source), "bytes": size, "modified": modified},
            "bands": list(self.bands),
            "range": self.value_range and list(self.value_range),
            "area": self.area and [self.area.row, self.area.column, self.area.height, self.area.width],
            "block": self.block,
        }


def check_packages(vectors: bool) -> None:
    """Raise UserError when a package that rasters need is not installed."""
    for name in ("rasterio", *(("pyogrio", "shapely") if vectors else ())):
        if not find_spec(name):
            raise UserError(f'rasters need {name}; install it with pip install "gla-jax[geo]".')


def segment_raster(task: RasterTask, source: Path, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Label a GeoTIFF; writes labels.tif, results.json and, with vectors, regions.gpkg into an existing folder.

    Both may be on object stores: a block's pixels are then fetched when it is read, and its labels are an object.

    Args:
        task: what to do with every block.
        source: a GeoTIFF; pixels that its mask or nodata value leaves out have no label.
        folder: a run that was stopped goes on there.
        say: takes sentences for the user.

    Returns the content of results.json. Raises ImageError for a raster that cannot be read, UserError when another run
    holds the folder or has other settings, or the disk is full.
    """
    with (
        _without_warnings(),
        on_disk(source) if is_web(source) else nullcontext(source) as there,
        _opened(there, source, task.bands, task.value_range) as raster,
        folder_lock(folder, taken_message(folder)),
    ):
        if same_file(source, folder / "labels.tif"):
            raise UserError(f"{source} is the file that the labels go to; choose another --out.")
        whole = Area(0, 0, raster.height, raster.width)
        area = task.area or whole
        if area.row + area.height > whole.height or area.column + area.width > whole.width:
            raise UserError(f"the window reaches beyond the {whole.width} x {whole.height} pixels of {source}.")
        blocks = cut_blocks(area, whole, task.block, task.segmenter.config)
        # Labelled images stand for blocks: their scale is that of a whole block, also at the edges of the raster.
        _, question = task.segmenter.question(task.classes, task.background)
        if raster.crs is None:
            say(f"{source} does not say where it lies on the ground, and neither will its labels.")
        remove_leftovers(folder, min_age=0)
        parts = folder / "blocks"
        claim_folder(folder, task.settings(source), parts.exists())
        make_folder(parts)
        there = {path.name for path in parts.glob("*.png")}
        left = [block for block in blocks if f"{block.name}.png" not in there]
        if len(left) < len(blocks):
            say(f"{len(blocks) - len(left)} of {len(blocks)} blocks were done before in {folder}; the rest follows.")
        with counter("blocks") as advance:
            advance(len(blocks) - len(left), len(blocks))
            for number, (block, labels) in enumerate(_labelled(task, question, raster, source, left), 1):
                with writing_to(folder):
                    write_png(parts / f"{block.name}.png", Image.fromarray(labels))
                advance(len(blocks) - len(left) + number, len(blocks))
        with writing_to(folder):
            with written_on_disk(folder) as home:
                counts, seams = _assemble(task, raster, area, blocks, parts, home / "labels.tif")
                if task.vectors:
                    from gla_jax.geo.vectors import write_regions

                    write_regions(home / "labels.tif", task.names, home / "regions.gpkg")
            document = _document(task, source, area, len(blocks), counts) | {"edges": seams}
            write_json(folder / "results.json", document)
        if not document["pixels"]:
            say(
                f"no pixel of {source} here holds data, so none has a label; see its nodata value, --bands and --range."
            )
    return document


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Leave out the warnings of rasterio and pyogrio of a missing place on the ground, which segment_raster names."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        warnings.filterwarnings("ignore", "'crs' was not provided")
        yield


@contextmanager
def _opened(
    place: Path, source: Path, bands: Sequence[int], value_range: tuple[float, float] | None
) -> "Iterator[rasterio.DatasetReader]":
    """The raster, with the bands checked; GeoTIFF alone, as other drivers of GDAL may open files and addresses.

    Args:
        place: of the file.
        source: its name in messages.
        bands: red, green and blue, from 1.
        value_range: the values of black and white, None for 8 bits.
    """
    import rasterio
    from rasterio.errors import RasterioError

    # GDAL reads a store through fsspec, with the keys and addresses of every other command, and fetches what it needs.
    where = {"fp": place.path, "opener": place.fs} if is_remote(place) else {"fp": place}
    try:
        raster = rasterio.open(**where, driver="GTiff")
    except RasterioError as error:
        raise ImageError(f"{source} cannot be read as a GeoTIFF ({first_line(error)}); name another file.") from None
    with raster:
        if missing := [band for band in bands if not 1 <= band <= raster.count]:
            count = "1 band" if raster.count == 1 else f"{raster.count} bands"
            raise ImageError(f"{source} has {count} and no band {missing[0]}; name three with --bands, as in 1,1,1.")
        kinds = {raster.dtypes[band - 1] for band in bands}
        if kinds != {"uint8"} and value_range is None:
            raise ImageError(
                f"the bands of {source} are {', '.join(sorted(kinds))}, not 8 bits; say with --range LOW,HIGH which "
                "values are black and white."
            )
        if any(kind.startswith("complex") for kind in kinds):
            raise ImageError(f"the bands of {source} are complex numbers; name others with --bands.")
        yield raster


def _labelled(
    task: RasterTask, question: Question, raster: "rasterio.DatasetReader", source: Path, blocks: Sequence[Block]
) -> Iterator[tuple[Block, Integer[np.ndarray, "h w"]]]:
    """Each block with its labels; the next one is read meanwhile.

    Args:
        task: what to do with every block.
        question: the classes' embeddings.
        raster: opened.
        source: its name in messages.
        blocks: to label.
    """
    scale = scale_of(task.segmenter.config, task.block)
    nodata = _nodata(task)
    dtype = np.uint8 if nodata == 255 else np.uint16

    def read(block: Block) -> tuple[Block, UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
        return block, *_pixels(raster, source, block.region, task)

    # rasterio finds the store of an open raster in the context of the thread that opened it.
    for block, pixels, valid in read_ahead(blocks, partial(copy_context().run, read), threads=1):
        labels = np.full((block.core.height, block.core.width), nodata, dtype)
        core = block.core.within(block.region)
        if valid[core].any():
            short_side = max(round(min(pixels.shape[:2]) * scale), 1)
            settings = {} if task.segmenter.config.windows.short_side is None else {"short_side": short_side}
            model = task.segmenter.with_settings(**settings).model
            ((_, found),) = label_images(model, [Ready(block, model.prepare(pixels))], question, Stopwatch())
            labels[valid[core]] = found.labels[core][valid[core]]
        yield block, labels


def _pixels(
    raster: "rasterio.DatasetReader", source: Path, area: Area, task: RasterTask
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """RGB of an area as 8 bits, and the pixels that hold data."""
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    window = Window(area.column, area.row, area.width, area.height)
    try:
        values = raster.read(list(task.bands), window=window)
        valid = raster.dataset_mask(window=window) > 0
    except RasterioError as error:
        raise ImageError(f"{source} is damaged ({first_line(error)}); name another file.") from None
    if task.value_range is not None:
        low, high = task.value_range
        valid &= np.isfinite(values).all(0)
        shares = (np.nan_to_num(values.astype(np.float64)) - low) / (high - low)
        values = np.round(255 * shares.clip(0, 1)).astype(np.uint8)
    return np.ascontiguousarray(values.transpose(1, 2, 0)), valid


def _nodata(task: RasterTask) -> int:
    return 255 if len(task.names) <= 255 else 65535


def _assemble(
    task: RasterTask, raster: "rasterio.DatasetReader", area: Area, blocks: Sequence[Block], parts: Path, place: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    """Write a GeoTIFF of all blocks, with colours and overviews; returns the pixels of each class, and Seams.document.

    Args:
        task: says names and nodata.
        raster: has the place on the ground.
        area: of the raster, that is labelled.
        blocks: of the area.
        parts: folder of their index PNGs.
        place: the file, on disk.
    """
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.windows import Window

    nodata = _nodata(task)
    profile = {
        "driver": "GTiff",
        "height": area.height,
        "width": area.width,
        "count": 1,
        "dtype": "uint8" if nodata == 255 else "uint16",
        "crs": raster.crs,
        "transform": raster.window_transform(Window(area.column, area.row, area.width, area.height)),
        "nodata": nodata,
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "compress": "deflate",
        "BIGTIFF": "IF_SAFER",
        # Without it the file calls itself grey beside its colour table, and viewers other than GDAL's show it black.
        **({"photometric": "palette"} if nodata == 255 else {}),
    }
    counts = np.zeros(len(task.names), np.int64)
    config = task.segmenter.config
    seams = Seams(area, config.windows, scale_of(config, task.block), nodata)
    beside = unfinished(place)
    try:
        with rasterio.open(beside, "w", **profile) as out:
            for block in blocks:
                with Image.open(io.BytesIO(content_of(parts / f"{block.name}.png"))) as picture:
                    labels = np.asarray(picture).astype(profile["dtype"])
                top, left = block.core.row - area.row, block.core.column - area.column
                out.write(labels, 1, window=Window(left, top, block.core.width, block.core.height))
                counts += np.bincount(labels[labels != nodata], minlength=len(task.names))
                seams.add(block, labels)
            if nodata == 255:
                colours = palette(task.names).tolist()
                out.write_colormap(
                    1, {index: (*colour, 255) for index, colour in enumerate(colours)} | {255: (0, 0, 0, 0)}
                )
            out.update_tags(classes=json.dumps(task.names), software="gla-jax")
        with rasterio.open(beside, "r+") as out:
            short = min(area.height, area.width)
            if factors := [factor for factor in OVERVIEWS if short // factor >= MIN_OVERVIEW]:
                out.build_overviews(factors, Resampling.mode)
        beside.replace(place)
    except rasterio.errors.RasterioError as error:
        raise OSError(f"{place} cannot be written ({first_line(error)})") from error
    finally:
        beside.unlink(missing_ok=True)
    return counts, seams.document()


def _document(task: RasterTask, source: Path, area: Area, blocks: int, counts: np.ndarray) -> dict[str, Any]:
    total = max(int(counts.sum()), 1)
    shares = {name: round(int(count) / total, 6) for name, count in zip(task.names, counts, strict=True) if count}
    return {
        "complete": True,
        "raster": str(source),
        "area": {"row": area.row, "column": area.column, "height": area.height, "width": area.width},
        "blocks": blocks,
        "block": task.block,
        "model": task.segmenter.name,
        "model_hash": task.segmenter.model_hash,
        "classes": list(task.names),
        "nodata": _nodata(task),
        "settings": settings_as_dict(task.segmenter.config) | {"background": task.background},
        "pixels": int(counts.sum()),
        "shares": shares,
    }
