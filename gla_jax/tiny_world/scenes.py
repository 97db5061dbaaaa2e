"""The scenes of tiny-world: textured grounds and large plain cloths that carry their mark only in one or two places.

Most windows that see a part of a cloth do not see its mark, so most windows alone cannot know the cloth's class.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from gla_jax.pictures.drawing import CLOTH_COLOURS
from gla_jax.tiny_world.textures import SIDE, grain, ground_atlas, mark_pattern, pack
from gla_jax.tiny_world.vocabulary import CLASSES, COLOURS, FIRST_CLOTH, GROUNDS, HELD_OUT, MARKS, PAIRS

Split = Literal["train", "test"]
SPLITS = ("train", "test")
DARK, LIGHT = np.array([24, 22, 26], np.float32), np.array([246, 246, 242], np.float32)
INKS = {colour: DARK if sum(rgb) > 380 else LIGHT for colour, rgb in CLOTH_COLOURS.items()}
# Outlines are drawn this much coarser and interpolated: smooth, and cheap enough for fresh scenes at every step.
COARSE = 4
MARK_SIDES = (48, 65)
MARK_TILT = 0.25
TWO_MARKS = 0.3


@dataclass(frozen=True)
class SceneObject:
    """A ground or a cloth of a scene: its class, and for a cloth colour, mark and the marks' boxes (y, x, side)."""

    label: int
    colour: str | None = None
    mark: str | None = None
    mark_boxes: tuple[tuple[int, int, int], ...] = ()

    @property
    def phrase(self) -> str:
        """The class in words."""
        return CLASSES[self.label]


@dataclass(frozen=True)
class Scene:
    """One picture with its truth.

    image uint8 [h w 3] RGB; labels uint8 [h w], index into CLASSES; instances uint8 [h w], index into objects.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    objects: tuple[SceneObject, ...]


def render(seed: int, height: int = 336, width: int = 448, split: Split = "train") -> Scene:
    """The scene of a seed: the same pixels for the same arguments (and the same NumPy).

    Raises ValueError for an unknown split or a size under 64 pixels.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it is one of {', '.join(SPLITS)}")
    if min(height, width) < 64:
        raise ValueError(f"a scene of {height}x{width} pixels has no room for a mark; use at least 64x64")
    rng = np.random.default_rng([SPLITS.index(split), seed])
    grounds = rng.choice(len(GROUNDS), rng.integers(1, 3), replace=False)
    instances = ground_map(rng, len(grounds), height, width)
    outlines = cloth_outlines(rng, height, width)
    for index, inside in enumerate(outlines):
        instances[inside] = len(grounds) + index
    pairs = draw_pairs(rng, split, len(outlines))
    cloths = [place_marks(rng, instances == len(grounds) + index, *pair) for index, pair in enumerate(pairs)]
    objects = (*(SceneObject(int(ground)) for ground in grounds), *cloths)
    labels = np.array([thing.label for thing in objects], np.uint8)[instances]
    return Scene(paint(rng, instances, objects), labels, instances, objects)


def draw_pairs(rng: np.random.Generator, split: Split, count: int) -> list[tuple[str, str]]:
    """Colour and mark of the cloths of a scene: colours differ; held-out pairs occur in the test split alone."""
    pairs = []
    for colour in rng.permutation(COLOURS)[:count]:
        marks = [mark for mark in MARKS if split == "test" or (colour, mark) not in HELD_OUT]
        pairs.append((str(colour), str(rng.choice(marks))))
    return pairs


