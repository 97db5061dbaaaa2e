"""What is kept between images is bounded by bytes: photos of all sizes must not fill memory."""

import tracemalloc

import numpy as np

from gla_jax.config import WindowConfig
from gla_jax.images.resize import rescale_size
from gla_jax.images.windows import window_grid
from gla_jax.labels.label_map import layout
from gla_jax.support.sized_cache import cached_up_to


def test_the_latest_results_stay_up_to_their_bytes():
    made = []

    @cached_up_to(2000)
    def rows(count):
        made.append(count)
        return np.zeros(count, np.uint8), (np.zeros(0, np.float32),)

    assert rows(900)[0] is rows(900)[0]
    rows(1000)
    rows(900)
    rows(500)  # takes the place of 1000, which was asked for longest ago
    rows(900)
    assert made == [900, 1000, 500]
    rows(1000)
    assert made == [900, 1000, 500, 1000]
    rows(2001)
    rows(2001)
    assert made[4:] == [2001, 2001]


def test_large_photos_of_many_sizes_leave_little_behind():
    """Eight of 12 megapixels left 104 MiB."""
    windows = WindowConfig()
    layout(window_grid(336, 448, windows), 784, (375, 500))
    tracemalloc.start()
    try:
        for index in range(8):
            size = 3000 + 10 * index, 4000 - 10 * index
            layout(window_grid(*rescale_size(*size, 336), windows), 784, size)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 32 * 2**20
