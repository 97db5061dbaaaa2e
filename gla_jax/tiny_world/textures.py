"""Surfaces of tiny-world: textured grounds, drawn once and cropped at random, and the marks cloths carry."""

from functools import cache

import numpy as np

from gla_jax.pictures.drawing import GROUND_COLOURS
from gla_jax.tiny_world.vocabulary import GROUNDS

SIDE = 1024


def smooth_field(rng: np.random.Generator, cells: int, side: int = SIDE) -> np.ndarray:
    """Periodic noise [side side] in about -1..1 whose bumps are side / cells pixels wide."""
    spectrum = np.fft.rfft2(rng.standard_normal((side, side)))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None] * side, np.fft.rfftfreq(side)[None] * side)
    field = np.fft.irfft2(spectrum * np.exp(-((frequency / cells) ** 2)), s=(side, side))
    return (field / field.std() / 2).clip(-1.5, 1.5)


def relief(name: str, rng: np.random.Generator) -> np.ndarray:
    """Brightness [SIDE SIDE] around 0 of a ground, in shares of its colour; periodic."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    if name == "sand":
        return 0.10 * rng.standard_normal((SIDE, SIDE)) + 0.08 * smooth_field(rng, 60)
    if name == "water":
        phase = y / 32 * 2 * np.pi + 2.5 * smooth_field(rng, 24)
        return 0.22 * np.sin(phase) + 0.05 * smooth_field(rng, 100)
    if name == "brick":
        row = y // 16
        across = (x + 16 * (row % 2)) % 32
        tone = rng.uniform(-0.12, 0.12, (SIDE // 16, SIDE // 32 + 1))
        tone = tone[row.astype(int), ((x + 16 * (row % 2)) // 32).astype(int) % (SIDE // 32)]
        return np.where((y % 16 < 3) | (across < 3), 0.45, tone) + 0.05 * rng.standard_normal((SIDE, SIDE))
    if name == "grass":
        blades = rng.standard_normal((SIDE, SIDE))
        blades = sum(np.roll(blades, (k, k // 3), (0, 1)) for k in range(9)) / 3
        return 0.20 * blades + 0.08 * smooth_field(rng, 16)
    if name == "wood":
        rings = np.sin(x / 16 * 2 * np.pi + 5 * smooth_field(rng, 5) + 0.5 * smooth_field(rng, 120))
        return 0.16 * rings + 0.06 * rng.standard_normal((SIDE, SIDE)) - 0.4 * (y % 128 < 3)
    if name == "gravel":
        return 0.35 * np.tanh(2.5 * smooth_field(rng, 110)) + 0.06 * rng.standard_normal((SIDE, SIDE))
    raise ValueError(f"no ground is called {name!r}")


def pack(colour: np.ndarray) -> np.ndarray:
    """Colours [... 3] in 0..255 as one uint32 a pixel, whose bytes are R, G, B, 0 in memory."""
    pixels = np.zeros((*colour.shape[:-1], 4), np.uint8)
    pixels[..., :3] = colour.clip(0, 255)
    return pixels.view(np.uint32)[..., 0]


@cache
def ground_atlas(name: str) -> np.ndarray:
    """A ground as one large picture [SIDE SIDE] of packed pixels, always the same; scenes crop it."""
    rng = np.random.default_rng(GROUNDS.index(name))
    return pack(np.array(GROUND_COLOURS[name]) * (1 + relief(name, rng)[..., None]))


@cache
def grain() -> np.ndarray:
    """Sensor noise [SIDE SIDE] that scenes crop: four int8 a pixel, seen as one uint32."""
    noise = np.random.default_rng(len(GROUNDS)).normal(0, 5, (SIDE, SIDE, 4)).clip(-30, 30).astype(np.int8)
    return noise.view(np.uint32)[..., 0]


def mark_pattern(name: str, side: int, angle: float) -> np.ndarray:
    """The ink of a mark, [side side] bool: a tilted pattern inside a disc. Raises ValueError for an unknown mark."""
    axis = np.arange(side) - (side - 1) / 2
    y, x = axis[:, None], axis[None]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if name == "stripes":
        ink = np.broadcast_to((u % 12) < 6, (side, side))
    elif name == "rings":
        ink = (np.hypot(x, y) % 13) > 6.5
    elif name == "checks":
        ink = (u // 9 + v // 9) % 2 == 0
    elif name == "crosses":
        a, b = np.abs(u % 20 - 10), np.abs(v % 20 - 10)
        ink = ((a < 2.5) & (b < 8.5)) | ((b < 2.5) & (a < 8.5))
    elif name == "dots":
        ink = np.hypot(u % 15 - 7.5, v % 15 - 7.5) < 5
    elif name == "zigzags":
        ink = ((v + np.abs(u % 20 - 10) * 1.1) % 13) < 6
    else:
        raise ValueError(f"no mark is called {name!r}")
    return ink & (np.hypot(x, y) <= side / 2)
