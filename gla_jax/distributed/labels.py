"""Labels of images on a mesh: the devices that hold an image label it, and nothing but its labels leaves them."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gla_jax.attention.ring import WINDOW_AXIS
from gla_jax.distributed.mesh import BY_IMAGE, BY_WINDOW, EVERYWHERE, place_parts
from gla_jax.labels.label_map import LabelRule, Layout, blocks_of, join_tiles, label_tile
from gla_jax.pipeline import token_logits
from gla_jax.support.arrays import Array, Bool, Float, Integer, have_directions


@partial(jax.jit, static_argnames=("mesh", "precision"))
def split_logits(
    features: Float[Array, "B W S E"], text_embeddings: Float[Array, "Q E"], mesh: Mesh, precision: str
) -> tuple[Float[Array, "B W S Q"], Bool[Array, " B"]]:
    """Token logits, those of an image on all of its devices, and whether the features of each are usable.

    Args:
        features: of ring_features.
        text_embeddings: a row of length one for every prompt, from the host.
        mesh: that holds the features.
        precision: of the matrix product, in JAX's words.
    """
    logits = jax.vmap(partial(token_logits, precision=precision), in_axes=(0, None))(features, text_embeddings)
    for spec in (BY_WINDOW, BY_IMAGE):  # computed where the windows are, then brought together
        logits = jax.lax.with_sharding_constraint(logits, NamedSharding(mesh, spec))
    usable = have_directions(features)
    return logits, jax.lax.with_sharding_constraint(usable, NamedSharding(mesh, EVERYWHERE))


@partial(jax.jit, static_argnames=("mesh", "thresholded", "precision", "dtype"))
def label_tiles(logits, tiles, numbers, mesh, thresholded, precision, dtype) -> Integer[Array, "B d y x"]:
    """Labels of d tiles of every image, one on each of its devices.

    Args:
        logits: of split_logits.
        tiles: Rows, Columns and number of blocks of rows of every tile, each leaf [B d ...].
        numbers: of a LabelRule.
        mesh: that holds the logits.
        thresholded, precision, dtype: of label_tile.
    """

    def local(logits, tiles, numbers):
        def label(image):
            own, tile = image
            return label_tile(own, *tile, *numbers, thresholded, precision, dtype)

        # This device's tile of each of its images.
        return jax.lax.map(label, (logits, jax.tree.map(lambda leaf: leaf[:, 0], tiles)))[:, None]

    specs = (BY_IMAGE, BY_WINDOW, EVERYWHERE)
    # Loops start from constants, which the check would want marked; nothing here crosses devices.
    split = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=BY_WINDOW, check_vma=False)
    labels = split(logits, tiles, numbers)
    # Every process of a mesh over several has the labels of all images.
    return (
        jax.lax.with_sharding_constraint(labels, NamedSharding(mesh, EVERYWHERE)) if mesh.is_multi_process else labels
    )


def start_labels(
    logits: Float[Array, "B W S Q"], places: Sequence[Layout], rule: LabelRule, mesh: Mesh, precision: str
) -> list[Callable[[], Integer[np.ndarray, "h w"]]]:
    """Hand the labels of every image to its devices; one function an image waits for them.

    Args:
        logits: of split_logits.
        places: of the tokens of each of the B images among its pixels.
        rule: from logits to a label.
        mesh: that holds the logits.
        precision: of the matrix product, in JAX's words.
    """
    devices, images = mesh.shape[WINDOW_AXIS], [list(where.tiles()) for where in places]
    platform = mesh.devices.flat[0].platform
    rounds = []
    for first in range(0, max(map(len, images)), devices):
        tiles = []
        for own in images:
            for index in range(first, first + devices):
                # An image without so many tiles has its last one again, of which nothing is computed but on GPUs.
                down, _, rows, columns = own[min(index, len(own) - 1)]
                tiles.append((rows, columns, blocks_of(down if index < len(own) else slice(0, 0), platform)))
        together = jax.tree.map(lambda *leaves: _stacked(leaves, (len(images), devices)), *tiles)
        placed = place_parts(together, mesh)
        static = {"thresholded": rule.threshold > 0, "precision": precision, "dtype": rule.dtype}
        rounds.append(label_tiles(logits, placed, rule.numbers(), mesh, **static))
        rounds[-1].copy_to_host_async()

    def labels(image: int) -> Integer[np.ndarray, "h w"]:
        own = [np.asarray(rounds[tile // devices])[image, tile % devices] for tile in range(len(images[image]))]
        return join_tiles(places[image], own, rule.dtype)

    return [partial(labels, image) for image in range(len(images))]


def _stacked(leaves: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Arrays side by side, each filled up with zeros: tokens and taps of weight 0."""
    stacked = np.zeros((len(leaves), *np.max([leaf.shape for leaf in leaves], axis=0).astype(int)), leaves[0].dtype)
    for row, leaf in enumerate(leaves):
        stacked[(row, *map(slice, leaf.shape))] = leaf
    return stacked.reshape(*shape, *stacked.shape[1:])
