"""Position tables are resized as PyTorch's bicubic interpolation does: to a size, antialiased, or by a scale factor."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gla_jax.towers.positions import resize_positions

GRIDS = [(7, 14), (9, 7), (3, 5), (28, 11), (1, 2)]


def torch_resize(table, grid, **options):
    side = round(len(table) ** 0.5)
    image = torch.from_numpy(table).reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(image, mode="bicubic", align_corners=False, **options)
    assert resized.shape[2:] == grid
    return resized[0].permute(1, 2, 0).reshape(grid[0] * grid[1], -1).numpy()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("side", [7, 14])
@pytest.mark.parametrize(("method", "antialias"), [("bicubic", False), ("bicubic_antialias", True)])
def test_resized_as_pytorch_does(side, grid, method, antialias):
    table = np.random.default_rng(side).standard_normal((side * side, 5)).astype(np.float32)
    ours = np.asarray(resize_positions(jnp.asarray(table), grid, method))
    theirs = torch_resize(table, grid, size=grid, antialias=antialias)
    # Sixteen products at most a value (more when antialiased, with small weights), in another order: a few units in
    # the last place of values around 3.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6)


@pytest.mark.parametrize("grid", [*GRIDS, (7, 7), (14, 14), (24, 24), (37, 32)], ids=str)
@pytest.mark.parametrize("side", [7, 28, 37])
def test_an_offset_resizes_as_the_code_of_dino_asks_pytorch_to(side, grid):
    table = np.random.default_rng(side).standard_normal((side * side, 5)).astype(np.float32)
    ours = np.asarray(resize_positions(jnp.asarray(table), grid, "bicubic", 0.1))
    if grid == (side, side):
        np.testing.assert_array_equal(ours, table)
        return
    theirs = torch_resize(table, grid, scale_factor=tuple((cells + 0.1) / side for cells in grid))
    # The weights come from places up to 37 in float32, of which PyTorch may fuse a multiplication and a subtraction.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1.5e-5)
    assert np.abs(ours - torch_resize(table, grid, size=grid)).max() > 0.1


def test_an_offset_goes_with_the_plain_kernel_alone():
    with pytest.raises(ValueError, match="bicubic_antialias has no offset"):
        resize_positions(jnp.zeros((49, 3)), (4, 9), "bicubic_antialias", 0.1)


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_own_grid_is_untouched(offset):
    table = jnp.asarray(np.random.default_rng(0).standard_normal((49, 3)).astype(np.float32))
    assert resize_positions(table, (7, 7), "bicubic", offset) is table


def test_the_two_kernels_differ():
    table = jnp.asarray(np.random.default_rng(0).standard_normal((49, 3)).astype(np.float32))
    plain, smooth = (resize_positions(table, (4, 9), method) for method in ("bicubic", "bicubic_antialias"))
    assert np.abs(np.asarray(plain - smooth)).max() > 0.1


def test_a_table_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="48 position embeddings do not form a square grid"):
        resize_positions(jnp.asarray(np.zeros((48, 3), np.float32)), (7, 7))
