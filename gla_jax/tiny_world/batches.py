"""Training batches: several windows of fresh scenes, each patch with the object it shows."""

from typing import NamedTuple

import numpy as np

from gla_jax.tiny_world.scenes import Scene, render

# Objects of a scene that training looks at: at most two grounds and four cloths; further patches belong to none.
SLOTS = 6
NONE = SLOTS
PURE = 0.6  # a patch belongs to the object that fills at least this share of it


class Batch(NamedTuple):
    """Windows of scenes, the V windows of one scene side by side.

    pixels uint8 [B V c c 3]; slots int32 [B V n]: the object a patch shows, NONE where mixed; marked bool [B V n]: the
    patch lies in the box of a mark; labels int32 [B SLOTS]: class of each object, -1 where there is none; mark_seen
    float32 [B V SLOTS]: the share of an object's best visible mark inside the window; samples int32 [B M]: patches of
    all V windows, flattened, the same number for each object.
    """

    pixels: np.ndarray
    slots: np.ndarray
    marked: np.ndarray
    labels: np.ndarray
    mark_seen: np.ndarray
    samples: np.ndarray


class BatchSpec(NamedTuple):
    """Sizes of a batch: scenes, windows of each (views), their side (crop), the patch size, samples a scene.

    mark_bias: the share of windows placed so that they see some mark; for small crops, which seldom would.
    """

    scenes: int
    views: int
    crop: int
    patch: int
    samples: int = 240
    mark_bias: float = 0.0


def make_batch(seed: int, spec: BatchSpec, split: str = "train", height: int = 336, width: int = 448) -> Batch:
    """The batch of a seed: seed * scenes is the first scene's seed, so batches of successive seeds share no scene."""
    rng = np.random.default_rng([seed, spec.crop])
    first = seed * spec.scenes
    parts = [_views(render(first + index, height, width, split), spec, rng) for index in range(spec.scenes)]
    return Batch(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))


def _views(scene: Scene, spec: BatchSpec, rng: np.random.Generator) -> Batch:
    corners = [_corner(scene, spec, rng) for _ in range(spec.views)]
    cut = [(slice(y, y + spec.crop), slice(x, x + spec.crop)) for y, x in corners]
    pixels = np.stack([scene.image[part] for part in cut])
    slots = np.stack([patch_slots(scene.instances[part], spec.patch) for part in cut])
    labels = np.full(SLOTS, -1, np.int32)
    labels[: len(scene.objects)] = [thing.label for thing in scene.objects]
    seen = np.zeros((spec.views, SLOTS), np.float32)
    marked = np.zeros(slots.shape, bool)
    for view, (top, left) in enumerate(corners):
        for slot, thing in enumerate(scene.objects):
            for y, x, side in thing.mark_boxes:
                rows = min(y + side, top + spec.crop) - max(y, top)
                columns = min(x + side, left + spec.crop) - max(x, left)
                seen[view, slot] = max(seen[view, slot], max(rows, 0) * max(columns, 0) / side**2)
                marked[view] |= _patches_in(y - top, x - left, side, spec)
    return Batch(
        pixels, slots, marked, labels, seen, balanced_samples(slots.ravel(), marked.ravel(), spec.samples, rng)
    )


def _corner(scene: Scene, spec: BatchSpec, rng: np.random.Generator) -> tuple[int, int]:
    """Top-left pixel of a window, anywhere or such that a random mark lies wholly inside."""
    height, width = scene.labels.shape
    low, high = np.zeros(2, int), np.array([height - spec.crop, width - spec.crop])
    if rng.random() < spec.mark_bias:
        boxes = [box for thing in scene.objects for box in thing.mark_boxes]
        y, x, side = boxes[rng.integers(len(boxes))]
        corner = np.array([y, x])
        low = np.clip(corner + side - spec.crop, low, high)
        high = np.clip(corner, low, high)
    top, left = rng.integers(low, high + 1)
    return int(top), int(left)


def _patches_in(y: int, x: int, side: int, spec: BatchSpec) -> np.ndarray:
    centres = np.arange(spec.crop // spec.patch) * spec.patch + spec.patch / 2
    rows, columns = ((centres >= start) & (centres < start + side) for start in (y, x))
    return (rows[:, None] & columns[None]).ravel()


def patch_slots(instances: np.ndarray, patch: int) -> np.ndarray:
    """The object each patch of a window [c c] shows, int32 [n]; NONE where no object fills PURE of it."""
    side = instances.shape[0] // patch
    patches = instances.reshape(side, patch, side, patch).transpose(0, 2, 1, 3).reshape(side * side, -1)
    best = np.full(side * side, NONE, np.int32)
    for slot in range(min(int(instances.max()) + 1, SLOTS)):
        best[(patches == slot).mean(1) >= PURE] = slot
    return best


def balanced_samples(slots: np.ndarray, marked: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `count` patches, int32: every object alike, a third of a cloth's from its marks where it shows any."""
    present = [slot for slot in np.unique(slots) if slot != NONE]
    shares = np.array_split(np.arange(count), len(present))
    picked = []
    for slot, share in zip(present, shares, strict=True):
        own = np.flatnonzero(slots == slot)
        on_mark = own[marked[own]]
        special = len(share) // 3 if len(on_mark) else 0
        picked += [rng.choice(own, len(share) - special)]
        picked += [rng.choice(on_mark, special)] if special else []
    return np.concatenate(picked).astype(np.int32)