def enlarge(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    """A coarse field bilinearly on [height width], float32.

    Not as two matrix products: their threads would fight those of the training for the cores.
    """
    field = coarse.astype(np.float32)
    for length in (width, height):
        position = np.clip((np.arange(length) + 0.5) * field.shape[1] / length - 0.5, 0, field.shape[1] - 1)
        low = np.minimum(position.astype(int), field.shape[1] - 2)
        share = (position - low).astype(np.float32)[:, None]
        columns = np.ascontiguousarray(field.T)
        field = columns[low] * (1 - share) + columns[low + 1] * share
    return field


def coarse_axes(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates of the coarse raster, y [h 1] and x [1 w]."""
    rows, columns = -(-height // COARSE), -(-width // COARSE)
    y = (np.arange(rows) + 0.5) * height / rows
    x = (np.arange(columns) + 0.5) * width / columns
    return y[:, None], x[None]


def ground_map(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """The ground of every pixel, [h w] uint8: one, or two that meet in a wavy line through the middle."""
    if count == 1:
        return np.zeros((height, width), np.uint8)
    y, x = coarse_axes(height, width)
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    y, x = y - height * rng.uniform(0.35, 0.65), x - width * rng.uniform(0.35, 0.65)
    across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    line = rng.uniform(5, 25) * np.sin(along / rng.uniform(20, 60) + phase)
    return (enlarge(across - line, height, width) > 0).astype(np.uint8)


def cloth_outlines(rng: np.random.Generator, height: int, width: int) -> list[np.ndarray]:
    """2 to 4 outlines as [h w] bool masks, one to a cell of a rough partition of the image; they may overlap."""
    count = int(rng.choice([2, 3, 4], p=[0.4, 0.45, 0.15]))
    rows = {2: [2], 3: [[3], [1, 2], [2, 1]][rng.integers(3)], 4: [2, 2]}[count]
    centres, sizes = [], []
    for row, columns in enumerate(rows):
        for column in range(columns):
            centres.append(((row + 0.5) / len(rows), (column + 0.5) / columns))
            sizes.append((0.5 / len(rows), 0.5 / columns))
    if rng.random() < 0.5:
        centres = [(y, 1 - x) for y, x in centres]
    coarse = coarse_axes(height, width)
    outlines = []
    for centre, size in zip(centres, sizes, strict=True):
        middle = np.array([height, width]) * (np.array(centre) + rng.normal(0, 0.03, 2))
        reach = np.array([height, width]) * np.array(size) * rng.uniform(0.86, 1.08, 2)
        outlines.append(enlarge(outline(rng, coarse, middle, reach), height, width) > 0)
    return outlines


def outline(
    rng: np.random.Generator, axes: tuple[np.ndarray, np.ndarray], middle: np.ndarray, reach: np.ndarray
) -> np.ndarray:
    """A star-shaped outline as a coarse field, positive inside: waves, a polygon or a rounded box around middle."""
    v, u = (axes[0] - middle[0]) / reach[0], (axes[1] - middle[1]) / reach[1]
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    kind = rng.integers(3)
    if kind == 0:
        waves = sum(rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 7))
        return 0.95 + waves - radius
    if kind == 1:
        corners = np.sort(rng.uniform(-np.pi, np.pi, 9) * 0.25 + np.linspace(-np.pi, np.pi, 9, endpoint=False) * 0.75)
        lengths = rng.uniform(0.65, 1.2, 9)
        return np.interp(angle, corners, lengths, period=2 * np.pi) - radius
    turn = rng.uniform(-0.3, 0.3)
    a, b = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    power = rng.uniform(2.5, 8)
    return 0.92 - (np.abs(a) ** power + np.abs(b) ** power) ** (1 / power) + 0.05 * np.sin(angle * 3 + turn * 9)


def place_marks(rng: np.random.Generator, inside: np.ndarray, colour: str, mark: str) -> SceneObject:
    """A cloth with one or two marks somewhere in its visible part, far from its middle rather than near."""
    height, width = inside.shape
    table = np.pad(inside[::2, ::2].astype(np.int32).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    ys, xs = np.nonzero(inside[::2, ::2])
    middle = (ys.mean(), xs.mean()) if len(ys) else (0.0, 0.0)
    boxes: list[tuple[int, int, int]] = []
    for _ in range(1 + int(rng.random() < TWO_MARKS)):
        side = min(int(rng.integers(*MARK_SIDES)), height // 2, width // 2)
        half = side // 2
        covered = table[half:, half:] - table[:-half, half:] - table[half:, :-half] + table[:-half, :-half]
        ys, xs = np.nonzero(covered >= min(0.97 * half * half, covered.max()))
        if boxes:
            y, x, other = (value // 2 for value in boxes[0])
            apart = np.maximum(abs(ys - y), abs(xs - x)) > max(half, other)
            ys, xs = ys[apart], xs[apart]
            if not len(ys):
                break
        distance = np.hypot(ys + half / 2 - middle[0], xs + half / 2 - middle[1])
        weight = distance**2 + 1e-3
        pick = rng.choice(len(ys), p=weight / weight.sum())
        boxes.append((int(ys[pick]) * 2, int(xs[pick]) * 2, side))
    return SceneObject(FIRST_CLOTH + PAIRS.index((colour, mark)), colour, mark, tuple(boxes))


def paint(rng: np.random.Generator, instances: np.ndarray, objects: tuple[SceneObject, ...]) -> np.ndarray:
    """The picture of a scene, uint8 [h w 3]: surfaces, marks, mild uneven light and grain."""
    height, width = instances.shape
    # Pixels are single numbers while surfaces are laid out: a third of the memory traffic.
    packed = np.zeros((height, width), np.uint32)
    for index, thing in enumerate(objects):
        if thing.colour is None:
            surface = crop_atlas(rng, ground_atlas(GROUNDS[thing.label]), height, width)
        else:
            surface = pack(np.array(CLOTH_COLOURS[thing.colour]) * rng.uniform(0.93, 1.07, 3))
        packed = np.where(instances == index, surface, packed)
        for y, x, side in thing.mark_boxes:
            ink = mark_pattern(thing.mark, side, rng.uniform(-MARK_TILT, MARK_TILT))
            ink = ink[: height - y, : width - x] & (instances[y : y + side, x : x + side] == index)
            packed[y : y + side, x : x + side][ink] = pack(INKS[thing.colour])
    image = packed.view(np.uint8).reshape(height, width, 4).astype(np.float32)
    image *= enlarge(rng.uniform(0.82, 1.12, (4, 5)), height, width)[..., None]
    image *= np.append(rng.uniform(0.95, 1.05, 3), 1).astype(np.float32)
    image += crop_atlas(rng, grain(), height, width).view(np.int8).reshape(height, width, 4)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)[..., :3]


def crop_atlas(rng: np.random.Generator, atlas: np.ndarray, height: int, width: int) -> np.ndarray:
    """A random part [h w] of a periodic picture, mirrored at random, contiguous."""
    if max(height, width) > SIDE:
        atlas = np.tile(atlas, (-(-height // SIDE), -(-width // SIDE)))
    y, x = rng.integers(atlas.shape[0] - height + 1), rng.integers(atlas.shape[1] - width + 1)
    part = atlas[y : y + height, x : x + width]
    return np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part)
