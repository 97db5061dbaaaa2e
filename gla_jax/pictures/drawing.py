"""Label maps as pictures: index and palette PNGs, an overlay with a legend, and panels side by side."""

import colorsys
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from gla_jax.images.windows import WindowGrid
from gla_jax.support.arrays import Bool, Integer, UInt8

INK, PAPER, QUIET = (28, 30, 34), (255, 255, 255), (104, 110, 120)
# Colours that stay apart from each other and from most photos; further classes take the golden angle around the wheel.
FIRST_COLOURS = (
    (230, 75, 53), (50, 115, 220), (60, 170, 95), (250, 185, 40), (140, 85, 200), (30, 185, 195), (225, 95, 165),
    (150, 105, 60), (130, 195, 55), (85, 95, 115), (245, 130, 40), (20, 125, 125), (180, 160, 235), (165, 35, 85),
    (205, 185, 105), (35, 60, 140),
)  # fmt: skip
RED, BLUE = FIRST_COLOURS[:2]
# What the scenes of tiny-world are painted with: grounds, and cloths of a colour, each with one of the marks.
GROUND_COLOURS = {
    "sand": (206, 186, 140), "water": (70, 128, 146), "brick": (152, 84, 66), "grass": (98, 128, 58),
    "wood": (120, 84, 56), "gravel": (128, 128, 126),
}  # fmt: skip
CLOTH_COLOURS = {
    "red": (200, 40, 44), "orange": (238, 136, 36), "yellow": (236, 216, 56), "green": (36, 170, 84),
    "blue": (44, 78, 208), "purple": (146, 62, 184),
}  # fmt: skip
# Cloths of one colour differ by their marks: a share of black (below 0) or white (above) tells their classes apart.
MARK_SHADES = {"stripes": 0.22, "rings": 0.42, "checks": -0.42, "crosses": 0.0, "dots": 0.62, "zigzags": -0.22}
OPACITY = 0.55
PANEL_WIDTH, PANEL_HEIGHT, NARROWEST = 460, 620, 440  # pixels; a narrow image has white beside it


def palette(classes: Sequence[str]) -> UInt8[np.ndarray, "L 3"]:
    """One RGB colour a class, the same in every picture and file.

    Classes of tiny-world among themselves have their true colours; of others the colours follow their order alone.
    """
    drawn = [drawn_colour(name) for name in classes]
    if all(drawn):
        return np.array(drawn, np.uint8).reshape(-1, 3)
    count = len(classes)
    colours = list(FIRST_COLOURS[:count])
    for index in range(len(colours), count):
        hue, band = (index * 0.61803398875) % 1.0, (index // 16) % 3
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.75, 0.5, 0.9)[band], (0.9, 0.75, 0.6)[band])
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return np.array(colours, np.uint8).reshape(count, 3)


def drawn_colour(name: str) -> tuple[int, int, int] | None:
    """The true colour of a class of tiny-world, None for any other."""
    cloth = re.fullmatch(r"a (\w+) cloth with (\w+)", name)
    if not cloth or cloth[1] not in CLOTH_COLOURS or cloth[2] not in MARK_SHADES:
        return GROUND_COLOURS.get(name)
    shade = MARK_SHADES[cloth[2]]
    end = 255 if shade > 0 else 0
    red, green, blue = (round(part + abs(shade) * (end - part)) for part in CLOTH_COLOURS[cloth[1]])
    return red, green, blue


def index_image(labels: Integer[np.ndarray, "h w"], classes: int) -> Image.Image:
    """Labels as a grey PNG whose pixels are the class indices: 8 bits, 16 for more than 256 classes."""
    return Image.fromarray(labels.astype(np.uint8 if classes <= 256 else np.uint16))


def palette_image(labels: Integer[np.ndarray, "h w"], classes: Sequence[str]) -> Image.Image:
    """Labels in colours: a palette PNG whose pixels are still the indices; RGB above 256 classes."""
    colours = palette(classes)
    if len(classes) > 256:
        return Image.fromarray(colours[labels])
    # Not by convert(), which may reorder a palette: ours goes on the untouched indices.
    image = Image.frombytes("P", labels.shape[::-1], labels.astype(np.uint8).tobytes())
    image.putpalette(colours.tobytes())
    return image


