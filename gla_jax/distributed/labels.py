"""Labels of images that went through together: devices label the images they hold, and nothing else leaves them."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gla_jax.attention.ring import WINDOW_AXIS
from gla_jax.distributed.mesh import BY_IMAGE, BY_WINDOW, EVERYWHERE, place_parts
from gla_jax.labels.label_map import (
    Columns,
    LabelRule,
    Layout,
    Rows,
    array_platform,
    blocks_of,
    join_tiles,
    label_tile,
)
from gla_jax.pipeline import token_logits
from gla_jax.support.arrays import Array, Bool, Float, Integer, have_directions

MAX_TILES = 8  # of an image that one device labels in one program


@partial(jax.jit, static_argnames=("mesh", "precision"))
def split_logits(
    features: Float[Array, "B W S E"], text_embeddings: Float[Array, "Q E"], mesh: Mesh | None, precision: str
) -> tuple[Float[Array, "B W S Q"], Bool[Array, " B"]]:
    """Token logits, those of an image on all of its devices, and whether the features of each are usable.

    Args:
        features: of Model.features_together.
        text_embeddings: a row of length one for every prompt, from the host.
        mesh: that holds the features, None for one device.
        precision: of the matrix product, in JAX's words.
    """
    logits = jax.vmap(partial(token_logits, precision=precision), in_axes=(0, None))(features, text_embeddings)
    if mesh is None:
        return logits, have_directions(features)
    for spec in (BY_WINDOW, BY_IMAGE):  # computed where the windows are, then brought together
        logits = jax.lax.with_sharding_constraint(logits, NamedSharding(mesh, spec))
    usable = have_directions(features)
    return logits, jax.lax.with_sharding_constraint(usable, NamedSharding(mesh, EVERYWHERE))


@partial(jax.jit, static_argnames=("mesh", "thresholded", "precision", "dtype"))
def label_tiles(
    logits: Float[Array, "B W S Q"],
    tiles: tuple[Rows, Columns, Array | None],
    numbers: tuple[Array, ...],
    mesh: Mesh | None,
    thresholded: bool,
    precision: str,
    dtype: type,
) -> Integer[Array, "B d y x"]:
    """Labels of d tiles of every image, on a mesh one on each of its devices.

    Args:
        logits: of split_logits.
        tiles: rows, columns and blocks_of every tile, each leaf [B d ...].
        numbers: of a LabelRule.
        mesh: that holds the logits, None for one device.
        thresholded, precision, dtype: of label_tile.
    """

    def local(logits, tiles, numbers):
        def label(image):
            own, tiles = image
            return jax.lax.map(lambda tile: label_tile(own, *tile, *numbers, thresholded, precision, dtype), tiles)

        # This device's tiles of each of its images.
        return jax.lax.map(label, (logits, tiles))

    if mesh is None:
        return local(logits, tiles, numbers)
    specs = (BY_IMAGE, BY_WINDOW, EVERYWHERE)
    # Loops start from constants, which the check would want marked; nothing here crosses devices.
    split = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=BY_WINDOW, check_vma=False)
    labels = split(logits, tiles, numbers)
    # Every process of a mesh over several has the labels of all images.
    return (
        jax.lax.with_sharding_constraint(labels, NamedSharding(mesh, EVERYWHERE)) if mesh.is_multi_process else labels
    )


def start_labels(
    logits: Float[Array, "B W S Q"], places: Sequence[Layout], rule: LabelRule, mesh: Mesh | None, precision: str
) -> list[Callable[[], Integer[np.ndarray, "h w"]]]:
    """Hand the labels of every image to its devices; one function an image waits for them.

    Args:
        logits: of split_logits.
        places: of the tokens of each of the B images among its pixels.
        rule: from logits to a label.
        mesh: that holds the logits, None for one device.
        precision: of the matrix product, in JAX's words.
    """
    images, rounds = [list(where.tiles()) for where in places], []
    most = max(map(len, images))
    if mesh is None:
        # A power of two, so that images of many sizes share a few programs.
        together, platform = min(1 << (most - 1).bit_length(), MAX_TILES), array_platform(logits)
    else:
        together, platform = mesh.shape[WINDOW_AXIS], mesh.devices.flat[0].platform
    for first in range(0, most, together):
        tiles = []
        for own in images:
            for index in range(first, first + together):
                # An image without so many tiles has its last one again, of which nothing is computed but on GPUs.
                down, _, rows, columns = own[min(index, len(own) - 1)]
                tiles.append((rows, columns, blocks_of(down if index < len(own) else slice(0, 0), platform)))
        parts = jax.tree.map(lambda *leaves: _stacked(leaves, (len(images), together)), *tiles)
        placed = parts if mesh is None else place_parts(parts, mesh)
        static = {"thresholded": rule.threshold > 0, "precision": precision, "dtype": rule.dtype}
        rounds.append(label_tiles(logits, placed, rule.numbers(), mesh, **static))
        rounds[-1].copy_to_host_async()

    def labels(image: int) -> Integer[np.ndarray, "h w"]:
        own = [np.asarray(rounds[tile // together])[image, tile % together] for tile in range(len(images[image]))]
        return join_tiles(places[image], own, rule.dtype)

    return [partial(labels, image) for image in range(len(images))]


def _stacked(leaves: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Arrays side by side, each filled up with zeros: tokens and taps of weight 0."""
    stacked = np.zeros((len(leaves), *np.max([leaf.shape for leaf in leaves], axis=0).astype(int)), leaves[0].dtype)
    for row, leaf in enumerate(leaves):
        stacked[(row, *map(slice, leaf.shape))] = leaf
    return stacked.reshape(*shape, *stacked.shape[1:])
