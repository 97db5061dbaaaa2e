"""Regions of a label map as run lengths and as polygons, both exact to the pixel."""

from typing import Any

import numpy as np

from gla_jax.support.arrays import Bool, Float, Integer

Ring = Float[np.ndarray, "p 2"]  # x, y in pixels; corners of pixels are whole numbers; the last point is not the first


def coco_rle(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask: {"size": [h, w], "counts": text}; needs pycocotools."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def polygons(labels: Integer[np.ndarray, "h w"], label: int) -> list[Ring]:
    """Outlines of the 4-connected regions of one label, along the edges of pixels; together they cover exactly these.

    A hole is joined to the outline around it by an edge that is walked in both directions, as formats without holes
    ask for. Needs rasterio.
    """
    from rasterio.features import shapes

    mask = labels == label
    regions = shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    return [_without_holes([np.array(ring[:-1], float) for ring in region["coordinates"]]) for region, _ in regions]


def _without_holes(rings: list[Ring]) -> Ring:
    """One ring around an outline and its holes; all edges are horizontal or vertical."""
    outline, *holes = rings
    # From top to bottom: what lies above a hole's top edge is the outline or a hole that is already part of it.
    for hole in sorted(holes, key=lambda ring: ring[:, 1].min()):
        top = hole[:, 1].min()
        start = next(i for i in range(len(hole)) if hole[i, 1] == hole[(i + 1) % len(hole), 1] == top)
        x = (hole[start, 0] + hole[(start + 1) % len(hole), 0]) / 2
        x += 0.5 * (x == round(x))  # between corners, so that the way up meets no vertical edge
        after = np.roll(outline, -1, axis=0)
        crossing = (np.minimum(outline[:, 0], after[:, 0]) < x) & (x < np.maximum(outline[:, 0], after[:, 0]))
        above = np.flatnonzero(crossing & (outline[:, 1] == after[:, 1]) & (outline[:, 1] < top))
        edge = above[outline[above, 1].argmax()]
        loop = np.roll(hole, -(start + 1), axis=0)
        bridge = np.array([[x, outline[edge, 1]], [x, top]])
        outline = np.concatenate([outline[: edge + 1], bridge, loop, bridge[::-1], outline[edge + 1 :]])
    return outline


def bounding_box(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """[x, y, width, height] of a mask that is not empty, in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(value) for value in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]


# Bits of the four lengths of runs, which the header of Label Studio's run lengths names, less one each.
RUN_BITS = (4, 8, 12, 16)


def brush_rle(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """Label Studio's run lengths of a mask: bytes of the bit stream of thi.ng's rle-pack over RGBA values 0 and 255."""
    values = np.repeat(mask.ravel(), 4)
    edges = np.flatnonzero(np.diff(values)) + 1
    lengths = np.diff(np.concatenate([[0], edges, [len(values)]]))
    bits = [f"{len(values):032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in RUN_BITS)]
    value = bool(values[0])
    for length in lengths.tolist():
        while length:
            part = min(length, 2 ** RUN_BITS[-1])
            index = next(i for i, size in enumerate(RUN_BITS) if part <= 2**size)
            # 1: a run; which of the four lengths; the length less one; the value.
            bits.append(f"1{index:02b}{part - 1:0{RUN_BITS[index]}b}{255 * value:08b}")
            length -= part
        value = not value
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return np.packbits(np.frombuffer(stream.encode(), np.uint8) - ord("0")).tolist()