def outlines(labels: Integer[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """True on the first pixel of a region, to the right of or below another one."""
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return edge


def blend(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Integer[np.ndarray, "h w"],
    colours: UInt8[np.ndarray, "L 3"],
    plain: int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image under coloured regions with light outlines.

    Args:
        image: RGB.
        labels: of its pixels.
        colours: of the labels.
        plain: the label whose pixels stay as they are, such as a background's.
    """
    grey = image.astype(np.float32).mean(-1, keepdims=True)
    shown = (1 - OPACITY) * (0.5 * image + 0.5 * grey) + OPACITY * colours[labels].astype(np.float32)
    if plain is not None:
        shown = np.where((labels == plain)[..., None], image, shown)
    edge = outlines(labels)
    shown[edge] = 0.25 * shown[edge] + 0.75 * 255
    return shown.round().astype(np.uint8)


def shown_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of a panel for an image: as wide as a panel, unless that is too high."""
    scale = min(PANEL_WIDTH / width, PANEL_HEIGHT / height)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def scaled(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The image brought to a size (height, width) for the eye."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def pale(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image in light greys, so that colours over it carry the message."""
    grey = 95 + image.astype(np.float32).mean(-1, keepdims=True) * (160 / 255)
    return np.repeat(grey.round().astype(np.uint8), 3, axis=-1)


def flat(labels: Integer[np.ndarray, "h w"], colours: UInt8[np.ndarray, "L 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The regions alone, each in its class's colour, with white outlines."""
    shown = colours[labels]
    shown[outlines(labels)] = 255
    return shown


def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow, `size` pixels high."""
    return ImageFont.load_default(size)


@dataclass(frozen=True)
class Entry:
    """One line of a legend."""

    name: str
    colour: tuple[int, int, int]
    note: str = ""


def legend(entries: Sequence[Entry], width: int, size: int) -> Image.Image:
    """Swatches and names in as many columns as fit `width`; size: of the letters in pixels."""
    letters = font(size)
    gap, swatch = size // 2, round(size * 0.95)
    # Names are cut before anything is measured: the time of a very long one would grow with its square.
    room = max(width - swatch - gap - gap // 2, 0)
    notes = [letters.getlength(f"  {entry.note}") if entry.note else 0 for entry in entries]
    names = [clip_text(entry.name, letters, room - note) for entry, note in zip(entries, notes, strict=True)]
    widths = [letters.getlength(name) + note for name, note in zip(names, notes, strict=True)]
    cell = int(max(widths, default=0)) + swatch + 3 * gap
    columns = max(1, min(len(entries), width // cell))
    rows = -(-len(entries) // columns)
    height = size + gap
    image = Image.new("RGB", (width, rows * height + gap), PAPER)
    draw = ImageDraw.Draw(image)
    for index, (entry, name) in enumerate(zip(entries, names, strict=True)):
        left, top = (index // rows) * cell + gap // 2, (index % rows) * height + gap // 2
        draw.rounded_rectangle(
            (left, top + 1, left + swatch, top + 1 + swatch),
            swatch // 4,
            entry.colour,
            QUIET if entry.colour == PAPER else None,
        )
        start, middle = left + swatch + gap, top + size // 2 + 1
        draw.text((start, middle), name, INK, letters, "lm")
        draw.text((start + letters.getlength(f"{name}  "), middle), entry.note, QUIET, letters, "lm")
    return image


def clip_text(text: str, letters: ImageFont.FreeTypeFont, width: float) -> str:
    """The text in one line, cut with an ellipsis where it is wider than `width` pixels."""
    start = " ".join(text[: max(int(width), 0) + 1].split())  # no letter is narrower than a pixel
    if len(text) <= width + 1 and letters.getlength(start) <= width:
        return start
    fitting = bisect_right(range(len(start) + 1), width, key=lambda count: letters.getlength(f"{start[:count]}..."))
    return f"{start[: max(fitting - 1, 0)]}..."


def legend_entries(labels: Integer[np.ndarray, "h w"], classes: Sequence[str], plain: int | None = None) -> list[Entry]:
    """The classes that occur, largest first, with their share of the pixels; plain: the one without a colour."""
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    colours = palette(classes)
    if plain is not None:
        colours[plain] = PAPER
    order = sorted(np.flatnonzero(counts), key=lambda index: -counts[index])
    return [
        Entry(classes[index], tuple(map(int, colours[index])), f"{counts[index] / labels.size:.1%}") for index in order
    ]


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Integer[np.ndarray, "h w"],
    classes: Sequence[str],
    plain: int | None = None,
) -> Image.Image:
    """The image with coloured regions, and below it a legend of the classes that occur with their shares.

    Args:
        image: RGB.
        labels: of its pixels.
        classes: names of the labels.
        plain: the label whose pixels stay as they are.
    """
    shown = Image.fromarray(blend(image, labels, palette(classes), plain))
    width = max(shown.width, 320)
    below = legend(legend_entries(labels, classes, plain), width - 16, letter_size(width))
    return stack([centred(shown, width), ImageOps.expand(below, 8, PAPER)])


def letter_size(width: int) -> int:
    """Letters that stay readable when a picture of this width is shown on a page."""
    return int(np.clip(width / 36, 13, 40))


def centred(image: Image.Image, width: int) -> Image.Image:
    """The image in the middle of a white strip of this width."""
    return ImageOps.pad(image, (width, image.height), color=PAPER)


def stack(images: Sequence[Image.Image]) -> Image.Image:
    """Images below each other on white."""
    page = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), PAPER)
    top = 0
    for image in images:
        page.paste(image, (0, top))
        top += image.height
    return page


def window_edges(grid: WindowGrid) -> tuple[list[int], list[int]]:
    """Rows and columns of the resized image where a window begins or ends, its sides left out."""
    axes = ((grid.row_starts, grid.height), (grid.column_starts, grid.width))
    rows, columns = (
        sorted({edge for start in starts for edge in (start, start + grid.crop) if 0 < edge < length})
        for starts, length in axes
    )
    return rows, columns


def with_window_grid(image: UInt8[np.ndarray, "h w 3"], grid: WindowGrid) -> UInt8[np.ndarray, "h w 3"]:
    """The image with the edges of all windows as thin dashed lines; the grid may be of another size than the image."""
    shown = image.copy()
    for axis, (edges, length) in enumerate(zip(window_edges(grid), (grid.height, grid.width), strict=True)):
        along = np.arange(image.shape[1 - axis]) % 12
        for edge in edges:
            place = min(round(edge * image.shape[axis] / length), image.shape[axis] - 1)
            line = shown[place] if axis == 0 else shown[:, place]
            line[along < 7] = 255
            line[(along >= 7) & (along < 9)] = 40
    return shown


@dataclass(frozen=True)
class Panel:
    """One picture of a row: pixels, a title and the lines of a note below it."""

    pixels: UInt8[np.ndarray, "h w 3"]
    title: str
    note: str = ""


def panels(row: Sequence[Panel], entries: Sequence[Entry]) -> Image.Image:
    """Panels side by side with titles and notes, and one legend for all; panels have one height."""
    gap, size = 14, letter_size(2 * row[0].pixels.shape[1])
    large, small = font(size), font(round(size * 0.8))
    width = sum(panel.pixels.shape[1] for panel in row) + gap * (len(row) + 1)
    lines = max(panel.note.count("\n") + 1 for panel in row)
    head, foot = round(size * 1.9), round(size * (0.6 + 1.1 * lines))
    height = row[0].pixels.shape[0]
    page = Image.new("RGB", (width, head + height + foot), PAPER)
    draw = ImageDraw.Draw(page)
    left = gap
    for panel in row:
        page.paste(Image.fromarray(panel.pixels), (left, head))
        draw.text((left, head // 2), panel.title, INK, large, "lm")
        for line, text in enumerate(panel.note.split("\n")):
            draw.text((left, head + height + round(size * (0.85 + 1.1 * line))), text, QUIET, small, "lm")
        left += panel.pixels.shape[1] + gap
    return stack([page, ImageOps.expand(legend(entries, width - 2 * gap, round(size * 0.85)), gap, PAPER)])
